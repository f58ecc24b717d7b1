"""RGB to pixels against the plain formula, torchvision's roundings and transformers; and the way back."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from service.imaging.preprocess import preprocess, seen_box
from service.types import Box, Preprocess
from tests.pictures import decoded, upright

HALF = (0.5, 0.5, 0.5)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SEED = Preprocess((224, 224), (224, 224), "bilinear", HALF, HALF)
SIZES = [(640, 480), (299, 299), (97, 211), (1, 1), (1, 500), (224, 224), (1009, 31)]


def picture(width: int, height: int) -> np.ndarray:
    return np.random.default_rng(width * height).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_squash_is_the_seeds_formula_to_the_bit(width: int, height: int) -> None:
    image = picture(width, height)
    small = Image.fromarray(image).resize((224, 224), Image.Resampling.BILINEAR)
    plain = (np.asarray(small).astype(np.float32) / 255 - 0.5) / 0.5
    pixels = preprocess(upright(image), SEED)
    np.testing.assert_array_equal(pixels, plain.transpose(2, 0, 1))
    assert pixels.dtype == np.float32
    assert pixels.flags.c_contiguous


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize(("width", "height"), [(640, 480), (97, 211), (331, 256), (500, 499)])
def test_shorter_side_and_crop_as_torchvision_does(width: int, height: int, interpolation: str) -> None:
    how = Preprocess((224, 224), 248, interpolation, MEAN, STD)
    image = picture(width, height)
    short, long = sorted((width, height))
    longer = int(248 * long / short)
    size = (longer, 248) if width > height else (248, longer)
    resized = Image.fromarray(image).resize(size, Image.Resampling[interpolation.upper()])
    top, left = round((size[1] - 224) / 2), round((size[0] - 224) / 2)
    crop = np.asarray(resized.crop((left, top, left + 224, top + 224))).astype(np.float32)
    plain = (crop / 255 - np.float32(MEAN)) / np.float32(STD)
    np.testing.assert_array_equal(preprocess(upright(image), how), plain.transpose(2, 0, 1))


def test_a_crop_larger_than_the_image_is_padded_with_black() -> None:
    how = Preprocess((10, 12), (5, 20), "bilinear", HALF, HALF)
    pixels = preprocess(upright(np.full((50, 80, 3), 255, np.uint8)), how)
    np.testing.assert_array_equal(pixels[:, 2:7], 1)
    assert (pixels[:, :2] == -1).all()
    assert (pixels[:, 7:] == -1).all()
    assert seen_box(80, 50, how) == Box(16, -20, 64, 80)


def test_rectangular_input() -> None:
    how = Preprocess((160, 320), (160, 320), "bicubic", MEAN, STD)
    assert preprocess(upright(picture(97, 211)), how).shape == (3, 160, 320)


@pytest.mark.parametrize(("width", "height"), [(100_001, 3), (3, 100_001)])
def test_a_very_long_image_is_not_blown_up(width: int, height: int) -> None:
    how = Preprocess((224, 224), 224, "bilinear", HALF, HALF)
    image = picture(width, height)
    centre = preprocess(upright(image), how)[:, 112, 112] * 127.5 + 127.5
    assert centre == pytest.approx(image[height // 2, width // 2].astype(float), abs=3)


def test_transformers_processor_agrees() -> None:
    processors = pytest.importorskip("transformers.models.vit.image_processing_pil_vit")
    processor = processors.ViTImageProcessorPil(image_mean=list(HALF), image_std=list(HALF))
    image = picture(640, 480)
    theirs = processor(Image.fromarray(image), return_tensors="np")["pixel_values"][0]
    assert np.abs(preprocess(upright(image), SEED) - theirs).max() < 1e-5


@pytest.mark.parametrize("how", [SEED, Preprocess((224, 224), 248, "bicubic", MEAN, STD)])
def test_a_draft_gives_nearly_the_same_pixels(
    test_data: Path, how: Preprocess, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = (test_data / "photos/misc/imageio_rommel.jpg").read_bytes()
    draft, whole = decoded(data, at_least=248), decoded(data)
    assert max(draft.image.size) < max(whole.image.size) == whole.height
    pixels = [preprocess(draft, how), preprocess(whole, how)]
    monkeypatch.setattr("service.imaging.picture.MARGIN", 1000)
    exact = preprocess(whole, how)
    for reduced in pixels:
        difference = np.abs(reduced - exact) * min(how.std) * 255
        assert 0 < difference.mean() < 0.3
        assert difference.max() < 4


# the way back


def test_squash_sees_everything() -> None:
    assert seen_box(97, 211, SEED) == Box(0, 0, 97, 211)


def test_a_centre_crop_sees_a_centred_square() -> None:
    how = Preprocess((224, 224), 256, "bilinear", HALF, HALF)
    box = seen_box(1024, 512, how)
    assert box == Box(288, 32, 736, 480)


def test_the_box_shows_what_the_pixels_show() -> None:
    how = Preprocess((64, 64), 96, "bilinear", HALF, HALF)
    image = np.zeros((300, 400, 3), np.uint8)
    box = seen_box(400, 300, how)
    image[round(box.top) : round(box.bottom), round(box.left) : round(box.right)] = 255
    assert (preprocess(upright(image), how)[:, 1:-1, 1:-1] == 1).all()
