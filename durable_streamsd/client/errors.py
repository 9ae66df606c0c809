"""The client's errors, by what the caller can do about them.

StreamError
├── Unreachable       no answer, or half of one; `sent` tells whether the server may have acted
├── NotTheProtocol    an answer, but not one of this protocol: most likely a wrong URL
└── Refused           the server said no: `status`, `code`, `detail`
    ├── Missing       404, 410: there is no such stream, or no longer
    ├── Closed        409 of a closed stream: no append will ever succeed
    └── Unavailable   429 and most 5xx: the same request may succeed later
"""


class StreamError(Exception):
    """Base of all the client's errors; the message is one sentence."""


class Unreachable(StreamError):
    """No answer, or a connection that broke in the middle of one."""

    def __init__(self, sentence: str, *, sent: bool) -> None:
        super().__init__(sentence)
        self.sent = sent
        """Whether the request may have reached the server: if so, its outcome is unknown."""


class NotTheProtocol(StreamError):
    """The answer is not one that this protocol knows."""


class Refused(StreamError):
    """The server answered with an error; `code` and `detail` are those of its problem+json body."""

    def __init__(self, sentence: str, status: int, code: str | None, detail: str | None) -> None:
        super().__init__(sentence)
        self.status = status
        self.code = code
        self.detail = detail


class Missing(Refused):
    """There is no such stream (404), or no longer (410)."""


class Closed(Refused):
    """The stream is closed: it takes no more appends."""


class Unavailable(Refused):
    """Too many requests or trouble at the server: the same request may succeed later."""
