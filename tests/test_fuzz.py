"""Every parser under arbitrary bytes, bounded; `fuzz_targets.py` says how to run it for long."""

import fuzz_targets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.errors import FramingError
from storage.framing import message_lengths

EXAMPLES_MAX = 600


@pytest.mark.parametrize("name", fuzz_targets.TARGETS)
def test_parser_keeps_its_promises(name: str) -> None:
    """Only typed errors, the same bytes when written again, and agreement with plain reading."""
    pieces = list(fuzz_targets.seeds(name))
    piece = st.one_of(st.sampled_from(pieces), st.binary(max_size=12))
    arbitrary = st.one_of(
        st.lists(piece, max_size=12).map(b"".join),
        st.tuples(st.sampled_from(pieces), st.integers(0, 200), st.integers(0, 255)).map(changed),
        st.binary(max_size=200),
    )

    @settings(max_examples=EXAMPLES_MAX, deadline=None, print_blob=True)
    @given(arbitrary)
    def check(data: bytes) -> None:
        fuzz_targets.TARGETS[name](data)

    check()


def changed(drawn: tuple[bytes, int, int]) -> bytes:
    """Bytes of which one has another value."""
    data, at, value = drawn
    if not data:
        return bytes([value])
    at %= len(data)
    return data[:at] + bytes([value]) + data[at + 1 :]


@pytest.mark.parametrize("data", [b"1", b"[", b"1x", b"1,2", b"\xff\\u1", b'"', b"[1,", b" "])
def test_payload_that_is_not_whole_messages_is_refused(data: bytes) -> None:
    """What no JSON stream stores is a `FramingError`: not fewer messages, and nothing else."""
    with pytest.raises(FramingError):
        message_lengths(data)


@pytest.mark.parametrize("name", fuzz_targets.TARGETS)
def test_parser_takes_its_seeds(name: str) -> None:
    """The inputs that a long run begins with pass."""
    for seed in fuzz_targets.seeds(name):
        fuzz_targets.TARGETS[name](seed)
