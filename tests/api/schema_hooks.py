"""What schemathesis has to know beyond the OpenAPI document: that images are images, and that time passes."""

import io
from typing import Any

import schemathesis
from hypothesis import strategies as st
from PIL import Image

LONG_S = 60.0
FORMATS = {
    "image/jpeg": "JPEG",
    "image/png": "PNG",
    "image/webp": "WEBP",
    "image/gif": "GIF",
    "image/bmp": "BMP",
    "image/tiff": "TIFF",
    "image/avif": "AVIF",
}


def drawn(kind: str, mode: str, width: int, height: int) -> bytes:
    """A picture of a grey gradient."""
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((width, height)).convert(mode).save(buffer, kind)
    return buffer.getvalue()


def images(*kinds: str) -> st.SearchStrategy[bytes]:
    side = st.integers(1, 64)
    return st.builds(drawn, st.sampled_from(kinds), st.sampled_from(["L", "RGB"]), side, side)


for media_type, kind in FORMATS.items():
    schemathesis.openapi.media_type(media_type, images(kind))
schemathesis.openapi.media_type("application/octet-stream", images(*FORMATS.values()))


@schemathesis.hook
def before_call(context: schemathesis.HookContext, case: schemathesis.Case, kwargs: dict[str, Any]) -> None:
    """Gives a request with a short deadline a long one, and leaves what is no deadline as it is.

    No document can promise that a deadline is met; one that is missed is a 504, as it should be.
    """
    try:
        wanted = float(case.headers["X-Request-Timeout"])
    except (KeyError, TypeError, ValueError):
        return
    if 0 < wanted < LONG_S:
        case.headers["X-Request-Timeout"] = str(LONG_S)
