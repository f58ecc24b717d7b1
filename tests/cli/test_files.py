from pathlib import Path

import pytest
import typer

from service.cli.files import Outputs, Picture, find_outputs, find_pictures


def places(*inputs: Path) -> list[str]:
    return [picture.place.as_posix() for picture in find_pictures(inputs)]


def test_folders_are_searched_in_order_and_keep_their_structure(pictures: Path) -> None:
    assert places(pictures) == ["b", "cats/a", "dogs/a"]


def test_a_file_is_taken_whatever_its_name(pictures: Path) -> None:
    assert places(pictures / "notes.txt", pictures / "dogs/a.jpg") == ["notes", "a"]


def test_each_file_is_taken_once(pictures: Path) -> None:
    assert places(pictures / "b.png", pictures) == ["b", "cats/a", "dogs/a"]


def test_equal_stems_keep_their_suffixes(pictures: Path) -> None:
    (pictures / "b.jpg").touch()
    assert places(pictures) == ["b.jpg", "b.png", "cats/a", "dogs/a"]


def test_what_would_share_an_output_is_refused(pictures: Path) -> None:
    with pytest.raises(typer.BadParameter, match="same output"):
        find_pictures([pictures / "cats", pictures / "dogs"])


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(typer.BadParameter, match="no pictures"):
        find_pictures([tmp_path])


def test_what_an_earlier_run_wrote_is_no_input(pictures: Path) -> None:
    for kind in ("mask", "overlay", "blocks"):
        (pictures / f"b.{kind}.png").touch()
    assert places(pictures) == ["b", "cats/a", "dogs/a"]


CAT = Picture(Path("photos/cats/a.jpg"), Path("cats/a"))


def test_outputs_below_a_folder() -> None:
    outputs = find_outputs(Path("out"), [CAT, CAT])
    assert outputs.paths(CAT, ["mask", "overlay"]) == [
        Path("out/cats/a.mask.png"),
        Path("out/cats/a.overlay.png"),
    ]


def test_a_named_file_and_its_neighbour() -> None:
    outputs = find_outputs(Path("out/it.png"), [CAT])
    assert outputs == Outputs(Path("out/it.png"), is_file=True)
    assert outputs.paths(CAT, ["mask", "overlay"]) == [Path("out/it.png"), Path("out/it.overlay.png")]


def test_a_folder_may_look_like_a_file(tmp_path: Path) -> None:
    (tmp_path / "out.png").mkdir()
    assert not find_outputs(tmp_path / "out.png", [CAT]).is_file


@pytest.mark.parametrize(
    ("out", "count", "message"), [("it.png", 2, "2 pictures: name a folder"), ("it.jpg", 1, "is PNG")]
)
def test_outputs_that_can_not_be(out: str, count: int, message: str) -> None:
    with pytest.raises(typer.BadParameter, match=message):
        find_outputs(Path(out), [CAT] * count)
