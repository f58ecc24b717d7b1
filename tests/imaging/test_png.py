"""Every PNG decodes, in Pillow and in OpenCV, to the pixels that went in."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from service.imaging import png


def pictures() -> list[np.ndarray]:
    random = np.random.default_rng(4)
    shapes = [(1, 1), (1, 9), (9, 1), (1, 1, 3), (7, 1, 3), (1, 7, 3), (61, 97), (61, 97, 3), (480, 640, 3)]
    noise = [random.integers(0, 256, shape, np.uint8) for shape in shapes]
    smooth = cv2.resize(random.integers(0, 256, (14, 14), np.uint8), (640, 480))
    jet = cv2.applyColorMap(smooth, cv2.COLORMAP_JET)
    constant = np.full((300, 400, 3), 7, np.uint8)
    return [*noise, smooth, jet, constant, jet[:, ::-1], jet[::2, 100:200]]


@pytest.mark.parametrize("pixels", pictures(), ids=lambda pixels: "x".join(map(str, pixels.shape)))
def test_round_trip(pixels: np.ndarray) -> None:
    data = png.encode([pixels])
    image = Image.open(io.BytesIO(data))
    assert image.format == "PNG"
    assert image.mode == ("L" if pixels.ndim == 2 else "RGB")
    np.testing.assert_array_equal(np.asarray(image), pixels)
    opened = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(opened if pixels.ndim == 2 else opened[..., ::-1], pixels)


def test_a_palette_decodes_to_its_colours() -> None:
    levels = pictures()[9]
    palette = np.random.default_rng(5).integers(0, 256, (256, 3), np.uint8)
    data = png.encode([levels], palette)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")), palette[levels])
    opened = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(opened[..., ::-1], palette[levels])
    assert len(data) < len(png.encode([palette[levels]])) / 2


@pytest.mark.parametrize("shape", [(61, 97), (61, 97, 3)])
@pytest.mark.parametrize("rows", [1, 7, 60, 61])
def test_strips_make_the_same_picture(shape: tuple[int, ...], rows: int) -> None:
    pixels = np.random.default_rng(6).integers(0, 256, shape, np.uint8)
    data = png.encode(pixels[top : top + rows] for top in range(0, 61, rows))
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), pixels)
    opened = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(opened if pixels.ndim == 2 else opened[..., ::-1], pixels)


def test_a_smooth_map_takes_little() -> None:
    smooth = pictures()[9]
    assert len(png.encode([smooth])) < len(cv2.imencode(".png", smooth)[1])
