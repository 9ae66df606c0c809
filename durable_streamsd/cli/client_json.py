"""Cutting JSON into messages, byte for byte, and back into lines.

Nothing here reserialises: numbers, escapes, duplicate keys and white space inside a message stay as
they are. Splitting looks only at brackets, strings and commas; whether a message is JSON is asked
by `check_message`. Splitters take input in pieces and hold no more than one message.
"""

import json
import re
from typing import NoReturn, Protocol

import msgspec

# The body limit that the daemon has by default: a larger message would be refused anyway.
MESSAGE_BYTES_MAX = 64 * 1024 * 1024

_WHITE_SPACE = b" \t\r\n"
_STRUCTURE = re.compile(rb'[\[\]{},"]')
_IN_STRING = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)
_LINE_BREAKS_TO_SPACES = bytes.maketrans(b"\r\n", b"  ")
_array_of_raw = msgspec.json.Decoder(list[msgspec.Raw])


class NotJson(ValueError):
    """Input that is not the JSON it should be; the message says what is wrong with it."""


class Splitter(Protocol):
    """Input in pieces in, whole messages out."""

    def feed(self, piece: bytes) -> list[bytes]:
        """The messages that `piece` completes, without white space around them; or NotJson."""

    def finish(self) -> list[bytes]:
        """The message that the end of the input completes, if any; or NotJson."""


def to_lines(array: bytes) -> bytes:
    """The messages of a JSON array, each followed by LF; NotJson if `array` is not one.

    A line break within a message can only be white space: it becomes a space, so that one message
    stays one line. Every other byte is kept.
    """
    if not array:
        return b""
    try:
        messages = [bytes(message) for message in _array_of_raw.decode(array)]
    except (msgspec.DecodeError, RecursionError):
        # msgspec refuses "\ud800", which servers must store, and deep nesting.
        splitter = ArraySplitter()
        messages = splitter.feed(array)
        splitter.finish()
    return b"".join(message.translate(_LINE_BREAKS_TO_SPACES) + b"\n" for message in messages)


def check_message(message: bytes) -> None:
    """NotJson unless `message` is one JSON value in UTF-8; NaN, Infinity and a BOM are not JSON."""
    try:
        _decoder.decode(message.decode())
    except RecursionError:
        raise NotJson("nested too deeply") from None
    except UnicodeDecodeError as error:
        raise NotJson(f"byte {error.start} is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise NotJson(f"{error.msg} at character {error.pos}") from None


def _refuse_constant(name: str) -> NoReturn:
    raise NotJson(f"{name} is a number to JavaScript only")


# Numbers are not converted: only their form counts, and int() refuses more than 4,300 digits.
_decoder = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=_refuse_constant)


class InputSplitter:
    """JSON Lines, or one JSON array: the first character that is not white space decides.

    An array of one line is still an array: the rule must not change with the number of lines.
    """

    def __init__(self) -> None:
        self._splitter: Splitter | None = None

    def feed(self, piece: bytes) -> list[bytes]:
        if self._splitter is None:
            piece = piece.lstrip(_WHITE_SPACE)
            if not piece:
                return []
            self._splitter = ArraySplitter() if piece.startswith(b"[") else LineSplitter()
        return self._splitter.feed(piece)

    def finish(self) -> list[bytes]:
        return [] if self._splitter is None else self._splitter.finish()


class LineSplitter:
    """JSON Lines: one message per line; blank lines count for nothing."""

    def __init__(self) -> None:
        self._line: list[bytes] = []
        self._line_bytes = 0

    def feed(self, piece: bytes) -> list[bytes]:
        first, *others = piece.split(b"\n")
        self._hold(first)
        if not others:
            return []
        lines = [b"".join(self._line), *others[:-1]]
        self._line, self._line_bytes = [], 0
        self._hold(others[-1])
        return [message for line in lines if (message := line.strip(_WHITE_SPACE))]

    def finish(self) -> list[bytes]:
        return self.feed(b"\n")

    def _hold(self, part: bytes) -> None:
        self._line.append(part)
        self._line_bytes += len(part)
        _check_size(self._line_bytes)


class ArraySplitter:
    """One JSON array: its elements are the messages."""

    def __init__(self) -> None:
        self._element: list[bytes] = []  # of the element so far, in pieces
        self._element_bytes = 0
        self._any = False  # whether an element came before the current one
        self._depth = 0
        self._in_string = False
        self._escape = b""  # a backslash at the end of a piece waits for what it escapes
        self._ended = False

    def feed(self, piece: bytes) -> list[bytes]:
        piece, self._escape = self._escape + piece, b""
        messages: list[bytes] = []
        start = position = 0
        if self._depth == 0 and not self._ended:
            stripped = piece.lstrip(_WHITE_SPACE)
            if not stripped:
                return messages
            if not stripped.startswith(b"["):
                raise NotJson("it is not an array")
            start = position = len(piece) - len(stripped) + 1
            self._depth = 1
        while not self._ended:
            if self._in_string:
                inside = _IN_STRING.match(piece, position)
                assert inside is not None, "the pattern matches the empty string"
                position = inside.end()
                if position == len(piece):
                    break
                if piece[position : position + 1] == b"\\":
                    piece, self._escape = piece[:position], b"\\"
                    break
                self._in_string = False
                position += 1
            token = _STRUCTURE.search(piece, position)
            if token is None:
                position = len(piece)
                break
            position = token.end()
            match token.group():
                case b'"':
                    self._in_string = True
                case b"[" | b"{":
                    self._depth += 1
                case b"," if self._depth == 1:
                    messages.append(self._take(piece[start : token.start()]))
                    start = position
                case b"]" | b"}":
                    self._depth -= 1
                    if self._depth == 0:
                        if token.group() == b"}":
                            raise NotJson("the array ends with a brace")
                        if last := self._take(piece[start : token.start()], last=True):
                            messages.append(last)
                        start = position
                        self._ended = True
                case _:
                    pass
        if self._ended:
            if piece[start:].strip(_WHITE_SPACE):
                raise NotJson("there is more after the array")
        else:
            self._hold(piece[start:])
        return messages

    def finish(self) -> list[bytes]:
        if not self._ended:
            raise NotJson("the array does not end")
        return []

    def _hold(self, part: bytes) -> None:
        self._element.append(part)
        self._element_bytes += len(part)
        _check_size(self._element_bytes)

    def _take(self, part: bytes, last: bool = False) -> bytes:
        self._hold(part)
        element = b"".join(self._element).strip(_WHITE_SPACE)
        self._element, self._element_bytes = [], 0
        if not element and (self._any or not last):
            raise NotJson("an element of the array is missing")
        self._any = True
        return element


def _check_size(size: int) -> None:
    if size > MESSAGE_BYTES_MAX:
        raise NotJson(f"a message is larger than {MESSAGE_BYTES_MAX} bytes")
