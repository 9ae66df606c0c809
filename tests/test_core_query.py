"""The query of a read."""

import pytest

from durable_streamsd.core.offsets import EARLIEST, NOW, Offset
from durable_streamsd.core.problems import Code, Problem
from durable_streamsd.core.query import Live, Query, parse_query

TOKEN = b"0000000000000007_0000000000000042"


@pytest.mark.parametrize(
    ("raw", "query"),
    [
        (b"", Query(EARLIEST, None, None)),
        (b"offset=-1", Query(EARLIEST, None, None)),
        (b"offset=" + TOKEN, Query(Offset(7, 42), None, None)),
        (b"%6Fffset=now&live=l%6Fng-poll", Query(NOW, Live.LONG_POLL, None)),
        (b"cursor=12&live=sse&offset=" + TOKEN, Query(Offset(7, 42), Live.SSE, 12)),
        (b"foo=1&foo=2&offset=now&=&&bar", Query(NOW, None, None)),
        (b"offset=now&cursor=x&cursor=-1", Query(NOW, None, None)),
    ],
)
def test_parameters(raw: bytes, query: Query) -> None:
    """Known parameters are decoded, unknown ones and junk cursors are ignored."""
    assert parse_query(raw) == query


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"offset=", Code.BAD_OFFSET),
        (b"offset", Code.BAD_OFFSET),
        (b"offset=-1&offset=-1", Code.BAD_OFFSET),
        (b"offset=-1&%6Fffset=now", Code.BAD_OFFSET),
        (b"offset=" + TOKEN + b"%0A", Code.BAD_OFFSET),
        (b"offset=a%2Cb", Code.BAD_OFFSET),
        (b"offset=a+b", Code.BAD_OFFSET),
        (b"offset=%zz", Code.BAD_OFFSET),
        (b"live=sse", Code.OFFSET_REQUIRED),
        (b"live=long-poll&cursor=1", Code.OFFSET_REQUIRED),
        (b"offset=-1&live=", Code.BAD_LIVE_MODE),
        (b"offset=-1&live=SSE", Code.BAD_LIVE_MODE),
        (b"offset=-1&live=sse&live=sse", Code.BAD_LIVE_MODE),
    ],
)
def test_refusals(raw: bytes, code: Code) -> None:
    """Empty, repeated, malformed and missing parameters are refused, each with its own code."""
    with pytest.raises(Problem) as caught:
        parse_query(raw)
    assert caught.value.code is code
