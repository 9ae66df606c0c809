"""The gate by itself: whatever a request brings along, it is a caller or a refusal."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from durable_streamsd.auth.gate import Gate
from durable_streamsd.auth.jwt_check import JwtRules
from durable_streamsd.auth.jwt_keys import parse_keys
from durable_streamsd.auth.reader_tokens import make_reader_token, read_reader_token, reader_key
from durable_streamsd.auth.scopes import Right, Scopes
from durable_streamsd.auth.token_file import Document, Entry, build_table, digest_of, new_token
from durable_streamsd.core.problems import Problem

NOW_MS = 1_800_000_000_000
SECRET = bytes(range(32))
TOKEN = new_token()


def gate_with(*tokens: str, scope: str = "read:a/**") -> Gate:
    gate = Gate(Scopes(), JwtRules(None, None, "scope"), lambda: NOW_MS, lambda: SECRET)
    put(gate, *tokens, scope=scope)
    return gate


def put(
    gate: Gate, *tokens: str, scope: str = "read:a/**", expires_at: datetime | None = None
) -> bool:
    entries = [
        Entry(
            id=f"{number:08x}",
            name=f"n{number}",
            sha256=digest_of(token.encode()).hex(),
            scopes=[scope],
            created_at=datetime(2026, 1, 1, tzinfo=UTC),
            expires_at=expires_at,
        )
        for number, token in enumerate(tokens, 1)
    ]
    return gate.put_tokens(build_table(Document(version=1, tokens=entries), Scopes(), gate.tokens))


GATE = gate_with(TOKEN)
GATE.put_keys(parse_keys(b"a secret of more than thirty-two bytes", private=True))

TOKENS = st.sampled_from([TOKEN, TOKEN[:-1], "dsr_" + "A" * 59, "e30.e30.e30", "", "=", "a b"])
HEADERS = st.binary(max_size=64) | st.builds(
    lambda scheme, space, token, rest: (scheme + space + token).encode() + rest,
    st.sampled_from(["Bearer", "bearer", "BEARER", "Basic", "Bearer,", ""]),
    st.sampled_from([" ", "  ", "\t", "", ", Bearer "]),
    TOKENS,
    st.binary(max_size=3),
)


@given(HEADERS, st.binary(max_size=80) | TOKENS.map(str.encode), st.sampled_from([None, b"a/b"]))
@example(f"Bearer {TOKEN}".encode(), b"", b"a/b")
def test_any_credentials_are_judged(header: bytes, query: bytes, path: bytes | None) -> None:
    """Nothing but 400, 401 and somebody comes of any header and any query; the one who is somebody
    sent the very token."""
    try:
        caller = GATE.caller({b"authorization": header}, path, query)
    except Problem as problem:
        assert problem.code.status in (400, 401)
        assert any(line.startswith(b"WWW-Authenticate: Bearer") for line in problem.lines)
        return
    if caller is not GATE.anonymous:
        assert header.split(None, 1)[1].strip() == TOKEN.encode()
        assert not query


@given(st.binary(max_size=20), st.binary(max_size=20), st.integers(0, 58), st.integers(0, 63))
def test_a_reader_token_is_for_its_path_alone(
    path: bytes, other: bytes, place: int, letter: int
) -> None:
    """For another path, with another key, or with a letter changed it says nothing."""
    key = reader_key(SECRET)
    token = make_reader_token(key, path, 5, b"\1\2\3\4")
    said = read_reader_token(key, token.encode(), path)
    assert said == (5, b"\1\2\3\4")
    if other != path:
        assert read_reader_token(key, token.encode(), other) is None
    assert read_reader_token(reader_key(b"another"), token.encode(), path) is None
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    changed = token[: 4 + place] + alphabet[letter] + token[5 + place :]
    # The last letter has two bits that stand for nothing.
    if changed != token and place < 58:
        assert read_reader_token(key, changed.encode(), path) is None


def test_changes_end_those_whom_they_concern() -> None:
    """A caller who is remembered is dead as soon as the token is gone, or has other scopes."""
    one, two = new_token(), new_token()
    gate = gate_with(one, two)
    headers = [{b"authorization": f"Bearer {token}".encode()} for token in (one, two)]
    first, second = map(gate.caller, headers)
    assert gate.caller(headers[0]) is first
    assert not put(gate, one, two)
    assert gate.caller(headers[0]) is first
    assert put(gate, one)
    assert (first.source.live, second.source.live) == (True, False)
    with pytest.raises(Problem):
        gate.caller(headers[1])
    assert put(gate, one, scope="append:a/**")
    assert not first.source.live
    assert gate.caller(headers[0]).scopes.rights(b"a/b") == Right.APPEND


def test_a_reader_is_its_lender_s_guest() -> None:
    """Once the lender is gone, has expired or may not read there, neither may the reader."""
    gate = gate_with(TOKEN)
    lender = gate.caller({b"authorization": f"Bearer {TOKEN}".encode()})
    expires_s = NOW_MS // 1_000 + 60
    lent = make_reader_token(reader_key(SECRET), b"a/b", expires_s, lender.token_id).encode()
    reader = gate.caller({}, b"a/b", lent)
    assert reader.may(Right.READ, b"a/b")
    assert not reader.may(Right.APPEND, b"a/b")
    assert not reader.may(Right.READ, b"a/c")
    put(gate, TOKEN, scope="read:other")
    assert not reader.source.live
    with pytest.raises(Problem):
        gate.caller({}, b"a/b", lent)
    put(gate, TOKEN)
    assert gate.caller({}, b"a/b", lent).may(Right.READ, b"a/b")
    put(gate, TOKEN, expires_at=datetime.fromtimestamp(NOW_MS / 1_000, UTC))
    with pytest.raises(Problem):
        gate.caller({}, b"a/b", lent)
