"""Messages that say what they are: unique, with their length inside, made from a seed.

    byte and text streams    `#ID LENGTH` LF, then LENGTH bytes
    JSON streams             `{"id":"ID", ...}`

So whoever reads a stream can cut it into messages without knowing offsets, and a message found
where nobody sent one is recognised. The id is `INCARNATION/WRITER/NUMBER`.

Shared by the workload and the checker; knows nothing of the server.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from typing import NamedTuple

BYTES = "application/octet-stream"
TEXT = "text/plain"
JSON = "application/json"
MEDIA_TYPES = (BYTES, TEXT, JSON)

HEAD_BYTES_MAX = 300
LETTERS = 'abcdefghij äöüß €… 𝄞🙂\n\t"\\'
DIGEST_DIGITS = 24

_HEAD = re.compile(rb"#(\S+) ([0-9]+)\n")


class Garbage(Exception):
    """What was read is not a sequence of messages."""


class Message(NamedTuple):
    """One message as found in a stream; `size` counts bytes, in JSON streams messages (one)."""

    id: str
    digest: str
    size: int


def incarnation_of(message_id: str) -> str:
    """The incarnation that a message was sent to."""
    return message_id.split("/", 1)[0]


def writer_of(message_id: str) -> tuple[str, int]:
    """Who sent a message, and which of theirs it is."""
    _, writer, number = message_id.split("/")
    return writer, int(number)


def make_message(media_type: str, message_id: str, rng: random.Random) -> bytes:
    """A message's bytes: mostly small, sometimes larger than a checksum block, always odd."""
    size = rng.choice((0, 1, 20, 100, 100, 200, 300, 500, 2_000))
    if rng.random() < 0.01:
        size = rng.choice((30_000, 64_000, 90_000))
    if media_type == JSON:
        return _json_message(message_id, size, rng)
    if media_type == TEXT:
        body = "".join(rng.choices(LETTERS, k=size)).encode()
    else:
        body = rng.randbytes(size)
    return b"#%b %d\n" % (message_id.encode(), len(body)) + body


def _json_message(message_id: str, size: int, rng: random.Random) -> bytes:
    """JSON that changes when it is parsed and written anew: blanks, escapes, twin keys, digits."""
    text = json.dumps("".join(rng.choices(LETTERS, k=size)), ensure_ascii=rng.random() < 0.5)
    blank = rng.choice(("", " ", "\t", "  "))
    number = rng.choice(("1e2", "0.10", "123456789012345678901234567890", "-0"))
    parts = (f'"id":{blank}"{message_id}"', f'"n":{number}', f'"n": {number}', f'"pad":{text}')
    return ("{" + f",{blank}".join(parts) + "}").encode()


def digest_of(data: bytes) -> str:
    """What a message's bytes are recognised by."""
    return hashlib.sha256(data).hexdigest()[:DIGEST_DIGITS]


def join_messages(media_type: str, messages: list[bytes]) -> bytes:
    """One request body with all of `messages`; none when there are none."""
    if media_type != JSON or not messages:
        return b"".join(messages)
    return messages[0] if len(messages) == 1 else b"[" + b" , ".join(messages) + b"]"


class Splitter:
    """Cuts what is read from a stream's start into messages, response by response."""

    def __init__(self, media_type: str) -> None:
        self._json = media_type == JSON
        self._rest = b""

    @property
    def unfinished_bytes(self) -> int:
        """How much of a message has been read whose end has not."""
        return len(self._rest)

    def feed(self, data: bytes) -> list[Message]:
        """The messages that are complete with `data`. Raises `Garbage`."""
        if self._json:
            return split_json(data) if data else []
        data = self._rest + data
        found = []
        at = 0
        while at < len(data):
            head = _HEAD.match(data, at, at + HEAD_BYTES_MAX)
            if head is None:
                if len(data) - at < HEAD_BYTES_MAX and b"\n" not in data[at:]:
                    break
                raise Garbage(f"no message begins with {data[at : at + 40]!r}")
            end = head.end() + int(head[2])
            if end > len(data):
                break
            found.append(Message(head[1].decode(), digest_of(data[at:end]), end - at))
            at = end
        self._rest = data[at:]
        return found


def split_json(data: bytes) -> list[Message]:
    """The messages of an array, each as the bytes that stand there. Raises `Garbage`."""
    try:
        text = data.decode()
        if text[0] != "[" or text[-1] != "]":
            raise Garbage(f"not an array: {data[:40]!r}")
        found = []
        at = 1
        while text[at] != "]":
            value, end = _DECODER.raw_decode(text, at)
            found.append(Message(value["id"], digest_of(text[at:end].encode()), 1))
            at = end + 1 if text[end] == "," else end
        if at != len(text) - 1:
            raise Garbage(f"more follows the array's end: {text[at : at + 40]!r}")
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise Garbage(f"not an array of messages ({error}): {data[:80]!r}") from error
    return found


_DECODER = json.JSONDecoder()
