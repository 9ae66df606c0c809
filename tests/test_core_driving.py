"""The contract of effects, and the driver with which the handlers' tests keep it.

`Driver` performs every effect at once and in place, against a real store in a directory of its
own; only `Wake` waits, until the test lets the driver look again or lets the time run out.
"""

import json
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from durable_streamsd.core.context import Context, Options
from durable_streamsd.core.effects import (
    Durable,
    Effect,
    Offload,
    Resident,
    Room,
    Send,
    StartStream,
    Wake,
)
from durable_streamsd.core.message import Frame, Request, Response
from durable_streamsd.core.router import direct_of, dispatch, failure
from storage.errors import CommitError, StorageError
from storage.limits import Limits
from storage.store import Store

ROOT = b"/v1/stream/"
SMALL = Limits(reserve_bytes=4_096, zero_ahead_bytes=0)


class Exchange:
    """A request that is under way, or over: what was answered, and what it waits for."""

    def __init__(
        self, driver: "Driver", coroutine: Coroutine[Effect[Any], Any, Response | None]
    ) -> None:
        self.driver = driver
        self.coroutine = coroutine
        self.effects: list[str] = []
        self.waiting: Effect[Any] | None = None
        self.head: Response | None = None
        self.frames: list[Frame] = []
        self.response: Response | None = None
        self.over = False

    def advance(self, result: object = None, error: Exception | None = None) -> "Exchange":
        """Resume the handler, and perform what it asks for until it waits or ends."""
        try:
            while True:
                if error is None:
                    effect = self.coroutine.send(result)
                else:
                    effect = self.coroutine.throw(error)
                self.effects.append(type(effect).__name__)
                result, error = None, None
                try:
                    if self.driver.holds(effect):
                        self.waiting = effect
                        return self
                    result = self.driver.perform(self, effect)
                except StorageError as failure:
                    error = failure
        except StopIteration as end:
            self.response = end.value
            self.over = True
        self.waiting = None
        return self

    def look_again(self) -> "Exchange":
        """What the hub does after a commit: resume if there is news."""
        wake = self.waiting
        assert isinstance(wake, Wake)
        if self.driver.direct and wake.follower is not None:
            frame = wake.follower.next_frame()
            if frame is not None:
                self.frames.append(frame)
                wake.offset = wake.follower.seen
        return self.advance(True) if wake.due else self

    def time_out(self) -> "Exchange":
        """Let the time of a wait run out, on the driver's clock too."""
        assert isinstance(self.waiting, Wake)
        self.driver.time_s += self.waiting.timeout_s
        return self.advance(False)

    def lose_connection(self) -> None:
        """Cancel the handler."""
        self.coroutine.close()
        self.over = True

    @property
    def answer(self) -> Response:
        """The answer, once there is one."""
        assert self.response is not None, f"waits for {self.waiting}"
        return self.response

    @property
    def status(self) -> int:
        """The answer's status."""
        return self.answer.status

    @property
    def fields(self) -> dict[str, str]:
        """The answer's header fields, or those of the event stream's head."""
        pairs = (self.head or self.answer).fields()
        assert len(pairs) == len(dict(pairs)), "a header came twice"
        return dict(pairs)

    @property
    def next_offset(self) -> bytes:
        """`Stream-Next-Offset`."""
        return self.fields["Stream-Next-Offset"].encode()

    @property
    def code(self) -> str:
        """The code of a problem."""
        assert self.fields["Content-Type"] == "application/problem+json"
        code = json.loads(self.answer.body or b"")["code"]
        assert isinstance(code, str)
        return code


async def attempt_first(request: Request, context: Context) -> Response | None:
    """As the express lane does: directly if that is possible, otherwise by `dispatch`."""
    target = b"%b?%b" % (request.path, request.query) if request.query else request.path
    direct = direct_of(request.method, target, request.headers, context)
    answer = direct.attempt(request.body, context) if direct is not None else None
    if answer is not None and answer.rests_on is not None:
        try:
            await Durable(answer.rests_on)
        except CommitError as error:
            return failure(error, context)
    return answer or await dispatch(request, context)


class Driver:
    """A store, a context, a clock, and requests performed in place.

    `direct`: by the short way where there is one.
    """

    def __init__(
        self,
        directory: Path,
        options: Options | None = None,
        limits: Limits = SMALL,
        *,
        direct: bool = False,
    ) -> None:
        self.direct = direct
        self.store = Store.open(directory, limits)
        self.time_s = 1_000.0
        self.context = Context(self.store, options, monotonic_s=lambda: self.time_s, seed=1)
        self.held: tuple[type[Effect[Any]], ...] = (Wake,)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.store.close()

    def holds(self, effect: Effect[Any]) -> bool:
        """Whether to stop at this effect, for the test to go on."""
        if isinstance(effect, Wake) and (effect.due or self.context.draining):
            return False
        return isinstance(effect, self.held)

    def perform(self, exchange: Exchange, effect: Effect[Any]) -> object:
        """The effect's result. Raises what a failed batch or look-up raises."""
        match effect:
            case Durable():
                failures: list[CommitError | None] = []
                effect.batch.waiters.append(failures.append)
                self.store.commit()
                if failures[0] is not None:
                    raise failures[0]
            case Resident():
                self.store.admit(self.store.load(effect.path))
            case Offload():
                return effect.call()
            case Room():
                self.store.commit()
                while not self.store.accepting:
                    self.store.index_step()
            case StartStream():
                exchange.head = effect.response
            case Send():
                exchange.frames.append(effect.frame)
            case Wake():
                return effect.due
        return None

    def request(
        self,
        method: str,
        path: bytes,
        query: bytes = b"",
        headers: dict[str, str] | None = None,
        body: bytes = b"",
    ) -> Exchange:
        """Begin a request for a stream, or for a target that begins with a slash."""
        target = path if path.startswith(b"/") else ROOT + path
        fields = {"Host": "example.org:4437", **(headers or {})}
        encoded = {name.lower().encode(): value.encode() for name, value in fields.items()}
        request = Request(method, target, query, encoded, body)
        answer = attempt_first if self.direct else dispatch
        return Exchange(self, answer(request, self.context)).advance()

    def create(self, path: bytes, content_type: str = "text/plain", body: bytes = b"") -> Exchange:
        """PUT a stream."""
        exchange = self.request("PUT", path, headers={"Content-Type": content_type}, body=body)
        assert exchange.status in (200, 201)
        return exchange

    def append(
        self, path: bytes, body: bytes, content_type: str = "text/plain", **headers: str
    ) -> Exchange:
        """POST to a stream; keyword arguments are headers (`Stream_Seq="1"`)."""
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.request("POST", path, b"", {"Content-Type": content_type, **fields}, body)

    def close_stream(self, path: bytes) -> Exchange:
        """POST that only closes."""
        return self.request("POST", path, headers={"Stream-Closed": "true"})

    def get(self, path: bytes, query: bytes = b"", **headers: str) -> Exchange:
        """GET a stream."""
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.request("GET", path, query, fields)

    def reopen(self) -> None:
        """Stop the store cleanly and open its directory again: nothing is resident then."""
        directory, limits = self.store.directory.path, self.store.limits
        self.store.close()
        self.store = Store.open(directory, limits)
        self.context.store = self.store


@pytest.fixture(params=[False, True], ids=["dispatched", "direct"])
def driver(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Driver]:
    """A driver with the default options, for either way to an answer."""
    with Driver(tmp_path / "data", direct=request.param) as opened:
        yield opened


def test_effects_are_yielded_one_at_a_time(driver: Driver) -> None:
    """A PUT to a path not yet known loads it, then waits for its batch, then answers."""
    assert driver.create(b"a").effects == ["Resident", "Durable"]
    assert driver.append(b"a", b"x").effects == ["Durable"]
    assert driver.get(b"a").effects == []


def test_nothing_is_answered_before_it_is_durable(driver: Driver) -> None:
    """While the batch is open neither writer nor reader is told of it, nor is a second PUT."""
    driver.create(b"a")
    driver.held = (Wake, Durable)
    first = driver.append(b"a", b"x")
    assert isinstance(first.waiting, Durable)
    assert driver.get(b"a").answer.body == b""
    closing = driver.close_stream(b"a")
    repeated = driver.request("PUT", b"a", headers={"Content-Type": "text/plain"})
    assert isinstance(repeated.waiting, Durable), "a refusal that rests on accepted state"
    assert driver.store.commit() is None
    assert first.advance().status == closing.advance().status == 204
    assert repeated.advance().code == "config-conflict"
    assert driver.get(b"a").answer.body == b"x"


def test_refusals_wait_for_what_they_rest_on(driver: Driver) -> None:
    """A retry, and an append after a close, are not answered while the batch is open."""
    driver.create(b"a")
    driver.held = (Wake, Durable)
    numbers = {"Producer_Id": "p", "Producer_Epoch": "0", "Producer_Seq": "0"}
    exchanges = [driver.append(b"a", b"x", **numbers) for _ in range(2)]
    exchanges += [driver.close_stream(b"a"), driver.append(b"a", b"y")]
    assert all(isinstance(exchange.waiting, Durable) for exchange in exchanges)
    driver.store.commit()
    assert [exchange.advance().status for exchange in exchanges] == [200, 204, 204, 409]


def test_a_deletion_under_way_is_waited_for(driver: Driver) -> None:
    """A path whose stream is being deleted is 404 only once the deletion is durable."""
    driver.create(b"a")
    driver.held = (Wake, Durable)
    deletion = driver.request("DELETE", b"a")
    append = driver.append(b"a", b"x")
    assert isinstance(append.waiting, Durable)
    assert driver.get(b"a").status == 200
    driver.store.commit()
    assert deletion.advance().status == 204
    assert append.advance().status == 404


def test_an_abandoned_append_stays_accepted(driver: Driver) -> None:
    """Losing the connection while the batch is open changes nothing about the batch."""
    driver.create(b"a")
    driver.held = (Durable,)
    driver.append(b"a", b"x").lose_connection()
    driver.store.commit()
    assert driver.get(b"a").answer.body == b"x"


@pytest.mark.parametrize(
    ("offset", "closed_seen", "due"), [(0, False, True), (1, False, True), (1, True, False)]
)
def test_wake_says_when_there_is_news(
    driver: Driver, offset: int, closed_seen: bool, due: bool
) -> None:
    """Data past the offset, or a closure not yet seen, is news."""
    driver.create(b"a", body=b"x")
    driver.close_stream(b"a")
    stream = driver.store.visible(b"a")
    assert stream is not None
    assert Wake(stream, offset, closed_seen, 1.0).due is due


def test_deletion_is_news(driver: Driver) -> None:
    """A stream that is durably gone wakes whoever waits for it."""
    driver.create(b"a")
    stream = driver.store.visible(b"a")
    assert stream is not None
    wake = Wake(stream, 0, True, 1.0)
    assert not wake.due
    assert driver.request("DELETE", b"a").status == 204
    assert wake.due
