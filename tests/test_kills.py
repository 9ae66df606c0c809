"""Real kills: a bounded run in which every guarantee holds, and proof that the checker can fail.

The runs are `kills.run`: tens of writers and readers, a daemon killed about a dozen times, and the
checker; once with power cuts (as root). The other tests tell the checker stories in which one thing
did not happen as the journal says, and see it name the guarantee that this breaks. Longer runs by
hand:

    PYTHONPATH=tests python -m kills.run --kills 200 --seconds-max 600 --seed 1
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from daemon import ROOT, Daemon
from kills import validators
from kills.checker import Checker, Server
from kills.journal import (
    CREATE,
    DELETE,
    Attempt,
    Done,
    Intent,
    Journal,
    ProducerTuple,
    Read,
    Send,
)
from kills.messages import TEXT, digest_of, make_message
from kills.writers import append_headers

KILLS = 12
POWER_CUTS = 6
RUN_SECONDS_MAX = 25
WHOLE_SECONDS_MAX = 120


def run(*options: str) -> None:
    """A kill run by its own program; what it prints, the command to repeat it too, if it fails."""
    command = [sys.executable, "-m", "kills.run", "--seconds-max", str(RUN_SECONDS_MAX), *options]
    result = subprocess.run(
        command,
        cwd=ROOT / "tests",
        env={**os.environ, "PYTHONPATH": str(ROOT / "tests")},
        capture_output=True,
        text=True,
        timeout=WHOLE_SECONDS_MAX,
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_guarantee_holds_through_a_dozen_kills() -> None:
    """Tens of producers and readers, a dozen kills of all kinds, and nothing is broken."""
    run("--kills", str(KILLS), "--seed", "3")


def test_every_guarantee_holds_through_power_cuts() -> None:
    """The same when each kill also loses what had not reached the disk."""
    run("--kills", str(POWER_CUTS), "--seed", "3", "--power-cuts")


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One daemon for all stories; nobody kills it."""
    with Daemon(tmp_path_factory.mktemp("kills") / "data") as running:
        yield running


class Story:
    """One stream whose journal and whose life can be told apart.

    What is done with `really=False` is only in the journal, with `journal=False` only done.
    """

    def __init__(self, url: str, folder: Path) -> None:
        self.folder = folder
        self.server = Server(url)
        self.path = f"stories/{time.monotonic_ns()}"
        self.incarnation = "story#0"
        self.journal = Journal(folder, "story")
        self._rng = random.Random(1)
        self._numbers: dict[str, int] = {}
        self._keys = 0
        now = time.monotonic()
        self.journal.write(Intent(CREATE, self.path, self.incarnation, TEXT, None, now))
        answer = self.server.ask("PUT", self.path, {"Content-Type": TEXT})
        self._done(CREATE, answer.status, now)

    def _done(self, what: str, status: int, started: float) -> None:
        self.journal.write(
            Done(what, self.incarnation, status, False, "", started, time.monotonic())
        )

    def message(self, writer: str = "a") -> tuple[str, bytes]:
        """The next message of a writer."""
        number = self._numbers[writer] = self._numbers.get(writer, -1) + 1
        message_id = f"{self.incarnation}/{writer}/{number}"
        return message_id, make_message(TEXT, message_id, self._rng)

    def append(
        self,
        *messages: tuple[str, bytes],
        really: bool = True,
        journal: bool = True,
        closes: bool = False,
        producer: ProducerTuple | None = None,
        sent_producer: bool = True,
        offset: str = "",
        status: int = 0,
        first_status: int | None = None,
    ) -> None:
        """One append of the messages (one new one if none are given), acknowledged."""
        messages = messages or (self.message(),)
        key = f"{self.incarnation}:{self._keys}"
        self._keys += 1
        if journal:
            named = [(name, digest_of(data), len(data)) for name, data in messages]
            now = time.monotonic()
            self.journal.write(
                Send(key, self.incarnation, named, closes, producer, None, False, now)
            )
        if first_status is not None:
            self.attempt(key, first_status)
        if really:
            headers = append_headers(TEXT, closes, producer if sent_producer else None, None)
            body = b"".join(data for _, data in messages)
            answer = self.server.ask("POST", self.path, headers, body)
            offset = offset or answer.headers["Stream-Next-Offset"]
        if journal:
            status = status or (204 if producer is None else 200)
            self.attempt(key, status, offset if status < 300 else "")

    def attempt(self, key: str, status: int, offset: str = "") -> None:
        """A line on an attempt."""
        now = time.monotonic()
        self.journal.write(Attempt(key, status, "", offset, now, now))

    def read(self, *extra: tuple[str, bytes], closed: bool = False) -> None:
        """A reader reads everything, and, by its journal, more."""
        started = time.monotonic()
        contents = self.server.read(self.path, TEXT)
        seen = [(message.id, message.digest) for message in contents.messages]
        seen += [(name, digest_of(data)) for name, data in extra]
        size = sum(message.size for message in contents.messages) + sum(
            len(data) for _, data in extra
        )
        end = "somewhere" if extra else contents.tail
        now = time.monotonic()
        run = f"run{now}"
        self.journal.write(
            Read(run, self.path, "sse", "-1", end, seen, size, True, closed, started, now)
        )

    def delete(self, *, really: bool = True, journal: bool = True) -> None:
        """Delete the stream."""
        now = time.monotonic()
        if journal:
            self.journal.write(Intent(DELETE, self.path, self.incarnation, TEXT, None, now))
        if really:
            self.server.ask("DELETE", self.path)
        if journal:
            self._done(DELETE, 204, now)

    def check(self) -> dict[str, list[str]]:
        """What the checker says."""
        self.journal.close()
        checker = Checker(self.server, self.folder, random.Random(1))
        checker.run()
        return {name: list(said) for name, said in checker.report.violations.items()}


@pytest.fixture
def story(daemon: Daemon, tmp_path: Path) -> Story:
    """A story that begins with a few honest appends and a reader who saw them."""
    told = Story(daemon.url, tmp_path)
    for seq in range(3):
        told.append()
        told.append(told.message("p"), producer=("p", 0, seq))
    told.read()
    return told


def test_an_honest_story_breaks_nothing(story: Story) -> None:
    """Appends, a repeated one, a read and a close that happened as the journal says pass."""
    story.append(closes=True)
    story.read(closed=True)
    assert story.check() == {}


def test_an_honest_deletion_breaks_nothing(story: Story) -> None:
    """A stream that was deleted and is gone passes."""
    story.delete()
    assert story.check() == {}


def lose(story: Story) -> None:
    """An acknowledged append is not there."""
    story.append(really=False)


def lose_the_stream(story: Story) -> None:
    """A stream is not there that nobody deleted."""
    story.delete(journal=False)


def lose_from_a_reader(story: Story) -> None:
    """A reader is told that it is up to date without a message acknowledged before."""
    lost = story.message()
    story.append(lost, really=False)
    story.read()
    story.append(lost, journal=False)


def repeat(story: Story) -> None:
    """A message is there twice."""
    twice = story.message()
    story.append(twice)
    story.append(twice, journal=False)


def keep_the_refused(story: Story) -> None:
    """A refused append is there."""
    story.append(status=409)


def swap_one_writers(story: Story) -> None:
    """Two messages of one writer lie the wrong way round."""
    first, second = story.message(), story.message()
    story.append(second, journal=False)
    story.append(first)
    story.append(second, really=False)


def swap_two_writers(story: Story) -> None:
    """A message lies before one that was acknowledged before it was sent."""
    first, second = story.message("x"), story.message("y")
    story.append(second, journal=False)
    story.append(first)
    story.append(second, really=False)


def tear_apart(story: Story) -> None:
    """Another message lies inside an append of two."""
    one, two, other = story.message("x"), story.message("x"), story.message("y")
    for message in (one, other, two):
        story.append(message, journal=False)
    story.append(one, two, really=False)
    story.append(other, really=False)


def keep_half(story: Story) -> None:
    """Half an append is there."""
    one, two = story.message("x"), story.message("x")
    story.append(one, journal=False)
    story.append(one, two, really=False, status=503)


def change_a_byte(story: Story) -> None:
    """A message has another byte than was sent."""
    name, data = story.message("x")
    story.append((name, data[:-1] + b"?"), journal=False)
    story.append((name, data), really=False)


def invent(story: Story) -> None:
    """A message is there that nobody sent."""
    story.append(journal=False)


def reopen(story: Story) -> None:
    """A stream that was closed is open."""
    last = story.message()
    story.append(last, journal=False)
    story.append(last, closes=True, really=False)


def close_without_a_close(story: Story) -> None:
    """A stream is closed that nobody closed."""
    message = story.message()
    story.append(message, closes=True, journal=False)
    story.append(message, really=False)


def accept_after_the_close(story: Story) -> None:
    """An append is accepted after the close."""
    last = story.message()
    story.append(last, really=False, closes=True)
    story.append(last, journal=False)
    story.append()


def raise_from_the_dead(story: Story) -> None:
    """A stream that was deleted is there."""
    story.delete(really=False)


def read_after_the_deletion(story: Story) -> None:
    """A reader reads a stream after its deletion."""
    story.delete(really=False)
    story.read()
    story.delete(journal=False)


def show_what_is_gone(story: Story) -> None:
    """A reader was shown a message that is not there (its sender never knew)."""
    vanished = story.message()
    story.append(vanished, really=False, status=503)
    story.read(vanished)


def forget_a_producer(story: Story) -> None:
    """A producer's data is there, and its state is not."""
    story.append(story.message("q"), producer=("q", 0, 0), sent_producer=False)


def call_a_first_a_duplicate(story: Story) -> None:
    """A request is called a duplicate that was never sent before."""
    story.append(story.message("q"), producer=("q", 0, 0), status=204)


def move_an_offset(story: Story) -> None:
    """An offset told to a writer is another place for a reader."""
    start = "0000000000000000_0000000000000000"
    before = story.server.read(story.path, TEXT).tail
    assert before != start
    story.append(offset=before)


def answer_500(story: Story) -> None:
    """A request is answered 500 before it is accepted."""
    story.append(first_status=500)


BROKEN = [
    (validators.acknowledged_is_present, lose),
    (validators.acknowledged_is_present, lose_the_stream),
    (validators.acknowledged_is_present, lose_from_a_reader),
    (validators.exactly_once, repeat),
    (validators.exactly_once, keep_the_refused),
    (validators.in_order, swap_one_writers),
    (validators.in_order, swap_two_writers),
    (validators.in_order, tear_apart),
    (validators.in_order, keep_half),
    (validators.bytes_identical, change_a_byte),
    (validators.bytes_identical, invent),
    (validators.closed_stays_closed, reopen),
    (validators.closed_stays_closed, close_without_a_close),
    (validators.closed_stays_closed, accept_after_the_close),
    (validators.deleted_stays_deleted, raise_from_the_dead),
    (validators.deleted_stays_deleted, read_after_the_deletion),
    (validators.no_reader_saw_what_is_gone, show_what_is_gone),
    (validators.producer_state_agrees_with_data, forget_a_producer),
    (validators.producer_state_agrees_with_data, call_a_first_a_duplicate),
    (validators.offsets_are_stable, move_an_offset),
    (validators.answers_are_the_protocols, answer_500),
]


@pytest.mark.parametrize(
    ("guarantee", "spoil"), BROKEN, ids=[spoil.__name__ for _, spoil in BROKEN]
)
def test_the_checker_names_the_guarantee_that_broke(
    guarantee: validators.Validator, spoil: Callable[[Story], None], story: Story
) -> None:
    """One thing that did not happen as the journal says is found, under its guarantee's name."""
    spoil(story)
    assert guarantee.__name__ in story.check()


def test_every_guarantee_has_a_story_that_breaks_it() -> None:
    """No validator is there that was never seen to fail."""
    assert {guarantee for guarantee, _ in BROKEN} == set(validators.VALIDATORS)
