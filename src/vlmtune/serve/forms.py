"""A `multipart/form-data` body that is in memory already: its fields and its one file, without temporary files.

File names are read past: nothing is ever written to a path that a client named.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from vlmtune.serve.refusals import RefusedError

_MAX_FIELD_BYTES = 64 * 1024
_MAX_PARTS = 2100


@dataclass
class Form:
    """What a form holds.

    Attributes:
        file: the content of the file; None without one.
        media_type: as the client declared it.
        fields: (name, value) of the other parts, in order.
    """

    file: bytes | None = None
    media_type: str | None = None
    fields: list[tuple[str, str]] = field(default_factory=list)


def read_form(content_type: str, body: bytes, file_field: str) -> Form:
    """Parse a form whose one file stands in ``file_field``. Raises RefusedError (400)."""
    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if not boundary:
        raise _refused("the content type names no boundary")
    collector = _Collector(file_field)
    try:
        parser = MultipartParser(boundary, collector.callbacks())
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise _refused(str(error)) from error
    if not collector.is_complete:
        raise _refused("it ends before its last boundary")
    return collector.form


class _Collector:
    """The parser's callbacks."""

    def __init__(self, file_field: str) -> None:
        self.form = Form()
        self.is_complete = False
        self._file_field = file_field
        self._num_parts = 0
        self._name, self._is_file = "", False
        self._headers: dict[bytes, bytes] = {}
        self._header = b""
        self._value = b""
        self._data = bytearray()

    def callbacks(self) -> Any:
        return {
            "on_part_begin": self._begin,
            "on_part_data": self._part_data,
            "on_part_end": self._end,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_finished,
            "on_end": self._finish,
        }

    def _begin(self) -> None:
        self._num_parts += 1
        if self._num_parts > _MAX_PARTS:
            raise _refused(f"it has more than {_MAX_PARTS} parts")
        self._headers, self._header, self._value, self._data = {}, b"", b"", bytearray()

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        self._headers[self._header.lower()] = self._value
        self._header = self._value = b""

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        if b"name" not in options:
            raise _refused("a part has no name")
        self._name = options[b"name"].decode("utf-8", "replace")
        self._is_file = b"filename" in options
        if self._is_file and (self._name != self._file_field or self.form.file is not None):
            raise _refused(f"there is a file in '{self._name[:80]}'; expected one, in '{self._file_field}'")

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        self._data += data[start:end]
        if not self._is_file and len(self._data) > _MAX_FIELD_BYTES:
            raise _refused(f"the field '{self._name[:80]}' has more than {_MAX_FIELD_BYTES:,} bytes")

    def _end(self) -> None:
        if self._is_file:
            self.form.file = bytes(self._data)
            self.form.media_type = self._headers.get(b"content-type", b"").decode("latin-1") or None
            return
        try:
            self.form.fields.append((self._name, self._data.decode()))
        except UnicodeDecodeError as error:
            raise _refused(f"the field '{self._name[:80]}' is not UTF-8") from error

    def _finish(self) -> None:
        self.is_complete = True


def _refused(reason: str) -> RefusedError:
    return RefusedError(400, "invalid_form", f"The form cannot be read: {reason}.")
