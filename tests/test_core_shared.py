"""The bounded cache of encoded answers."""

from hypothesis import given
from hypothesis import strategies as st

from durable_streamsd.core.shared import SharedAnswers


def test_the_same_object_comes_back() -> None:
    """What was kept is handed out as it is, and only under its own key."""
    answers: SharedAnswers[bytes] = SharedAnswers()
    answer = bytes(100)
    answers.keep((1, 2), answer, 100)
    assert answers.get((1, 2)) is answer
    assert answers.get((1, 3)) is None
    answers.clear()
    assert answers.get((1, 2)) is None


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 120)), max_size=60))
def test_bounds_hold(kept: list[tuple[int, int]]) -> None:
    """Neither entries nor bytes pass their limits, and the newest that fits is always there."""
    answers: SharedAnswers[int] = SharedAnswers(entries_max=4, bytes_max=100)
    for key, size in kept:
        known = answers.get(key)
        answers.keep(key, size, size)
        expected = known if known is not None else size if size <= 100 else None
        assert answers.get(key) == expected
        sizes = [found for found in map(answers.get, range(10)) if found is not None]
        assert len(sizes) <= 4
        assert sum(sizes) <= 100
