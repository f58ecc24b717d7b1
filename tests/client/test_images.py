import io
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from service.client.images import image_bytes
from service.errors import BadImage

RGB = np.random.default_rng(0).integers(0, 256, (7, 11, 3), np.uint8)


def decoded(image: object) -> np.ndarray:
    return np.asarray(PIL.Image.open(io.BytesIO(image_bytes(image))))


@pytest.mark.parametrize("kind", [str, Path])
def test_a_path_is_sent_as_the_file_is(tmp_path: Path, kind: type) -> None:
    (tmp_path / "a.jpg").write_bytes(b"any bytes")
    assert image_bytes(kind(tmp_path / "a.jpg")) == b"any bytes"


def test_bytes_are_sent_as_they_are() -> None:
    assert image_bytes(b"any bytes") == b"any bytes"


@pytest.mark.parametrize("array", [RGB, RGB[:, :, 0], RGB[::-1, ::2]])
def test_arrays_arrive_without_loss(array: np.ndarray) -> None:
    np.testing.assert_array_equal(decoded(array), array)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "1", "LA"])
def test_pillow_images_arrive_without_loss(mode: str) -> None:
    image = PIL.Image.fromarray(RGB).convert(mode)
    sent = PIL.Image.open(io.BytesIO(image_bytes(image)))
    assert sent.mode == mode
    np.testing.assert_array_equal(np.asarray(sent.convert("RGB")), np.asarray(image.convert("RGB")))


def test_modes_that_png_lacks_become_rgb() -> None:
    assert decoded(PIL.Image.new("CMYK", (3, 5))).shape == (5, 3, 3)


def test_a_pillow_image_is_sent_as_its_file_is_shown() -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    file = io.BytesIO()
    PIL.Image.new("RGB", (11, 7)).save(file, "JPEG", exif=exif)
    assert decoded(PIL.Image.open(file)).shape == (11, 7, 3)


@pytest.mark.parametrize("array", [RGB.astype(np.float32), RGB[None], RGB[:, :, :2], RGB[:0]])
def test_other_arrays_are_refused_with_what_they_are(array: np.ndarray) -> None:
    with pytest.raises(BadImage, match=f"this one is {array.dtype} of shape"):
        image_bytes(array)


def test_other_types_are_refused() -> None:
    with pytest.raises(TypeError, match="not int"):
        image_bytes(3)  # type: ignore[arg-type]
