"""What is appended, beside the plain `Messages`: batches of JSON messages.

All bodies of a stream are of one size, so that a request's head can be made once.
"""

__all__ = ["JsonBatches"]


class JsonBatches:
    """Arrays of JSON messages for one stream: all of one size, no two messages alike."""

    def __init__(self, stream: int, message_bytes: int, messages: int) -> None:
        """`messages` is how many there are in an array."""
        self._messages = messages
        # A number in a string may begin with zeroes, so that all messages have the same size.
        message = b'{"stream":%d,"message":"%%010d","text":"' % stream
        frame_bytes = len(message % 0) + len(b'"}')
        if message_bytes < frame_bytes:
            raise ValueError(f"a JSON message needs at least {frame_bytes} bytes")
        message += b"." * (message_bytes - frame_bytes) + b'"}'
        self._each_with_comma = (message + b",") * messages
        self._array = b"[" + self._each_with_comma[:-1] + b"]"

    def at(self, number: int) -> bytes:
        """Body of request `number`: one array."""
        return self._array % self._numbers(number)

    def first(self, count: int) -> bytes:
        """All messages of `count` requests, each followed by a comma."""
        return b"".join([self._each_with_comma % self._numbers(number) for number in range(count)])

    def _numbers(self, request: int) -> tuple[int, ...]:
        first = request * self._messages
        return tuple(range(first, first + self._messages))
