"""Framing: where the messages of a stream's payload end, and how a body becomes payload.

A JSON stream stores each message as it was sent, followed by a comma; a reader puts brackets round
a range of that. Messages are never parsed into values and written again: duplicate keys, big
numbers and lone-surrogate escapes come back byte for byte.

`msgspec.Raw` does the splitting. It does not look into strings, so UTF-8 is checked first; what it
refuses although JSON allows it (an escaped lone surrogate) is split by the standard library's
scanner, told to build no values.
"""

import enum
import json
import re
from typing import NamedTuple, NoReturn

import msgspec

from storage.errors import FramingError

_split = msgspec.json.Decoder(list[msgspec.Raw]).decode
_SPACE = re.compile(r"[ \t\n\r]*")
_SPACE_BYTES = b" \t\n\r"
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{},]')


class Framing(enum.IntEnum):
    """What a stream's bytes are made of."""

    BYTES = 0
    TEXT = 1
    JSON = 2


class Framed(NamedTuple):
    """A body as it is stored. `lengths` of its messages, or None where any byte may be the last."""

    data: bytes
    lengths: list[int] | None


def framing_of(media_type: str) -> Framing:
    """The framing of a media type, given in lower case and without parameters (protocol 9)."""
    if media_type == "application/json":
        return Framing.JSON
    return Framing.TEXT if media_type.startswith("text/") else Framing.BYTES


def frame(framing: Framing, body: bytes) -> Framed:
    """A request's body as payload (protocol 9.1). Raises `FramingError`.

    An empty JSON array gives no messages: whether that is allowed is the caller's question.
    """
    if framing is not Framing.JSON:
        return Framed(body, None)
    messages = _split_body(body)
    data = b"".join([part for message in messages for part in (message, b",")])
    return Framed(data, [len(message) + 1 for message in messages])


def message_lengths(data: bytes) -> list[int]:
    """The lengths of the messages, commas included, in stored JSON payload of whole messages.

    Raises `FramingError` if it is not that. What was accepted can always be told apart again: a
    reader whose stack has no room for the nesting counts brackets instead.
    """
    try:
        return [len(message) + 1 for message in _split_array(b"[%b]" % data[:-1])]
    except FramingError:
        return _count_brackets(data)


def text_boundary(data: bytes) -> int:
    """How many bytes of `data` form whole UTF-8 characters: all but the start of one at its end."""
    for back in range(1, min(4, len(data) + 1)):
        byte = data[-back]
        if byte < 0x80:
            return len(data)
        if byte >= 0xC0:
            need = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return len(data) - back if need > back else len(data)
    return len(data)


def _split_body(body: bytes) -> list[bytes]:
    if not body.isascii():
        try:
            body.decode()
        except UnicodeDecodeError as error:
            raise FramingError(f"The body is not valid UTF-8 at byte {error.start}.") from None
    if body.lstrip(_SPACE_BYTES)[:1] == b"[":
        return _split_array(body)
    messages = _split_array(b"[%b]" % body)
    if len(messages) != 1:
        raise FramingError("The body is not one JSON value.")
    return messages


def _split_array(array: bytes) -> list[bytes]:
    try:
        return [bytes(message) for message in _split(array)]
    except RecursionError:
        raise FramingError("The JSON is nested too deeply.") from None
    except msgspec.DecodeError as error:
        if rb"\u" not in array:
            raise FramingError(f"The body is not valid JSON: {error}.") from None
    return _split_slowly(array)


def _count_brackets(data: bytes) -> list[int]:
    """`message_lengths` without recursion: a comma outside all brackets ends a message."""
    lengths = []
    depth = start = 0
    for token in _TOKEN.finditer(data):
        match token[0][:1]:
            case b"[" | b"{":
                depth += 1
            case b"]" | b"}":
                depth -= 1
            case b"," if not depth:
                lengths.append(token.end() - start)
                start = token.end()
    if depth or start != len(data):
        raise FramingError("The payload does not end with a message.")
    return lengths


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_scan = json.JSONDecoder(
    parse_int=lambda _: None,
    parse_float=lambda _: None,
    parse_constant=_refuse_constant,
    object_pairs_hook=lambda _: None,
).raw_decode


def _split_slowly(array: bytes) -> list[bytes]:
    """Split an array by the standard library's scanner."""
    text = array.decode()
    messages: list[bytes] = []
    try:
        at = _skip_space(text, _skip_space(text, 0) + 1)
        while text[at] != "]" or messages:
            _, end = _scan(text, at)
            messages.append(text[at:end].encode())
            at = _skip_space(text, end)
            if text[at] == "]":
                break
            if text[at] != ",":
                raise ValueError("a comma is missing")
            at = _skip_space(text, at + 1)
        if _skip_space(text, at + 1) != len(text):
            raise ValueError("something follows the array")
    except RecursionError:
        raise FramingError("The JSON is nested too deeply.") from None
    except (ValueError, IndexError) as error:
        raise FramingError(f"The body is not valid JSON: {error}.") from None
    return messages


def _skip_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at
