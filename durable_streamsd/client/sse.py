"""Server-Sent Events: a body in pieces becomes events (the WHATWG HTML standard, 9.2.6)."""

import re
from dataclasses import dataclass

from durable_streamsd.client.errors import NotTheProtocol

EVENT_BYTES_MAX = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class SseEvent:
    """One dispatched event; `data` keeps the bytes as they came, its lines joined by LF."""

    name: bytes
    data: bytes


class SseParser:
    """Cuts a Server-Sent Events body that arrives in pieces into events, as the standard says.

    Lines end in CR, LF or CRLF, also across pieces; one space after the colon is dropped; comments,
    unknown fields, events without data, and an event that the body's end cuts off are ignored.
    """

    _LINE_END = re.compile(rb"\r\n|\r|\n")
    _BOM = b"\xef\xbb\xbf"

    def __init__(self, event_bytes_max: int = EVENT_BYTES_MAX) -> None:
        self._event_bytes_max = event_bytes_max
        self._event_bytes = 0  # of the lines of the event so far
        self._line: list[bytes] = []  # the line so far, in pieces
        self._line_bytes = 0
        self._name = b""
        self._data: list[bytes] = []
        self._after_cr = False
        self._first_line = True

    def feed(self, piece: bytes) -> list[SseEvent]:
        """Return the events that `piece` completes; NotTheProtocol if one exceeds its limit."""
        if self._after_cr:
            piece = piece.removeprefix(b"\n")
            self._after_cr = False
        self._after_cr = piece.endswith(b"\r")
        events: list[SseEvent] = []
        *ended, rest = self._LINE_END.split(piece)
        for end in ended:
            self._line.append(end)
            self._take_line(b"".join(self._line), events)
            self._line = []
            self._line_bytes = 0
        self._line.append(rest)
        self._line_bytes += len(rest)
        if self._event_bytes + self._line_bytes > self._event_bytes_max:
            raise NotTheProtocol(f"an event is larger than {self._event_bytes_max} bytes")
        return events

    def _take_line(self, line: bytes, events: list[SseEvent]) -> None:
        if self._first_line:
            self._first_line = False
            line = line.removeprefix(self._BOM)
        if not line:
            if self._data:
                events.append(SseEvent(self._name or b"message", b"\n".join(self._data)))
            self._name = b""
            self._data = []
            self._event_bytes = 0
            return
        self._event_bytes += len(line)
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            self._data.append(value)
        elif field == b"event":
            self._name = value
