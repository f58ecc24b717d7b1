"""Bytes to RGB: orientation, modes, limits, and what is said about bytes that are no accepted image."""

import io
import struct
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageChops

from service.errors import BadImage, ServiceError, TooLarge, UnsupportedMedia
from service.imaging.decode import decode, decode_draft
from service.imaging.preprocess import preprocess
from service.types import Preprocess
from tests.mutations import Mutator

# Pillow warns of broken metadata, which the service does without
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

LIMIT = 64_000_000
FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"]


def photo(width: int = 97, height: int = 61) -> Image.Image:
    """Smooth colours, different in every corner."""
    across = np.linspace(0, 255, width)[None, :].repeat(height, 0)
    down = np.linspace(0, 255, height)[:, None].repeat(width, 1)
    return Image.fromarray(np.stack([across, down, 255 - across], axis=-1).astype(np.uint8))


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *extra: tuple[bytes, bytes]) -> bytes:
    """A PNG of raw rows (filter bytes included) for what Pillow doesn't write."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = [(b"IHDR", header), *extra, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


@pytest.mark.parametrize("kind", FORMATS)
def test_every_accepted_format(kind: str) -> None:
    rgb = decode(saved(photo(), kind), LIMIT).rgb
    assert rgb.dtype == np.uint8
    assert rgb.shape == (61, 97, 3)
    assert np.abs(rgb.astype(int) - np.asarray(photo())).mean() < 8


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_lossless_formats_come_back_exactly(kind: str) -> None:
    big = photo(1021, 1033)  # more than one stripe
    np.testing.assert_array_equal(decode(saved(big, kind), LIMIT).rgb, np.asarray(big))


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (20, 10), colour) for colour in ("red", "blue")]
    for kind in ("GIF", "WEBP", "PNG", "TIFF", "AVIF"):
        data = saved(frames[0], kind, save_all=True, append_images=frames[1:])
        assert decode(data, LIMIT).rgb[5, 5, 0] > 240, kind
        assert decode(data, LIMIT).rgb[5, 5, 2] < 15, kind


def test_first_picture_of_an_mpo() -> None:
    data = saved(photo(), "MPO", save_all=True, append_images=[Image.new("RGB", (97, 61))])
    np.testing.assert_array_equal(decode(data, LIMIT).rgb, np.asarray(Image.open(io.BytesIO(data))))


# orientation


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_orientation_of_every_format(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = {
        1: photo(),
        2: photo().transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: photo().transpose(Image.Transpose.ROTATE_180),
        4: photo().transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: photo().transpose(Image.Transpose.TRANSPOSE),
        6: photo().transpose(Image.Transpose.ROTATE_90),
        7: photo().transpose(Image.Transpose.TRANSVERSE),
        8: photo().transpose(Image.Transpose.ROTATE_270),
    }[orientation]
    rgb = decode(saved(turned, kind, exif=exif), LIMIT).rgb
    assert rgb.shape == (61, 97, 3)
    assert np.abs(rgb.astype(int) - np.asarray(photo())).mean() < 8


@pytest.mark.parametrize("aspect", ["Landscape", "Portrait"])
def test_real_photographs_of_every_orientation_are_the_same_upright(test_data: Path, aspect: str) -> None:
    pictures = [
        decode(path.read_bytes(), LIMIT).rgb
        for path in sorted(test_data.rglob(f"exif_orientation/**/{aspect}_[0-8].jpg"))
    ]
    assert len(pictures) == 9
    for picture in pictures:
        assert picture.shape == pictures[1].shape
        assert np.abs(picture.astype(int) - pictures[1]).mean() < 4


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\0"]
)
def test_corrupt_exif_is_no_orientation(exif: bytes) -> None:
    assert decode(saved(photo(), "JPEG", exif=exif), LIMIT).rgb.shape == (61, 97, 3)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_unknown_orientation_is_none(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert decode(saved(photo(), "JPEG", exif=exif), LIMIT).rgb.shape == (61, 97, 3)


# modes


@pytest.mark.parametrize(("mode", "kind"), [("L", "PNG"), ("1", "PNG"), ("P", "GIF"), ("CMYK", "TIFF")])
def test_opaque_modes_are_what_pillow_converts(mode: str, kind: str) -> None:
    data = saved(photo().convert(mode), kind)
    plain = Image.open(io.BytesIO(data)).convert("RGB")
    np.testing.assert_array_equal(decode(data, LIMIT).rgb, np.asarray(plain))


def test_cmyk_and_ycbcr_keep_their_colours() -> None:
    for mode, kind in (("CMYK", "JPEG"), ("CMYK", "TIFF"), ("YCbCr", "TIFF")):
        rgb = decode(saved(photo().convert(mode), kind), LIMIT).rgb
        assert np.abs(rgb.astype(int) - np.asarray(photo())).mean() < 3, (mode, kind)


def test_lab_becomes_srgb() -> None:
    lab = Image.new("LAB", (4, 4), (255, 128, 128))  # L* 100: white
    assert decode(saved(lab, "TIFF"), LIMIT).rgb.min() > 250


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_alpha_lies_over_white(kind: str) -> None:
    image = photo().convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    rgb = decode(saved(image, kind, **options), LIMIT).rgb.astype(float)
    values = np.asarray(image).astype(float)
    alpha = values[..., 3:] / 255
    assert np.abs(rgb - (values[..., :3] * alpha + 255 * (1 - alpha))).max() <= 1


def test_grey_with_alpha_lies_over_white() -> None:
    image = Image.merge("LA", (Image.new("L", (8, 8), 0), Image.new("L", (8, 8), 51)))
    assert set(decode(saved(image, "PNG"), LIMIT).rgb.ravel()) == {204}


def test_premultiplied_alpha_lies_over_white() -> None:
    data = saved(Image.new("RGBA", (8, 8), (128, 0, 0, 128)), "TIFF")
    unassociated, associated = (struct.pack("<HHIHH", 338, 3, 1, kind, 0) for kind in (2, 1))
    assert data.count(unassociated) == 1  # the tag ExtraSamples
    assert decode(data.replace(unassociated, associated), LIMIT).rgb[0, 0].tolist() == [255, 127, 127]


@pytest.mark.parametrize(
    ("mode", "transparency"),
    [("P", 0), ("P", b"\x00\xff"), ("L", 0), ("RGB", (0, 0, 0)), ("1", 0), ("I;16", 0)],
)
def test_transparent_colour_becomes_white(mode: str, transparency: object) -> None:
    image = Image.new(mode, (8, 8), 0)
    image.paste(1, (4, 0, 8, 8))
    rgb = decode(saved(image, "PNG", transparency=transparency), LIMIT).rgb
    assert (rgb[:, :4] == 255).all()
    assert not (rgb[:, 4:] == 255).all() or mode == "1"


def test_transparent_colour_of_16_bit_rgb() -> None:
    row = b"\0" + struct.pack(">6H", 0x1234, 0x5678, 0x9ABC, 0xFFFF, 0, 0)
    rgb = decode(png(2, 1, 16, 2, row), LIMIT).rgb
    np.testing.assert_array_equal(rgb[0], [[0x12, 0x56, 0x9A], [255, 0, 0]])
    with_transparency = png(2, 1, 16, 2, row, (b"tRNS", struct.pack(">3H", 0x1234, 0x5678, 0x9ABC)))
    assert decode(with_transparency, LIMIT).rgb.shape == (1, 2, 3)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_16_bit_grey_is_scaled_and_not_clipped(kind: str, order: str) -> None:
    values = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    image = Image.frombytes(
        "I;16" if order == "<" else "I;16B", (16, 16), values.astype(f"{order}u2").tobytes()
    )
    rgb = decode(saved(image, kind), LIMIT).rgb
    np.testing.assert_array_equal(rgb[..., 0].ravel(), np.arange(256))


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "I;16", "I", "F"])
def test_a_large_image_is_converted_as_a_small_one(mode: str) -> None:
    """Stripes must not show: the picture repeats below, so the converted one must."""
    tile = photo(1009, 400)
    if mode == "RGBA":
        tile.putalpha(tile.getchannel("R"))
    tile = tile.convert("L").convert(mode) if mode in ("I;16", "I", "F") else tile.convert(mode)
    tall = tile.crop((0, 0, 1009, 1600))
    for row in range(1, 4):
        tall.paste(tile, (0, 400 * row))
    rgb = decode(saved(tall, "TIFF"), LIMIT).rgb
    assert rgb.shape == (1600, 1009, 3)
    np.testing.assert_array_equal(rgb, np.tile(decode(saved(tile, "TIFF"), LIMIT).rgb, (4, 1, 1)))


@pytest.mark.parametrize("mode", ["I", "F"])
def test_32_bit_grey_is_stretched(mode: str) -> None:
    values = np.linspace(-1000, 70000, 256).reshape(16, 16).astype(np.int32 if mode == "I" else np.float32)
    rgb = decode(saved(Image.fromarray(values), "TIFF"), LIMIT).rgb
    assert (rgb.min(), rgb.max()) == (0, 255)
    assert (np.diff(rgb[..., 0].ravel().astype(int)) >= 0).all()


def test_float_grey_without_spread_or_without_numbers() -> None:
    assert decode(saved(Image.new("F", (4, 4), 3.5), "TIFF"), LIMIT).rgb.max() == 0
    broken = np.array([[np.nan, np.inf], [0.0, 1.0]], np.float32)
    assert decode(saved(Image.fromarray(np.full((4, 4), np.nan, np.float32)), "TIFF"), LIMIT).rgb.max() == 0
    assert decode(saved(Image.fromarray(broken), "TIFF"), LIMIT).rgb.ravel().tolist() == [0] * 9 + [255] * 3


# limits


def test_pixels_are_counted_before_they_are_decoded() -> None:
    bomb = png(50_000, 50_000, 8, 2, b"")
    with pytest.raises(TooLarge, match="50000 x 50000 = 2500000000 pixels; the limit is 64000000"):
        decode(bomb, LIMIT)


@pytest.mark.parametrize(("kind", "times"), [("WEBP", 4), ("AVIF", 3)])
def test_formats_that_take_more_memory_may_have_fewer_pixels(kind: str, times: int) -> None:
    data = saved(Image.new("RGB", (31, 17)), kind)
    assert decode(data, 31 * 17 * times).rgb.shape == (17, 31, 3)
    most = 31 * 17 * times - 1
    told = f"the limit is {most}, and 526 for {kind}, which takes {times} times .* JPEG or PNG"
    with pytest.raises(TooLarge, match=told):
        decode(data, most)


def test_the_limit_itself_is_allowed() -> None:
    data = saved(photo(), "PNG")
    assert decode(data, 97 * 61).rgb.shape == (61, 97, 3)
    with pytest.raises(TooLarge):
        decode(data, 97 * 61 - 1)


def test_webp_over_pillows_own_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(TooLarge, match=r"5917 pixels.*Send a smaller one\.$"):
        decode(saved(photo(), "WEBP"), LIMIT)


# what is no image, or none that is accepted


def test_empty() -> None:
    with pytest.raises(BadImage, match="empty"):
        decode(b"", LIMIT)


@pytest.mark.parametrize("data", [b"\0", b"hello, I am text", bytes(range(256)), b"G", b"\xff", b"\x89PNG"])
def test_no_image_at_all(data: bytes) -> None:
    with pytest.raises(BadImage, match="no image of a known format"):
        decode(data, LIMIT)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("PDF", b"%PDF-1.7\n"),
        ("SVG", b'<?xml version="1.0"?>\n<!-- drawn -->\n<svg xmlns="http://www.w3.org/2000/svg"/>'),
        ("SVG", b"\xef\xbb\xbf <svg/>"),
        ("HEIC", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"),
        ("HEIC", b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic"),
        ("JPEG XL", b"\xff\x0a\0\0"),
        ("EPS", b"%!PS-Adobe-3.0 EPSF-3.0\n"),
        ("PSD", b"8BPS\0\x01"),
        ("DDS", b"DDS |\0\0\0"),
    ],
)
def test_known_formats_that_are_not_accepted(name: str, data: bytes) -> None:
    with pytest.raises(UnsupportedMedia, match=f"{name} files are not accepted. Send JPEG, PNG"):
        decode(data, LIMIT)


@pytest.mark.parametrize("kind", ["ICO", "JPEG2000", "PPM", "TGA", "PCX", "SGI", "QOI"])
def test_formats_that_pillow_knows_and_the_service_refuses(kind: str) -> None:
    with pytest.raises(UnsupportedMedia, match=f"{kind} files are not accepted"):
        decode(saved(photo(), kind), LIMIT)


@pytest.mark.parametrize("kind", FORMATS)
def test_every_truncation_is_a_client_error(kind: str) -> None:
    data = saved(photo(), kind)
    details = []
    for length in range(1, len(data), max(1, len(data) // 200)):
        try:
            decode(data[:length], LIMIT)
        except BadImage as error:
            details.append(error.detail)
    assert details
    assert all(detail.endswith(".") and "0x" not in detail for detail in details)


def test_truncated_photographs_say_so() -> None:
    for kind in ("JPEG", "PNG"):
        data = saved(photo(), kind)
        with pytest.raises(BadImage, match=f"The {kind} image is truncated or corrupt: .*Send the complete"):
            decode(data[: len(data) // 2], LIMIT)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_odd_images_end_in_an_array_or_a_client_error(test_data: Path) -> None:
    seen: Counter[int] = Counter()
    for path in sorted((test_data / "odd").rglob("*")):
        if not path.is_file():
            continue
        try:
            assert decode(path.read_bytes(), LIMIT).rgb.ndim == 3
            seen[200] += 1
        except ServiceError as error:
            seen[error.status] += 1
    assert set(seen) == {200, 400, 413, 415}
    assert seen[200] > 500


def test_mutated_images_end_in_an_array_or_a_client_error() -> None:
    mutator = Mutator([saved(photo(), kind) for kind in FORMATS], seed=2)
    statuses = set()
    for _ in range(700):
        try:
            decode(mutator.mutated(), 1_000_000)
        except ServiceError as error:
            statuses.add(error.status)
    assert statuses <= {400, 413, 415}


# drafts


def test_a_draft_is_smaller_and_keeps_the_originals_size() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = saved(photo(1200, 1001), "JPEG", exif=exif)
    picture = decode_draft(data, LIMIT, at_least=100)
    assert picture.rgb.shape == (600, 501, 3)
    assert (picture.width, picture.height) == (1001, 1200)
    half = Image.fromarray(decode(data, LIMIT).rgb).resize((501, 600), Image.Resampling.BOX)
    assert ImageChops.difference(Image.fromarray(picture.rgb), half).getextrema()[0][1] < 12


@pytest.mark.parametrize(("kind", "at_least"), [("JPEG", 224), ("PNG", 224)])
def test_no_draft_of_a_small_image(kind: str, at_least: int) -> None:
    data = saved(photo(1200, 1001), kind)
    picture = decode_draft(data, LIMIT, at_least)
    np.testing.assert_array_equal(picture.rgb, decode(data, LIMIT).rgb)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "BMP"])
@pytest.mark.parametrize("size", [(1201, 1003), (811, 1499)])
def test_a_draft_of_another_format_is_as_good_for_the_model(kind: str, size: tuple[int, int]) -> None:
    data = saved(photo(*size), kind)
    exact, draft = decode(data, LIMIT), decode_draft(data, LIMIT, 64)
    assert max(draft.rgb.shape) < max(exact.rgb.shape) / 2
    assert (draft.width, draft.height) == (exact.width, exact.height) == size
    for resize in ((64, 64), 64):
        how = Preprocess((64, 64), resize, "bicubic", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
        ours = preprocess(draft.rgb, how, (draft.height, draft.width))
        assert np.abs(ours - preprocess(exact.rgb, how)).max() * 255 <= 3


def test_a_jpeg_of_more_scans_than_any_real_one_is_refused() -> None:
    data = saved(photo(40, 30), "JPEG")
    scan = data[data.index(b"\xff\xda") : -2]
    with pytest.raises(BadImage, match=r"has 101 scans; 100 are allowed"):
        decode(data[:-2] + scan * 100 + data[-2:], LIMIT)
