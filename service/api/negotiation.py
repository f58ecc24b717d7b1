"""Which of the media types on offer a client's Accept header prefers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class MediaRange:
    """One entry of an Accept header, such as image/*;q=0.8."""

    kind: str
    subtype: str
    quality: float

    @property
    def specificity(self) -> int:
        """0 for */*, 1 for image/*, 2 for image/png."""
        return (self.kind != "*") + (self.subtype != "*")

    def covers(self, media_type: str) -> bool:
        """Whether a media type such as image/png lies in this range."""
        kind, _, subtype = media_type.partition("/")
        return self.kind in ("*", kind) and self.subtype in ("*", subtype)


def preferred(accept: str, offered: Sequence[str]) -> str:
    """The offered media type that the client wants most; the first one where it does not say.

    Higher quality wins, then a type that is named over one that a wildcard covers, then the order on
    offer. A header that allows none of them gets the first: an answer it can read beats a 406.
    """
    ranges = [parsed for entry in accept.split(",") if (parsed := media_range(entry))]

    def rank(media_type: str) -> tuple[float, int]:
        covering = [entry for entry in ranges if entry.covers(media_type)]
        best = max(covering, key=lambda entry: entry.specificity, default=None)
        return (best.quality, best.specificity if best.quality else 0) if best else (0, 0)

    return max(offered, key=rank)


def media_range(entry: str) -> MediaRange | None:
    """Reads one entry of an Accept header; None for one that makes no sense."""
    name, *parameters = entry.lower().split(";")
    kind, slash, subtype = name.strip().partition("/")
    quality = 1.0
    for parameter in parameters:
        key, _, value = parameter.partition("=")
        if key.strip() == "q":
            try:
                quality = float(value)
            except ValueError:
                return None
    return MediaRange(kind, subtype, quality) if slash and 0 <= quality <= 1 else None
