"""Maps to pictures: to the pixel against the seed script's, and placement, layouts and budgets."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from service.imaging import render
from service.types import Box
from tests.pictures import rgb_of

GRID = np.random.default_rng(1).random((14, 14)).astype(np.float32)
JET = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[None], cv2.COLORMAP_JET)[0, :, ::-1]


def whole(width: int, height: int) -> Box:
    return Box(0, 0, width, height)


@pytest.fixture(
    params=[
        "codr_selected-n02127052_10040",
        "imagenet_stubs-koala",
        "imagenet_stubs-manhole_cover",
        "imagenet_stubs-tractor",
        "misc-hila_el2",
        "misc-imageio_chelsea",
    ]
)
def reference(request: pytest.FixtureRequest, golden: Path) -> Path:
    """The .npz of one photograph that the seed script explained."""
    return golden / "seed-script" / f"{request.param}.npz"


@pytest.mark.parametrize("size", [(1, 1), (7, 2**19 + 1), (1499, 997), (5003, 1009)])
def test_strips_take_each_row_once_in_order(size: tuple[int, int]) -> None:
    rows = np.arange(size[0])
    strips = [rows[strip] for strip in render.strips(size)]
    np.testing.assert_array_equal(np.concatenate(strips), rows)
    assert all(len(strip) == 1 or len(strip) * size[1] <= 2**19 for strip in strips)


# the seed script's pictures


def test_mask_and_masked_photograph(reference: Path, test_data: Path) -> None:
    seed = np.load(reference)
    height, width = seed["mask_uint8"].shape
    mask = render.mask(seed["rollout_grid"], width, height, whole(width, height))
    np.testing.assert_array_equal(render.to_grey(mask), seed["mask_uint8"])
    photo = rgb_of((test_data / "photos" / str(seed["photo"])).read_bytes())
    theirs = np.asarray(Image.open(reference.with_suffix(".masked.png")))
    np.testing.assert_array_equal(render.masked(mask, photo), theirs)


def test_canvas(reference: Path) -> None:
    seed = np.load(reference)
    height, width = seed["mask_uint8"].shape
    grids = seed["block_grids"]
    canvas = render.canvas(grids, width, height, whole(width, height), "row", 0, 10**9)
    theirs = np.asarray(Image.open(reference.with_suffix(".canvas.png")))
    np.testing.assert_array_equal(render.JET[canvas.levels], theirs)
    assert (canvas.columns, canvas.panel, canvas.scale) == (12, (height, width), 1.0)


# masks


@pytest.mark.parametrize(("width", "height"), [(640, 480), (97, 211), (1, 1), (1, 7), (13, 13)])
def test_whole_image_is_plain_resize(width: int, height: int) -> None:
    mask = render.mask(GRID, width, height, whole(width, height))
    np.testing.assert_array_equal(mask, cv2.resize(GRID / GRID.max(), (width, height)))
    assert mask.dtype == np.float32


@pytest.mark.parametrize("box", [None, Box(-31.4, 12.6, 500.2, 480.9), Box(90.3, -55.5, 402.0, 600.1)])
def test_strips_of_a_large_mask_are_the_mask(box: Box | None, monkeypatch: pytest.MonkeyPatch) -> None:
    width, height = 1009, 523
    expected = render.mask(GRID, width, height, box or whole(width, height))
    for limit in (2**23, 1000):  # whole, and as large ones are
        monkeypatch.setattr(render, "_WHOLE_PIXELS", limit)
        monkeypatch.setattr(render, "_STRIP_PIXELS", 100_000)
        drawn = list(render.mask_strips(GRID, width, height, box or whole(width, height)))
        assert len(drawn) == 6
        for rows, strip in drawn:
            assert strip.dtype == np.float32
            np.testing.assert_allclose(strip, expected[rows], atol=2e-6)


def test_nothing_outside_the_box() -> None:
    mask = render.mask(GRID + 1, 100, 50, Box(25.2, 0, 75.4, 50))
    assert (mask[:, :25] == 0).all()
    assert (mask[:, 75:] == 0).all()
    np.testing.assert_array_equal(mask[:, 25:75], cv2.resize((GRID + 1) / (GRID + 1).max(), (50, 50)))


def test_a_box_past_the_edges_shows_its_middle() -> None:
    mask = render.mask(GRID, 80, 50, Box(16, -20, 64, 80))
    np.testing.assert_array_equal(mask[:, 16:64], cv2.resize(GRID / GRID.max(), (48, 100))[20:70])
    assert (mask[:, :16] == 0).all()


def test_all_zero_grid_is_black_and_not_nan() -> None:
    zeros = np.zeros((14, 14), np.float32)
    assert (render.mask(zeros, 20, 10, whole(20, 10)) == 0).all()
    assert (render.canvas(zeros[None], 20, 10, whole(20, 10), "row", 0, 10**6).levels == 0).all()


def test_heatmap_is_half_colour_half_image() -> None:
    mask = np.array([[0, 1]], np.float32)
    image = np.array([[[0, 0, 0], [255, 255, 255]]], np.uint8)
    assert render.heatmap(mask, image)[0] == pytest.approx(
        np.array([JET[0] / 2, (JET[255] + 255.0) / 2]), abs=1
    )
    assert JET[255].tolist() == [128, 0, 0]  # the peak is red, not blue


# canvases


@pytest.mark.parametrize(
    ("count", "columns", "rows"), [(1, 1, 1), (2, 2, 1), (5, 3, 2), (12, 4, 3), (24, 5, 5)]
)
def test_grid_layout_is_near_square_in_reading_order(count: int, columns: int, rows: int) -> None:
    grids = np.random.default_rng(3).random((count, 14, 14)).astype(np.float32)
    canvas = render.canvas(grids, 30, 20, whole(30, 20), "grid", 0, 10**6)
    assert canvas.columns == columns
    assert canvas.levels.shape == (rows * 20, columns * 30)
    last = render.canvas(grids[-1:], 30, 20, whole(30, 20), "row", 0, 10**6).levels
    top, left = (count - 1) // columns * 20, (count - 1) % columns * 30
    np.testing.assert_array_equal(canvas.levels[top : top + 20, left : left + 30], last)
    assert (canvas.levels[top:, left + 30 :] == 0).all()


@pytest.mark.parametrize(
    ("max_side", "panel"), [(0, (480, 640)), (320, (240, 320)), (9999, (480, 640)), (1, (1, 1))]
)
def test_max_side_never_enlarges(max_side: int, panel: tuple[int, int]) -> None:
    canvas = render.canvas(GRID[None], 640, 480, whole(640, 480), "row", max_side, 10**9)
    assert canvas.panel == panel
    assert canvas.scale == pytest.approx(min(1, max_side / 640) if max_side else 1)


@pytest.mark.parametrize("layout", ["row", "grid"])
def test_pixel_budget(layout: str) -> None:
    canvas = render.canvas(np.stack([GRID] * 12), 8000, 6000, whole(8000, 6000), layout, 0, 1_000_000)
    height, width = canvas.levels.shape
    assert 900_000 < height * width <= 1_000_000
    assert canvas.panel[1] == int(8000 * canvas.scale)
    assert canvas.panel[1] / canvas.panel[0] == pytest.approx(4 / 3, abs=0.02)


def test_a_tiny_budget_leaves_a_pixel() -> None:
    canvas = render.canvas(np.stack([GRID] * 12), 1000, 2, whole(1000, 2), "row", 0, 50)
    assert min(canvas.panel) == 1


def test_panels_leave_the_outside_of_the_box_cold() -> None:
    canvas = render.canvas(GRID[None] + 1, 100, 50, Box(25, 0, 75, 50), "row", 50, 10**6)
    assert canvas.panel == (25, 50)
    assert (canvas.levels[:, :12] == 0).all()
    assert (canvas.levels[:, 38:] == 0).all()
    assert (canvas.levels[:, 12:38] > 0).all()
