"""Small files and forms that ask for far more than they hold: memory, time, or patience."""

import itertools
import struct
import threading
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.api.watched_server import (
    ROUTES,
    Answer,
    WatchedServer,
    chunked,
    request,
    saved,
    watched_server,
)

SIDE = 50_000
"""Pixels a side, in headers that lie."""
FRAMES = 5_000
GIGABYTE = 2**30


pytestmark = pytest.mark.usefixtures("unharmed")


# what is sent


def picture(width: int = 64, height: int = 48) -> Image.Image:
    return Image.fromarray(np.random.default_rng(3).integers(0, 256, (height, width, 3), np.uint8))


def zeros(size: int) -> bytes:
    """A zlib stream of so many zeros, about a thousandth of that; its checksum is wrong."""
    piece = 2**24
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(bytes(piece)) + packer.flush(zlib.Z_FULL_FLUSH)
    return b"\x78\xda" + block * (size // piece) + packer.flush(zlib.Z_FINISH) + bytes(4)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, data: bytes, *extra: bytes, depth: int = 8, colour: int = 2) -> bytes:
    """A PNG whose one IDAT holds `data`."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def small_png(*extra: bytes) -> bytes:
    """A good little PNG with more chunks before its pixels."""
    return png(4, 4, zlib.compress(bytes(4 * 13)), *extra)


def huge_jpeg() -> bytes:
    data = bytearray(saved(picture(), "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", SIDE, SIDE)
    return bytes(data)


def huge_gif() -> bytes:
    data = bytearray(saved(picture().convert("P"), "GIF"))
    data[6:10] = struct.pack("<HH", SIDE, SIDE)
    return bytes(data)


def huge_bmp() -> bytes:
    data = bytearray(saved(picture(), "BMP"))
    data[18:26] = struct.pack("<ii", SIDE, SIDE)
    return bytes(data)


def huge_webp() -> bytes:
    """The most that the format can say: 16384 x 16384."""
    data = bytearray(saved(picture(), "WEBP", lossless=True))
    start = data.index(b"VP8L") + 9
    data[start : start + 4] = b"\xff\xff\xff\x0f"
    return bytes(data)


def huge_avif() -> bytes:
    data = bytearray(saved(picture(), "AVIF"))
    start = data.index(b"ispe") + 8
    data[start : start + 8] = struct.pack(">II", SIDE, SIDE)
    return bytes(data)


def tiff(tags: dict[int, tuple[int, int, int]], after: bytes = b"", following: int = 0) -> bytes:
    """A TIFF of one directory: tag to (type, count, value); then `after`, at the offset `tiff_end(tags)`."""
    entries = b"".join(struct.pack("<HHII", tag, *tags[tag]) for tag in sorted(tags))
    directory = struct.pack("<H", len(tags)) + entries + struct.pack("<I", following)
    return b"II*\0" + struct.pack("<I", 8) + directory + after


def tiff_end(tags: int) -> int:
    """Where the directory of a `tiff` with so many tags ends."""
    return 8 + 2 + 12 * tags + 4


def tiff_tags(width: int, height: int, compression: int, length: int) -> dict[int, tuple[int, int, int]]:
    """Those of a grey picture in one strip right behind the directory."""
    return {
        256: (4, 1, width),
        257: (4, 1, height),
        258: (3, 1, 8),
        259: (3, 1, compression),
        262: (3, 1, 1),
        273: (4, 1, tiff_end(9)),
        277: (3, 1, 1),
        278: (4, 1, height),
        279: (4, 1, length),
    }


def deflated_tiff(width: int, height: int, size: int) -> bytes:
    """A TIFF with so many zeros in its strip, whatever its size."""
    strip = zeros(size)
    return tiff(tiff_tags(width, height, 8, len(strip)), strip)


def looping_tiff(pages: int) -> bytes:
    """So many directories in a chain whose last one leads back to the first."""
    starts = [8, *range(100_000, 100_000 + 200 * (pages - 1), 200)]
    data = bytearray(starts[-1] + 200)
    for start, following in zip(starts, [*starts[1:], 8], strict=True):
        page = tiff(tiff_tags(2, 2, 1, 4), bytes(4), following)
        data[start : start + len(page) - 8] = page[8:]
    data[:8] = b"II*\0" + struct.pack("<I", 8)
    return bytes(data)


def animation(kind: str, count: int = FRAMES) -> bytes:
    frames = [Image.new("RGB", (8, 8), (n % 256, n // 256, 0)) for n in range(count)]
    return saved(frames[0], kind, save_all=True, append_images=frames[1:])


def scans(width: int, height: int, count: int) -> bytes:
    """A progressive JPEG: scans without end, of a few bytes each, and every one visits every block."""
    blocks = (width // 8) * (height // 8)
    table = b"\xff\xdb\0\x43\0" + b"\1" * 64
    frame = b"\xff\xc2" + struct.pack(">HBHHB", 11, 8, height, width, 1) + b"\1\x11\0"
    codes = b"\xff\xc4" + struct.pack(">H", 20) + b"\x10" + b"\1" + bytes(15) + b"\xe0"  # 0: a run of 2**14
    runs = -(-blocks // 2**15) * 2
    bits = "0" + "1" * 14
    coded = (bits * runs).ljust(-(-15 * runs // 8) * 8, "1")
    body = int(coded, 2).to_bytes(len(coded) // 8, "big").replace(b"\xff", b"\xff\0")
    scan = b"\xff\xda" + struct.pack(">H", 8) + b"\1\1\0" + b"\1\x3f\0" + body
    return b"\xff\xd8" + table + frame + codes + scan * count + b"\xff\xd9"


def form(*parts: bytes, boundary: bytes = b"edge") -> bytes:
    return (
        b"".join(b"--" + boundary + b"\r\n" + part + b"\r\n" for part in parts) + b"--" + boundary + b"--\r\n"
    )


def field(name: str, body: bytes, filename: str | None = "a.png", *headers: bytes) -> bytes:
    disposition = f'Content-Disposition: form-data; name="{name}"'
    disposition += "" if filename is None else f'; filename="{filename}"'
    return b"\r\n".join([disposition.encode(), *headers, b"", body])


def nested(depth: int) -> bytes:
    """A form in a form in a form."""
    inner = small_png()
    for level in range(depth):
        edge = b"edge%d" % level
        kind = b"Content-Type: multipart/mixed; boundary=" + edge
        inner = field("image", form(inner, boundary=edge), "a.png", kind)
    return form(inner)


LARGE = 19 * 2**20
"""Just below the largest body."""

IMAGES: dict[str, tuple[Callable[[], bytes], set[int]]] = {
    "png header": (lambda: png(SIDE, SIDE, zeros(4 * GIGABYTE)), {413}),
    "png header, a small part missing": (lambda: png(8000, 8000, zeros(150_000_000)), {400}),
    "png of 2**31 x 2**31": (lambda: png(2**31 - 1, 2**31 - 1, zeros(GIGABYTE)), {400, 413}),
    "png of nothing": (lambda: png(0, 0, zeros(GIGABYTE)), {400}),
    "png, far more pixels than it says": (lambda: png(4, 4, zeros(4 * GIGABYTE)), {200, 400}),
    "png, one row": (lambda: png(64_000_000, 1, zeros(192_000_000)), {413}),
    "png of empty IDATs": (lambda: png(4, 4, b"", *[chunk(b"IDAT", b"")] * 200_000), {400}),
    "png of a million chunks": (lambda: small_png(*[chunk(b"tIME", bytes(7))] * 900_000), {200, 400}),
    "jpeg header": (huge_jpeg, {413}),
    "gif header": (huge_gif, {413}),
    "bmp header": (huge_bmp, {413}),
    "webp header": (huge_webp, {413}),
    "avif header": (huge_avif, {400, 413}),
    "tiff header": (lambda: tiff(tiff_tags(SIDE, SIDE, 1, 4), bytes(4)), {413}),
    "tiff, far more pixels than it says": (lambda: deflated_tiff(100, 100, 4 * GIGABYTE), {200, 400}),
    "tiff, far fewer pixels than it says": (lambda: tiff(tiff_tags(8000, 8000, 1, 4), bytes(4)), {200, 400}),
    "tiff, deflated header": (lambda: deflated_tiff(SIDE, SIDE, 4 * GIGABYTE), {413}),
    "tiff, counts": (
        lambda: tiff({**tiff_tags(9, 9, 1, 81), 273: (4, 2**32 - 1, 8), 279: (4, 2**31, 8)}, bytes(81)),
        {200, 400},
    ),
    "tiff, directories in a loop": (lambda: looping_tiff(1), {200, 400}),
    "tiff, 5,000 directories in a loop": (lambda: looping_tiff(FRAMES), {200, 400}),
    "tiff, pages": (lambda: animation("TIFF", 1000), {200}),
    "zTXt": (lambda: small_png(chunk(b"zTXt", b"a\0\0" + zeros(4 * GIGABYTE))), {200, 400}),
    "iTXt": (lambda: small_png(chunk(b"iTXt", b"a\0\1\0\0\0" + zeros(4 * GIGABYTE))), {200, 400}),
    "iCCP": (lambda: small_png(chunk(b"iCCP", b"a\0\0" + zeros(4 * GIGABYTE))), {200, 400}),
    "many zTXt": (lambda: small_png(*[chunk(b"zTXt", b"a\0\0" + zeros(2**24))] * 1000), {200, 400}),
    "gif frames": (lambda: animation("GIF"), {200}),
    "webp frames": (lambda: animation("WEBP"), {200}),
    "png frames": (lambda: animation("PNG"), {200}),
    "jpeg comments": (lambda: b"\xff\xd8" + b"\xff\xfe\0\2" * 2_000_000, {400}),
    "jpeg profiles": (
        lambda: b"\xff\xd8" + (b"\xff\xe2\xff\xffICC_PROFILE\0\1\xff" + bytes(65_519)) * 300,
        {400},
    ),
}


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_that_asks_for_too_much(server: WatchedServer, name: str) -> None:
    """Decoded exactly, and as a draft."""
    make, statuses = IMAGES[name]
    image = make()
    for route in ROUTES[:2]:
        answer = posted(server, request(image, route))
        assert answer.status in statuses, answer


@pytest.mark.parametrize(
    "route",
    [
        "/predict",
        "/attention/rollout",
        "/attention/blocks?max_side=200",
        "/attention/rollout?overlay=heatmap",
    ],
)
def test_the_largest_pictures(tmp_path: Path, route: str) -> None:
    """64 megapixels of nothing in 200 kB, three at once; a server that nothing else has stretched."""
    with watched_server(tmp_path) as server, ThreadPoolExecutor(3) as threads:
        raw = request(png(8000, 8000, zeros(8000 * (3 * 8000 + 1) + 2**24)), route)
        answers = [threads.submit(server.exchange, raw) for _ in range(3)]
        assert {each.result().status for each in answers} == {200}
        server.assert_unharmed()


def test_scans_without_end_do_not_keep_others_waiting(tmp_path: Path) -> None:
    """A JPEG of 1 MB that would take a minute to decode, four at once; a good picture is answered soon."""
    with watched_server(tmp_path) as server, ThreadPoolExecutor(4) as threads:
        raw = request(scans(8000, 8000, 6000), "/predict", "X-Request-Timeout: 3")
        asked = [threads.submit(server.exchange, raw) for _ in range(4)]
        assert {each.result().status for each in asked} <= {200, 400, 413, 503, 504}
        good = server.post(server.good, "/predict", "X-Request-Timeout: 20")
        assert good.status == 200, good


MULTIPART = "Content-Type: multipart/form-data; boundary="
EDGE = MULTIPART + "edge"

FORMS: dict[str, tuple[Callable[[], bytes], str, set[int]]] = {
    "nested": (lambda: nested(200), EDGE, {400}),
    "a million fields": (lambda: form(*[field("a", b"", None)] * 300_000), EDGE, {400}),
    "a million empty parts": (lambda: b"--edge\r\n\r\n\r\n" * 1_000_000, EDGE, {400}),
    "a header without an end": (lambda: b"--edge\r\nContent-Disposition: " + b"a" * LARGE, EDGE, {400}),
    "a header's name without an end": (lambda: b"--edge\r\n" + b"a" * LARGE, EDGE, {400}),
    "headers without an end": (lambda: b"--edge\r\n" + b"a: b\r\n" * (LARGE // 6), EDGE, {400}),
    "a disposition full of options": (
        lambda: form(field('a"; ' + "a=b; " * 3_000_000 + '"', small_png())),
        EDGE,
        {400},
    ),
    "a name of megabytes": (lambda: form(field("a" * LARGE, b"")), EDGE, {400}),
    "quotes and backslashes": (lambda: form(field('\\"' * 9_000_000, b"")), EDGE, {400}),
    "nothing but line ends": (lambda: b"\r\n" * (LARGE // 2), EDGE, {400}),
    "nothing but carriage returns inside": (
        lambda: form(field("image", b"\r" * LARGE)),
        EDGE,
        {400},
    ),
    "nearly a boundary, again and again": (
        lambda: form(field("image", b"\r\n--edg" * (LARGE // 7))),
        EDGE,
        {400},
    ),
    "much behind the end": (
        lambda: form(field("image", small_png())) + b"\r\n" * (LARGE // 2),
        EDGE,
        {200, 400},
    ),
    "much before the start": (lambda: b"x" * LARGE + form(field("image", small_png())), EDGE, {400}),
    "a boundary of 50,000 letters": (
        lambda: form(field("image", small_png()), boundary=b"e" * 50_000),
        MULTIPART + "e" * 50_000,
        {200, 400},
    ),
    "a long boundary nearly again and again": (
        lambda: b"--" + b"e" * 50_000 + b"\r\n" + field("image", (b"\r\n--" + b"e" * 49_999) * 390),
        MULTIPART + "e" * 50_000,
        {400},
    ),
    "another boundary": (lambda: form(field("image", small_png())), MULTIPART + "ledge", {400}),
    "an empty boundary": (lambda: form(field("image", small_png())), MULTIPART, {400}),
    "no boundary": (lambda: form(field("image", small_png())), "Content-Type: multipart/form-data", {400}),
    "a boundary of NULs": (lambda: bytes(LARGE), MULTIPART + '"\\0"', {400}),
    "options by the thousand": (
        lambda: form(field("image", small_png())),
        "Content-Type: multipart/form-data" + ";a=b" * 15_000 + ";boundary=edge",
        {200, 400},
    ),
    "a type of semicolons": (lambda: b"", "Content-Type: multipart/form-data" + ";" * 60_000, {400}),
    "a type of quotes": (lambda: b"", EDGE + ';a="' + '\\"' * 30_000, {400}),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_form_that_never_means_an_image(server: WatchedServer, name: str) -> None:
    make, kind, statuses = FORMS[name]
    answer = posted(server, request(make(), "/predict", kind))
    assert answer.status in statuses, answer


@pytest.mark.parametrize("kind", ["Content-Type: image/png", EDGE])
def test_a_body_without_an_end_is_refused_and_not_held(server: WatchedServer, kind: str) -> None:
    """413 once more than the largest body came, and the connection is closed soon after."""
    sent = 0
    start = b"--edge\r\n" + field("image", b"")
    with server.wire() as wire:
        wire.send(chunked("/predict", kind))
        pieces = itertools.chain([start], itertools.repeat(bytes(2**16)))
        for piece in pieces:
            if not wire.send(b"%x\r\n%b\r\n" % (len(piece), piece)):
                break
            sent += len(piece)
            assert sent < 10 * GIGABYTE
            if wire.something_came():
                break
        assert (answer := wire.answer()).status == 413, answer
        assert answer.problem == "too-large"
        while wire.send(b"%x\r\n%b\r\n" % (2**16, bytes(2**16))):
            sent += 2**16
            assert sent < 10 * GIGABYTE
    assert sent > 20 * 2**20


def posted(server: WatchedServer, raw: bytes) -> Answer:
    """What comes back, while /healthz goes on being answered."""
    over = threading.Event()
    waits: list[float] = []

    def probe() -> None:
        with server.wire() as wire:
            while not over.is_set():
                began = time.monotonic()
                wire.send(b"GET /healthz HTTP/1.1\r\nHost: test\r\n\r\n")
                assert wire.answer().status == 200
                waits.append(time.monotonic() - began)
                over.wait(0.02)

    prober = threading.Thread(target=probe)
    prober.start()
    try:
        answer = server.exchange(raw)
    finally:
        over.set()
        prober.join()
    assert max(waits, default=0) < 10, f"/healthz took {max(waits):.1f} s"
    return answer
