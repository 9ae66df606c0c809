"""Server-Sent Events as bytes (protocol 5.8). Pure functions; `live` decides what to send when.

    event: data                     `event:` is followed by one space, `data:` by none: clients
    data:first line                 strip one, so a line that begins with a space gets one more.
    data:second line                Line ends are CR, LF and CRLF, and no others.

    event: control
    data:{"streamNextOffset":"...","streamCursor":"...","upToDate":true}

JSON goes as one array per event, text as it is, everything else as base64. A client sees every
line end of a text as LF, and a CRLF that two appends cut apart as two: the format has no other way.
"""

from base64 import b64encode

from durable_streamsd.core.bodies import body_of
from durable_streamsd.core.message import Frame
from storage.framing import Framing, text_boundary

__all__ = ["HEARTBEAT", "control_event", "data_event", "sendable_bytes"]

HEARTBEAT = Frame(b": keep-alive\n\n")


def data_event(framing: Framing, data: bytes) -> bytes:
    """One data event with `data`, which is payload as the store keeps it."""
    if framing is Framing.BYTES:
        return b"event: data\ndata:%b\n\n" % b64encode(data)
    text = body_of(framing, data)
    if b"\r" in text:
        text = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    # Every LF is now the end of a line, and the first line is treated like the others.
    lines = (b"\n" + text).replace(b"\n", b"\ndata:").replace(b"\ndata: ", b"\ndata:  ")
    return b"event: data%b\n\n" % lines


def sendable_bytes(text: bytes, up_to_date: bool) -> int:
    """How much of a text goes into one event, whose end must be no cut that a client can see.

    Clients decode each event by itself, so the first bytes of a character are left to the event
    that has the rest of it. Where more data follows at once, a CR is left to the LF that may come
    with it. Where that would leave nothing, first the CR goes, then what is no whole character.
    """
    whole = text_boundary(text)
    if up_to_date:
        return whole
    without_cr = whole - text[:whole].endswith(b"\r")
    return without_cr or whole or len(text)


def control_event(next_offset: bytes, cursor: int, up_to_date: bool, closed: bool) -> bytes:
    """The control event that follows data, or stands alone. A closed stream needs no cursor."""
    if closed:
        rest = b'"upToDate":true,"streamClosed":true'
    elif up_to_date:
        rest = b'"streamCursor":"%d","upToDate":true' % cursor
    else:
        rest = b'"streamCursor":"%d"' % cursor
    return b'event: control\ndata:{"streamNextOffset":"%b",%b}\n\n' % (next_offset, rest)
