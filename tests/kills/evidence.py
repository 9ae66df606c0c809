"""What the journals say, joined: incarnations of streams, appends with their attempts, reads.

Nothing here is judged. Times only say what is sure: a request was carried out, if at all, between
the first time it was sent and the first time it was acknowledged.

Part of the checker; knows nothing of the server.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

from kills.journal import CREATE, Attempt, Done, Event, Intent, Miss, Nonsense, Read, Send
from kills.messages import Message, incarnation_of

NEVER = float("inf")


@dataclass
class Append:
    """One append and every request for it."""

    send: Send
    attempts: list[Attempt] = field(default_factory=list)

    @property
    def incarnation(self) -> str:
        """The incarnation that it was meant for."""
        return self.send.incarnation

    @cached_property
    def successes(self) -> list[Attempt]:
        """The attempts that were acknowledged."""
        good = (200, 201) if self.send.put else (200, 204)
        return [attempt for attempt in self.attempts if attempt.status in good]

    @cached_property
    def in_doubt(self) -> bool:
        """Whether an attempt ended without a verdict."""
        return any(is_unknown(attempt) for attempt in self.attempts)

    @cached_property
    def acknowledged_at(self) -> float:
        """When its sender knew that it is there."""
        known = [attempt.ended for attempt in self.successes]
        if self.in_doubt:
            known += [a.ended for a in self.attempts if a.code == "stream-seq-regression"]
        return min(known, default=NEVER)

    @property
    def acknowledged(self) -> bool:
        """Whether it has to be there."""
        return self.acknowledged_at < NEVER

    @property
    def refused(self) -> bool:
        """Whether it must not be there."""
        return bool(self.attempts) and not self.acknowledged and not self.in_doubt

    @property
    def own_offset(self) -> str:
        """The offset told for the end of this very append; empty when it was not."""
        if self.send.put or not self.send.messages:
            return ""
        own = 204 if self.send.producer is None else 200
        return next((a.offset for a in self.attempts if a.status == own), "")


@dataclass
class Run:
    """One reader's way through a stream, from its start."""

    name: str
    path: str
    reads: list[Read] = field(default_factory=list)

    @cached_property
    def messages(self) -> list[tuple[str, str]]:
        """All (id, digest) read."""
        return [(message[0], message[1]) for read in self.reads for message in read.messages]


@dataclass
class Contents:
    """A stream as read to its end in one go: by the checker, after the run."""

    exists: bool
    messages: list[Message]
    closed: bool
    tail: str
    places: list[tuple[str, int]]
    """(offset, position) of each chunk's end."""
    garbage: str
    started: float
    ended: float


@dataclass
class Incarnation:
    """One life of the stream at a path."""

    name: str
    path: str
    media_type: str
    ttl_s: int | None
    created_from: float
    created_at: float = NEVER
    deleted_from: float = NEVER
    deleted_at: float = NEVER
    missed_at: float = NEVER
    """When it was first seen to have expired."""
    appends: list[Append] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    accesses: list[tuple[float, float]] = field(default_factory=list)
    final: Contents | None = None
    dones: list[Done] = field(default_factory=list)

    @property
    def gone_at(self) -> float:
        """From when on nobody may see it."""
        return min(self.deleted_at, self.missed_at)

    @cached_property
    def by_message(self) -> dict[str, tuple[Append, str]]:
        """The append and the digest of each message that was sent to it."""
        return {
            message_id: (append, digest)
            for append in self.appends
            for message_id, digest, _ in append.send.messages
        }

    @cached_property
    def reference(self) -> list[tuple[str, str]]:
        """What it holds: as read at the end, or the most that a reader saw while it was there."""
        if self.final is not None and self.final.exists:
            return [(message.id, message.digest) for message in self.final.messages]
        return max((run.messages for run in self.runs), key=len, default=[])

    def surely_there(self, started: float, ended: float) -> bool:
        """Whether a request with these times must have found it."""
        if not (self.created_at < started and ended < self.deleted_from):
            return False
        if self.ttl_s is None:
            return True
        # Another access may have begun and not have been carried out: those that ended count.
        last = max((begun for begun, over in self.accesses if over < started), default=0.0)
        return ended < last + self.ttl_s


class Evidence:
    """Everything that is known of a run."""

    def __init__(self, events: Iterable[Event]) -> None:
        self.incarnations: dict[str, Incarnation] = {}
        self.paths: dict[str, list[Incarnation]] = defaultdict(list)
        self.appends: dict[str, Append] = {}
        self.runs: dict[str, Run] = {}
        self.misses: list[Miss] = []
        self.nonsense: list[Nonsense] = []
        dones = []
        attempts = []
        for event in events:
            match event:
                case Intent():
                    self._intend(event)
                case Done():
                    dones.append(event)
                case Send():
                    self.appends[event.key] = Append(event)
                case Attempt():
                    attempts.append(event)
                case Read():
                    run = self.runs.setdefault(event.run, Run(event.run, event.path))
                    run.reads.append(event)
                case Miss():
                    self.misses.append(event)
                case Nonsense():
                    self.nonsense.append(event)
        self._join(dones, attempts)

    def _intend(self, event: Intent) -> None:
        if event.what == CREATE:
            incarnation = Incarnation(
                event.incarnation, event.path, event.media_type, event.ttl_s, event.at
            )
            self.incarnations[event.incarnation] = incarnation
            self.paths[event.path].append(incarnation)
        else:
            self.incarnations[event.incarnation].deleted_from = event.at

    def _join(self, dones: list[Done], attempts: list[Attempt]) -> None:
        for done in dones:
            incarnation = self.incarnations[done.incarnation]
            incarnation.dones.append(done)
            if done.what == CREATE and done.status in (200, 201):
                incarnation.created_at = done.ended
                incarnation.accesses.append((done.started, done.ended))
            elif done.what != CREATE and done.status in (204, 404):
                incarnation.deleted_at = done.ended
        for attempt in sorted(attempts, key=lambda attempt: attempt.started):
            self.appends[attempt.key].attempts.append(attempt)
        for append in self.appends.values():
            incarnation = self.incarnations[append.incarnation]
            incarnation.appends.append(append)
            incarnation.accesses += [(a.started, a.ended) for a in append.successes]
        for run in self.runs.values():
            owner = self._owner_of(run)
            if owner is not None:
                owner.runs.append(run)
                owner.accesses += [(read.started, read.ended) for read in run.reads]
        for miss in self.misses:
            current = self.current(miss.path, miss.started, miss.ended)
            if miss.status == 404 and current is not None and current.ttl_s is not None:
                current.missed_at = min(current.missed_at, miss.ended)

    def _owner_of(self, run: Run) -> Incarnation | None:
        if run.messages:
            return self.incarnations.get(incarnation_of(run.messages[0][0]))
        first, last = run.reads[0], run.reads[-1]
        return self.current(run.path, first.started, last.ended)

    def current(self, path: str, started: float, ended: float) -> Incarnation | None:
        """The incarnation that alone can have answered a request with these times, if there is one.

        It may have been gone by then: that is for the caller to ask.
        """
        for incarnation, following in self._pairs(path):
            next_from = NEVER if following is None else following.created_from
            if incarnation.created_at < started and ended < next_from:
                return incarnation
        return None

    def surely_free(self, path: str, started: float, ended: float) -> Incarnation | None:
        """The incarnation whose end left the path free for all of these times, if one did."""
        incarnation = self.current(path, started, ended)
        return incarnation if incarnation is not None and incarnation.gone_at < started else None

    def _pairs(self, path: str) -> Iterable[tuple[Incarnation, Incarnation | None]]:
        incarnations = self.paths.get(path, [])
        return zip(incarnations, [*incarnations[1:], None], strict=True)


def is_unknown(attempt: Attempt) -> bool:
    """Whether an attempt may or may not have been carried out."""
    return attempt.status == 0 or (attempt.status >= 500 and attempt.status != 507)
