"""Error answers: their form, and that they say no more than they should."""

import json
import re

import pytest

from durable_streamsd.core.problems import Code, Problem, reserved_error

COMMON = b"X-Content-Type-Options: nosniff\r\n"


@pytest.mark.parametrize("code", Code)
def test_form(code: Code) -> None:
    """Every code makes a problem document with its status, and is never kept by a cache."""
    response = Problem(code, b"Allow: GET\r\n").response(COMMON)
    document = json.loads(response.body or b"")
    assert response.status == document["status"] == code.status
    assert document["code"] == code.code
    assert document["title"] == code.title
    fields = dict(response.fields())
    assert fields["Content-Type"] == "application/problem+json"
    assert fields["Cache-Control"] == "no-store"
    assert fields["X-Content-Type-Options"] == "nosniff"
    assert fields["Allow"] == "GET"


@pytest.mark.parametrize("code", Code)
def test_advice_is_one_sentence(code: Code) -> None:
    """Every code says in one sentence what to do, and its name is stable in form."""
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", code.code)
    assert re.fullmatch(r"[A-Z].*[^.]\.", code.advice)
    assert ". " not in code.advice
    assert not code.title.endswith(".")


def test_codes_are_unique() -> None:
    """Two members with equal values would silently become one."""
    assert len(Code.__members__) == len({code.code for code in Code})


@pytest.mark.parametrize("code", [Code.OUT_OF_SPACE, Code.OUTCOME_UNKNOWN, Code.NOT_READY])
def test_refusals_that_pass_say_when(code: Code) -> None:
    """503 and 507 carry Retry-After, because clients retry every 5xx."""
    assert int(dict(Problem(code).response(COMMON).fields())["Retry-After"]) > 0


def test_detail_stands_before_the_advice() -> None:
    """What exactly was wrong is said first, and is escaped like all JSON."""
    response = Problem(Code.BAD_JSON, detail='The body has a "quote".').response(COMMON)
    detail = json.loads(response.body or b"")["detail"]
    assert detail == f'The body has a "quote". {Code.BAD_JSON.advice}'


def test_reserved_routes_have_their_own_shape() -> None:
    """Control routes answer errors as plain JSON with `error.code` and `error.message`."""
    response = reserved_error(COMMON, 404, "NOT_FOUND", "Nothing.")
    assert response.status == 404
    assert dict(response.fields())["Content-Type"] == "application/json"
    assert json.loads(response.body or b"") == {
        "error": {"code": "NOT_FOUND", "message": "Nothing."}
    }


def test_a_missing_stream_is_told_whoever_asks() -> None:
    """The sentence suits users of HTTP and of the command line: it names no method of either."""
    document = json.loads(Problem(Code.NOT_FOUND).response(COMMON).body or b"")
    assert document["detail"] == "There is no stream at this path."
