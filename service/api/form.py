"""A multipart form with one image in it, read as it comes and held in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from service.errors import BadRequest

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

IMAGE_FIELDS = ("image", "file")
MAX_PARTS = 16


@dataclass
class Part:
    """One part of a form: its content disposition, then its data."""

    disposition: bytes = b""
    data: bytearray = field(default_factory=bytearray)

    def option(self, name: bytes) -> str | None:
        """One of the disposition's options, `name` or `filename`."""
        value = parse_options_header(self.disposition)[1].get(name)
        return None if value is None else value.decode("utf-8", "replace")


class Form:
    """Takes the body piece by piece; `image` is what it was all about.

    Whoever feeds it limits the bytes. Raises BadRequest, with the remedy, for what is no such form.
    """

    def __init__(self, content_type: str) -> None:
        boundary = parse_options_header(content_type)[1].get(b"boundary")
        if not boundary:
            raise BadRequest("The form's Content-Type states no boundary; leave that header to your client.")
        self.parts: list[Part] = []
        self._header = b""
        self._value = b""
        self._ended = False
        callbacks: MultipartCallbacks = {
            "on_part_begin": self._on_part_begin,
            "on_header_field": self._on_header_field,
            "on_header_value": self._on_header_value,
            "on_header_end": self._on_header_end,
            "on_part_data": self._on_part_data,
            "on_end": self._on_end,
        }
        with malformed_is_bad_request():
            self._parser = MultipartParser(boundary, callbacks)

    def feed(self, piece: bytes) -> None:
        """Takes the next piece of the body."""
        with malformed_is_bad_request():
            self._parser.write(piece)

    def image(self) -> bytes:
        """The form's one image, once the whole body was fed."""
        if not self._ended:
            raise BadRequest("The multipart form ends early: its closing boundary is missing.")
        images = [part for part in self.parts if part.option(b"name") in IMAGE_FIELDS]
        others = [part for part in self.parts if part.option(b"name") not in IMAGE_FIELDS]
        if len(images) > 1:
            raise BadRequest(f"The form holds {len(images)} images; send one image a request.")
        if others:
            raise BadRequest(
                f"The form has a field {(others[0].option(b'name') or '')[:100]!r}; it may have one file "
                "field 'image', and options go into the query: /predict?top_k=3"
            )
        if not images:
            raise BadRequest("The form has no file field 'image'; send one: curl -F image=@photo.jpg")
        if images[0].option(b"filename") is None:
            raise BadRequest("The form's field is text, not a file; mind the @: curl -F image=@photo.jpg")
        return bytes(images[0].data)

    def _on_part_begin(self) -> None:
        if len(self.parts) == MAX_PARTS:
            raise BadRequest(f"The form has more than {MAX_PARTS} fields; send one file field 'image'.")
        self.parts.append(Part())

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self.parts[-1].disposition = self._value
        self._header = self._value = b""

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        self.parts[-1].data += data[start:end]

    def _on_end(self) -> None:
        self._ended = True


@contextmanager
def malformed_is_bad_request() -> Iterator[None]:
    """Tells the client what the parser found wrong with the form."""
    try:
        yield
    except FormParserError as error:
        raise BadRequest(f"The multipart form is malformed: {error}.") from None
