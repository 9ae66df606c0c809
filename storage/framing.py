"""Framing: where the messages of a stream's payload end, and how a body becomes payload.

A JSON stream stores each message as it was sent, followed by a comma; a reader puts brackets round
a range of that. Messages are never parsed into values and written again: duplicate keys, big
numbers and lone-surrogate escapes come back byte for byte.

`msgspec.Raw` does the splitting. It does not look into strings, so UTF-8 is checked first; what it
refuses although JSON allows it (an escaped lone surrogate) is split by the standard library's
scanner, told to build no values.
"""

import contextlib
import enum
import json
import re
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

import msgspec

from storage.errors import FramingError, TooManyMessages

_split = msgspec.json.Decoder(list[msgspec.Raw]).decode
_SPACE = re.compile(r"[ \t\n\r]*")
_SPACE_BYTES = b" \t\n\r"
# Strings as a whole, also one that never ends, and what gives JSON its structure. Nothing is tried
# twice (possessive quantifiers): a body that is all quotes takes no longer than another.
_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?'
_TOKEN = re.compile(_STRING + rb"|[\[\]{},]", re.DOTALL)
_NESTED_TOKEN = re.compile(_STRING + rb"|[\[\]{}]", re.DOTALL)

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")

MESSAGES_MAX = 65_536
"""Of one body: each costs memory and time of its own, whatever its size."""
HEAVY_BYTES = 1 << 20
LIGHT_BYTES = 64 << 10


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
    if not messages:
        return Framed(b"", [])
    return Framed(b",".join(messages) + b",", [len(message) + 1 for message in messages])


def is_heavy(framing: Framing, body: bytes) -> bool:
    """Whether framing a body may take long enough that others should not wait for it."""
    if framing is not Framing.JSON or len(body) <= LIGHT_BYTES:
        return False
    return len(body) > HEAVY_BYTES or rb"\u" in body or body.count(b",") >= MESSAGES_MAX


def try_frame(framing: Framing, body: bytes) -> Framed | FramingError:
    """`frame` with its error as a value: for bodies that are framed before they are judged."""
    try:
        return frame(framing, body)
    except FramingError as error:
        return error


def message_lengths(data: bytes | bytearray) -> list[int]:
    """The lengths of the messages, commas included, in stored JSON payload of whole messages.

    Raises `FramingError` if it is not that. What was accepted can always be told apart again: a
    reader whose stack has no room for the nesting counts brackets instead.
    """
    with contextlib.suppress(FramingError):
        lengths = [len(message) + 1 for message in _split_array(b"".join((b"[", data[:-1], b"]")))]
        if sum(lengths) == len(data) and (not data or data.endswith(b",")):
            return lengths
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


def _split_body(body: bytes) -> Sequence[bytes | msgspec.Raw]:
    if not body.isascii():
        try:
            body.decode()
        except UnicodeDecodeError as error:
            raise FramingError(f"The body is not valid UTF-8 at byte {error.start}.") from None
    is_array = body.lstrip(_SPACE_BYTES)[:1] == b"["
    array = body if is_array else b"[%b]" % body
    if len(array) > MESSAGES_MAX and array.count(b",") >= MESSAGES_MAX and _has_too_many(array):
        raise TooManyMessages(f"The body has more than {MESSAGES_MAX} messages.")
    messages = _split_array(array)
    if is_array:
        return messages
    if len(messages) != 1:
        raise FramingError("The body is not one JSON value.")
    return messages


def _split_array(array: bytes) -> Sequence[bytes | msgspec.Raw]:
    try:
        return _split(array)
    except RecursionError:
        raise FramingError("The JSON is nested too deeply.") from None
    except msgspec.DecodeError as error:
        if not _SURROGATE.search(array):
            raise FramingError(f"The body is not valid JSON: {error}.") from None
    return _split_slowly(array)


def _has_too_many(array: bytes) -> bool:
    """Whether an array, valid or not, has more than `MESSAGES_MAX` elements."""
    depth = commas = at = 0
    while True:
        match = (_TOKEN if depth == 1 else _NESTED_TOKEN).search(array, at)
        if match is None:
            return False
        at = match.end()
        match array[match.start()]:
            case 0x5B | 0x7B:
                depth += 1
            case 0x5D | 0x7D:
                depth -= 1
                if depth <= 0:
                    return False
            case 0x2C:
                commas += 1
                if commas >= MESSAGES_MAX:
                    return True


def _count_brackets(data: bytes | bytearray) -> list[int]:
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
    messages: list[bytes] = []
    try:
        text = array.decode()
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
