"""Bytes to RGB: orientation, modes, limits, and what is said about bytes that are no accepted image."""

import io
import struct
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageChops
from PIL.PngImagePlugin import PngInfo

from service.errors import BadImage, ServiceError, TooLarge, UnsupportedMedia
from service.imaging import render
from service.imaging.decode import open_image
from service.imaging.picture import Picture
from service.imaging.preprocess import preprocess
from service.types import Preprocess
from tests.mutations import Mutator
from tests.pictures import LIMIT, decoded, rgb_of

# Pillow warns of broken metadata, which the service does without
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

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


def looked_at(data: bytes, limit: int = LIMIT) -> None:
    """All that is ever done to a stranger's image."""
    picture = decoded(data, limit)
    small, _ = picture.reduced(64)
    assert small.mode in ("L", "RGB")
    assert picture.rows(slice(None)).shape == (picture.height, picture.width, 3)


@pytest.mark.parametrize("kind", FORMATS)
def test_every_accepted_format(kind: str) -> None:
    rgb = rgb_of(saved(photo(), kind))
    assert rgb.dtype == np.uint8
    assert rgb.shape == (61, 97, 3)
    assert np.abs(rgb.astype(int) - np.asarray(photo())).mean() < 8


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_lossless_formats_come_back_exactly(kind: str) -> None:
    big = photo(1021, 1033)  # more than one strip
    np.testing.assert_array_equal(rgb_of(saved(big, kind)), np.asarray(big))


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (20, 10), colour) for colour in ("red", "blue")]
    for kind in ("GIF", "WEBP", "PNG", "TIFF", "AVIF"):
        data = saved(frames[0], kind, save_all=True, append_images=frames[1:])
        assert rgb_of(data)[5, 5, 0] > 240, kind
        assert rgb_of(data)[5, 5, 2] < 15, kind


def test_first_picture_of_an_mpo() -> None:
    data = saved(photo(), "MPO", save_all=True, append_images=[Image.new("RGB", (97, 61))])
    np.testing.assert_array_equal(rgb_of(data), np.asarray(Image.open(io.BytesIO(data))))


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
    picture = decoded(saved(turned, kind, exif=exif))
    assert (picture.width, picture.height) == (97, 61)
    rgb = picture.rows(slice(None))
    assert np.abs(rgb.astype(int) - np.asarray(photo())).mean() < 8
    parts = [picture.rows(slice(top, top + 13)) for top in range(0, 61, 13)]
    np.testing.assert_array_equal(np.concatenate(parts), rgb)
    small, box = picture.reduced(224)
    np.testing.assert_array_equal(np.asarray(small), rgb)
    assert box == (0, 0, 97, 61)


@pytest.mark.parametrize("aspect", ["Landscape", "Portrait"])
def test_real_photographs_of_every_orientation_are_the_same_upright(test_data: Path, aspect: str) -> None:
    pictures = [
        rgb_of(path.read_bytes())
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
    assert rgb_of(saved(photo(), "JPEG", exif=exif)).shape == (61, 97, 3)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_unknown_orientation_is_none(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert rgb_of(saved(photo(), "JPEG", exif=exif)).shape == (61, 97, 3)


# modes


@pytest.mark.parametrize(("mode", "kind"), [("L", "PNG"), ("1", "PNG"), ("P", "GIF"), ("CMYK", "TIFF")])
def test_opaque_modes_are_what_pillow_converts(mode: str, kind: str) -> None:
    data = saved(photo().convert(mode), kind)
    plain = Image.open(io.BytesIO(data)).convert("RGB")
    np.testing.assert_array_equal(rgb_of(data), np.asarray(plain))


def test_cmyk_and_ycbcr_keep_their_colours() -> None:
    for mode, kind in (("CMYK", "JPEG"), ("CMYK", "TIFF"), ("YCbCr", "TIFF")):
        rgb = rgb_of(saved(photo().convert(mode), kind))
        assert np.abs(rgb.astype(int) - np.asarray(photo())).mean() < 3, (mode, kind)


def test_lab_becomes_srgb() -> None:
    lab = Image.new("LAB", (4, 4), (255, 128, 128))  # L* 100: white
    assert rgb_of(saved(lab, "TIFF")).min() > 250


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_alpha_lies_over_white(kind: str) -> None:
    image = photo().convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    rgb = rgb_of(saved(image, kind, **options)).astype(float)
    values = np.asarray(image).astype(float)
    alpha = values[..., 3:] / 255
    assert np.abs(rgb - (values[..., :3] * alpha + 255 * (1 - alpha))).max() <= 1


def test_grey_with_alpha_lies_over_white() -> None:
    image = Image.merge("LA", (Image.new("L", (8, 8), 0), Image.new("L", (8, 8), 51)))
    assert set(rgb_of(saved(image, "PNG")).ravel()) == {204}


def test_premultiplied_alpha_lies_over_white() -> None:
    data = saved(Image.new("RGBA", (8, 8), (128, 0, 0, 128)), "TIFF")
    unassociated, associated = (struct.pack("<HHIHH", 338, 3, 1, kind, 0) for kind in (2, 1))
    assert data.count(unassociated) == 1  # the tag ExtraSamples
    assert rgb_of(data.replace(unassociated, associated))[0, 0].tolist() == [255, 127, 127]


@pytest.mark.parametrize(
    ("mode", "transparency"),
    [("P", 0), ("P", b"\x00\xff"), ("L", 0), ("RGB", (0, 0, 0)), ("1", 0), ("I;16", 0)],
)
def test_transparent_colour_becomes_white(mode: str, transparency: object) -> None:
    image = Image.new(mode, (8, 8), 0)
    image.paste(1, (4, 0, 8, 8))
    rgb = rgb_of(saved(image, "PNG", transparency=transparency))
    assert (rgb[:, :4] == 255).all()
    assert not (rgb[:, 4:] == 255).all() or mode == "1"


def test_transparent_colour_of_16_bit_rgb() -> None:
    row = b"\0" + struct.pack(">6H", 0x1234, 0x5678, 0x9ABC, 0xFFFF, 0, 0)
    rgb = rgb_of(png(2, 1, 16, 2, row))
    np.testing.assert_array_equal(rgb[0], [[0x12, 0x56, 0x9A], [255, 0, 0]])
    with_transparency = png(2, 1, 16, 2, row, (b"tRNS", struct.pack(">3H", 0x1234, 0x5678, 0x9ABC)))
    assert rgb_of(with_transparency).shape == (1, 2, 3)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_16_bit_grey_is_scaled_and_not_clipped(kind: str, order: str) -> None:
    values = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    image = Image.frombytes(
        "I;16" if order == "<" else "I;16B", (16, 16), values.astype(f"{order}u2").tobytes()
    )
    rgb = rgb_of(saved(image, kind))
    np.testing.assert_array_equal(rgb[..., 0].ravel(), np.arange(256))


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "I;16", "I", "F"])
def test_a_large_image_is_converted_as_a_small_one(mode: str) -> None:
    """Strips must not show: the picture repeats below, so the converted one must."""
    tile = photo(1009, 400)
    if mode == "RGBA":
        tile.putalpha(tile.getchannel("R"))
    tile = tile.convert("L").convert(mode) if mode in ("I;16", "I", "F") else tile.convert(mode)
    tall = tile.crop((0, 0, 1009, 1600))
    for row in range(1, 4):
        tall.paste(tile, (0, 400 * row))
    picture = decoded(saved(tall, "TIFF"))
    expected = np.tile(rgb_of(saved(tile, "TIFF")), (4, 1, 1))
    rows = [picture.rows(strip) for strip in render.strips((1600, 1009))]
    np.testing.assert_array_equal(np.concatenate(rows), expected)
    whole, _ = picture.reduced(1009)
    np.testing.assert_array_equal(np.asarray(whole.convert("RGB")), expected)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_32_bit_grey_is_stretched(mode: str) -> None:
    values = np.linspace(-1000, 70000, 256).reshape(16, 16).astype(np.int32 if mode == "I" else np.float32)
    rgb = rgb_of(saved(Image.fromarray(values), "TIFF"))
    assert (rgb.min(), rgb.max()) == (0, 255)
    assert (np.diff(rgb[..., 0].ravel().astype(int)) >= 0).all()


def test_float_grey_without_spread_or_without_numbers() -> None:
    assert rgb_of(saved(Image.new("F", (4, 4), 3.5), "TIFF")).max() == 0
    broken = np.array([[np.nan, np.inf], [0.0, 1.0]], np.float32)
    assert rgb_of(saved(Image.fromarray(np.full((4, 4), np.nan, np.float32)), "TIFF")).max() == 0
    assert rgb_of(saved(Image.fromarray(broken), "TIFF")).ravel().tolist() == [0] * 9 + [255] * 3


# limits


def test_pixels_are_counted_before_they_are_decoded() -> None:
    bomb = png(50_000, 50_000, 8, 2, b"")
    with pytest.raises(TooLarge, match="50000 x 50000 = 2500000000 pixels; the limit is 64000000"):
        open_image(bomb, LIMIT)


@pytest.mark.parametrize(("kind", "times"), [("WEBP", 4), ("AVIF", 3), ("progressive JPEG", 2)])
def test_formats_that_take_more_memory_may_have_fewer_pixels(kind: str, times: int) -> None:
    *progressive, name = kind.split()
    data = saved(Image.new("RGB", (31, 17)), name, progressive=bool(progressive))
    assert rgb_of(data, 31 * 17 * times).shape == (17, 31, 3)
    most = 31 * 17 * times - 1
    told = (
        f"the limit is {most}, and {most // times} for {kind}, which takes {times} times .* plain JPEG or PNG"
    )
    with pytest.raises(TooLarge, match=told):
        open_image(data, most)


def test_a_png_whose_text_says_progressive_is_no_jpeg() -> None:
    text = PngInfo()
    text.add_text("progressive", "1")
    assert rgb_of(saved(photo(), "PNG", pnginfo=text), 97 * 61).shape == (61, 97, 3)


def test_the_limit_itself_is_allowed() -> None:
    data = saved(photo(), "PNG")
    assert rgb_of(data, 97 * 61).shape == (61, 97, 3)
    with pytest.raises(TooLarge):
        open_image(data, 97 * 61 - 1)


def test_webp_over_pillows_own_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(TooLarge, match=r"5917 pixels.*Send a smaller one\.$"):
        decoded(saved(photo(), "WEBP"))


# what is no image, or none that is accepted


def test_empty() -> None:
    with pytest.raises(BadImage, match="empty"):
        open_image(b"", LIMIT)


@pytest.mark.parametrize("data", [b"\0", b"hello, I am text", bytes(range(256)), b"G", b"\xff", b"\x89PNG"])
def test_no_image_at_all(data: bytes) -> None:
    with pytest.raises(BadImage, match="no image of a known format"):
        open_image(data, LIMIT)


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
        open_image(data, LIMIT)


@pytest.mark.parametrize("kind", ["ICO", "JPEG2000", "PPM", "TGA", "PCX", "SGI", "QOI"])
def test_formats_that_pillow_knows_and_the_service_refuses(kind: str) -> None:
    with pytest.raises(UnsupportedMedia, match=f"{kind} files are not accepted"):
        open_image(saved(photo(), kind), LIMIT)


@pytest.mark.parametrize("kind", FORMATS)
def test_every_truncation_is_a_client_error(kind: str) -> None:
    data = saved(photo(), kind)
    details = []
    for length in range(1, len(data), max(1, len(data) // 200)):
        try:
            looked_at(data[:length])
        except BadImage as error:
            details.append(error.detail)
    assert details
    assert all(detail.endswith(".") and "0x" not in detail for detail in details)


def test_truncated_photographs_say_so() -> None:
    for kind in ("JPEG", "PNG"):
        data = saved(photo(), kind)
        with pytest.raises(BadImage, match=f"The {kind} image is truncated or corrupt: .*Send the complete"):
            decoded(data[: len(data) // 2])


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_odd_images_end_in_an_array_or_a_client_error(test_data: Path) -> None:
    seen: Counter[int] = Counter()
    for path in sorted((test_data / "odd").rglob("*")):
        if not path.is_file():
            continue
        try:
            looked_at(path.read_bytes())
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
            looked_at(mutator.mutated(), 1_000_000)
        except ServiceError as error:
            statuses.add(error.status)
    assert statuses <= {400, 413, 415}


# drafts


def test_a_draft_is_smaller_and_keeps_the_originals_size() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = saved(photo(1200, 1001), "JPEG", exif=exif)
    picture = decoded(data, at_least=100)
    assert (picture.width, picture.height) == (1001, 1200)
    draft, box = picture.reduced(100)
    assert draft.size == (501, 600)
    assert box == (0.5, 0, 501, 600)  # the file's last row, which is half of one, is on the left
    half = Image.fromarray(rgb_of(data)).resize((501, 600), Image.Resampling.BOX)
    assert ImageChops.difference(draft, half).getextrema()[0][1] < 12


@pytest.mark.parametrize(("kind", "at_least"), [("JPEG", 224), ("PNG", 224)])
def test_no_draft_of_a_small_image(kind: str, at_least: int) -> None:
    data = saved(photo(1200, 1001), kind)
    small, box = decoded(data, at_least=at_least).reduced(at_least)
    np.testing.assert_array_equal(np.asarray(small), rgb_of(data))
    assert box == (0, 0, 1200, 1001)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "BMP"])
@pytest.mark.parametrize("size", [(1201, 1003), (811, 1499)])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_what_is_reduced_is_as_good_for_the_model(
    kind: str, size: tuple[int, int], orientation: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = decoded(saved(photo(*size), kind)).image
    width, height = size if orientation < 5 else size[::-1]
    picture = Picture(kind, image, orientation, width, height)
    assert max(picture.reduced(64)[0].size) < max(size) / 2
    for resize in ((64, 64), 64):
        how = Preprocess((64, 64), resize, "bicubic", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
        pixels = preprocess(picture, how)
        with monkeypatch.context() as patch:
            patch.setattr("service.imaging.picture.MARGIN", 1000)
            assert picture.reduced(64)[0].size == (width, height)
            assert np.abs(pixels - preprocess(picture, how)).max() * 255 <= 3


def test_a_jpeg_of_more_scans_than_any_real_one_is_refused() -> None:
    data = saved(photo(40, 30), "JPEG")
    scan = data[data.index(b"\xff\xda") : -2]
    with pytest.raises(BadImage, match=r"has 101 scans; 100 are allowed"):
        open_image(data[:-2] + scan * 100 + data[-2:], LIMIT)
