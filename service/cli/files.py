"""Which pictures a command takes, and where it writes what it makes of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import typer

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"}
KINDS = ("mask", "overlay", "blocks")


@dataclass(frozen=True)
class Picture:
    """A file to look at.

    path: as the user would name it.
    place: relative, without a suffix: where its outputs lie below the output folder.
    """

    path: Path
    place: Path


@dataclass(frozen=True)
class Outputs:
    """Where outputs go: below a folder, or (for one picture) into a named file and beside it."""

    out: Path
    is_file: bool

    def paths(self, picture: Picture, kinds: Sequence[str]) -> list[Path]:
        """One path a kind of output: `OUT/PLACE.KIND.png`; a named file is the first kind's."""
        if self.is_file:
            return [self.out, *(self.out.with_suffix(f".{kind}.png") for kind in kinds[1:])]
        return [self.out / f"{picture.place}.{kind}.png" for kind in kinds]

    def exist(self, picture: Picture, kinds: Sequence[str]) -> bool:
        """Whether all of them are there, from an earlier run."""
        return all(path.exists() for path in self.paths(picture, kinds))


def find_pictures(inputs: Iterable[Path]) -> list[Picture]:
    """The files as they are named, and the pictures below each folder, sorted; each file once.

    Two pictures that would share a place keep their suffixes in it (a.jpg and a.png of one folder).
    """
    files: dict[Path, tuple[Path, Path]] = {}
    for given in inputs:
        for path, place in _below(given) if given.is_dir() else [(given, Path(given.name))]:
            files.setdefault(path.resolve(), (path, place))
    if not files:
        raise typer.BadParameter(f"There are no pictures here: none ends in {', '.join(sorted(SUFFIXES))}.")
    return _placed(list(files.values()))


def find_outputs(out: Path, pictures: Sequence[Picture]) -> Outputs:
    """Where OUT puts these pictures' outputs; raises typer.BadParameter where that can't work."""
    if out.is_dir() or not (out.is_file() or out.suffix.lower() in SUFFIXES):
        return Outputs(out, is_file=False)
    if len(pictures) > 1:
        raise typer.BadParameter(
            f"-o {out} is one file, but there are {len(pictures)} pictures: name a folder."
        )
    if out.suffix.lower() != ".png":
        raise typer.BadParameter(f"-o {out}: what is written is PNG; name a .png file or a folder.")
    return Outputs(out, is_file=True)


def _below(folder: Path) -> Iterator[tuple[Path, Path]]:
    for path in sorted(folder.rglob("*")):
        place = path.relative_to(folder)
        if (
            path.suffix.lower() in SUFFIXES
            and path.is_file()
            and not _is_hidden(place)
            and not _is_ours(path)
        ):
            yield path, place


def _is_hidden(place: Path) -> bool:
    return any(part.startswith(".") for part in place.parts)


def _is_ours(path: Path) -> bool:
    """Whether an earlier run wrote it: outputs may lie among the pictures."""
    return path.name.lower().endswith(tuple(f".{kind}.png" for kind in KINDS))


def _placed(files: list[tuple[Path, Path]]) -> list[Picture]:
    stems = Counter(place.with_suffix("") for _, place in files)
    pictures = [
        Picture(path, place if stems[place.with_suffix("")] > 1 else place.with_suffix(""))
        for path, place in files
    ]
    taken: dict[Path, Path] = {}
    for picture in pictures:
        other = taken.setdefault(picture.place, picture.path)
        if other != picture.path:
            raise typer.BadParameter(
                f"{other} and {picture.path} would have the same output: name a folder that holds both, "
                "or run them one at a time."
            )
    return pictures
