"""What the soak sends and what it deserves: sound requests, images on which the device fails, garbage."""

import io
import random
from dataclasses import dataclass

from PIL import Image

from service.load.photographs import drawn
from tests.load.faults import FAULTS, marked

SIZES = ((320, 240), (641, 483), (213, 377), (300, 202), (97, 61))
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
QUESTIONS = (
    "/predict",
    "/predict?top_k=3",
    "/attention/rollout",
    "/attention/rollout?overlay=heatmap",
    "/attention/rollout?overlay=masked&discard_ratio=0.9",
    "/attention/rollout?head_fusion=max&grid=true",
    "/attention/blocks",
    "/attention/blocks?layout=grid&max_side=100&grids=true",
)
PAGES = ("/models", "/healthz", "/readyz", "/metrics")
BAD_PARAMETERS = (
    "/predict?top_k=0",
    "/predict?top_k=x",
    "/predict?unknown=1",
    "/predict?model=..%2f..",
    "/attention/rollout?discard_ratio=nan",
    "/attention/rollout?overlay=%00",
    "/attention/blocks?layout=round",
    "/attention/blocks?max_side=-1",
)
LOST = (
    "GET /nowhere",
    "GET /../../etc/passwd",
    "GET /predict",
    "DELETE /models",
    "POST /healthz",
    "PUT /%ff",
)
BAD_HTTP = (
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    b"GET\r\n\r\n",
    b"GET / HTTQ/1.1\r\n\r\n",
    b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: many\r\n\r\n",
    b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nno size\r\n",
    b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 400_000 + b"\r\n\r\n",
)
CLIENTS_FAULT = frozenset({400, 404, 405, 413, 415, 422})


@dataclass(frozen=True)
class Message:
    """The bytes of a request.

    kind: "sound", "garbage" or one of FAULTS.
    deserves: the statuses that it may get; 0 is a connection that is closed without an answer.
    holds: bytes that an answer with 200 must contain.
    """

    kind: str
    data: bytes
    deserves: frozenset[int] = frozenset({200})
    holds: bytes = b""


def request(line: str, body: bytes = b"", *headers: str, how: str = "raw") -> bytes:
    """how: "raw", "form" or "chunked"."""
    if how == "form":
        body = (
            b'--x\r\nContent-Disposition: form-data; name="image"; filename="x"\r\n\r\n%b\r\n--x--\r\n' % body
        )
        headers = (*headers, "Content-Type: multipart/form-data; boundary=x")
    if how == "chunked":
        middle = len(body) // 2
        body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:middle], body[middle:], b""))
    length = "Transfer-Encoding: chunked" if how == "chunked" else f"Content-Length: {len(body)}"
    return "\r\n".join((f"{line} HTTP/1.1", "Host: x", *headers, length, "", "")).encode() + body


class Traffic:
    """Messages without end, the same ones for the same seed."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.images = {size: drawn(1, *size)[0] for size in SIZES}
        with Image.open(io.BytesIO(self.images[97, 61])) as small:
            self.formats = {kind: saved(small, kind) for kind in FORMATS}

    def message(self) -> Message:
        (kind,) = self.rng.choices((self.sound, self.page, self.fault, self.garbage), (73, 10, 5, 12))
        return kind()

    def sound(self) -> Message:
        size = width, height = self.rng.choice(SIZES)
        line, accept = (
            f"POST {self.rng.choice(QUESTIONS)}",
            self.rng.choice(("application/json", "image/png")),
        )
        how = self.rng.choice(("raw", "form", "chunked"))
        is_png = accept == "image/png" and "attention" in line
        holds = b"\x89PNG" if is_png else b'"width":%d,"height":%d' % (width, height)
        data = request(line, self.images[size], f"Accept: {accept}", how=how)
        return Message("sound", data, holds=holds)

    def page(self) -> Message:
        return Message("sound", request(f"GET {self.rng.choice(PAGES)}"))

    def fault(self) -> Message:
        fault = self.rng.choice(list(FAULTS))
        data = request(f"POST {self.rng.choice(QUESTIONS)}", marked(fault))
        return Message(fault, data, frozenset({FAULTS[fault]}))

    def garbage(self) -> Message:
        line, image = f"POST {self.rng.choice(QUESTIONS)}", self.images[320, 240]
        at_fault, cut = CLIENTS_FAULT, self.rng.randrange(len(image))
        data, deserves = self.rng.choice(
            (
                (request(line, self.mutated()), at_fault | {200}),
                (request(line, image[:cut]), at_fault),
                (request(line, self.rng.randbytes(1000)), at_fault),
                (request(line, image, "Content-Type: text/html"), at_fault),
                (request(line, image, "Content-Type: multipart/form-data; boundary=y"), at_fault),
                (request(line, request(line, image), how="form"), at_fault),
                (request(f"POST {self.rng.choice(BAD_PARAMETERS)}", image), at_fault),
                (request(self.rng.choice(LOST), image), at_fault),
                (request(line).replace(b"h: 0", b"h: 99999999"), at_fault),
                (request(line, image, "X-Request-Timeout: 0.5")[:-1], {503, 504}),
                (self.rng.choice(BAD_HTTP), at_fault | {0}),
            )
        )
        return Message("garbage", data, frozenset(deserves))

    def mutated(self) -> bytes:
        data = bytearray(self.formats[self.rng.choice(FORMATS)])
        for _ in range(self.rng.randrange(1, 9)):
            data[self.rng.randrange(len(data))] = self.rng.randrange(256)
        return bytes(data)


def saved(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()
