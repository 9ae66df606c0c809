"""The checker of a kill run: the journals against what the server has at the end.

    python -m kills.checker --url URL --journals DIR

A program of its own. It shares no code with the server, speaks HTTP with the standard library, and
knows of offsets only that they are told. It reads every stream to its end, runs the validators
(`kills.validators`), reads on from offsets that were told long ago, and asks every producer's
state: the last acknowledged request again (a duplicate), the next one (accepted). What it sends
goes to a journal, too, so it can be run again, for instance after the index was rebuilt.

Prints a JSON document with what it counted and each violation under the guarantee's name. Exit
code 0 when there is none, else 1.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, urlencode, urlsplit

from kills.evidence import Append, Contents, Evidence, Incarnation
from kills.journal import Attempt, Journal, ProducerTuple, Send, read_journals
from kills.messages import JSON, Garbage, Message, Splitter, digest_of, make_message
from kills.validators import VALIDATORS, offsets_are_stable, producer_state_agrees_with_data

ANSWER_SECONDS_MAX = 60.0
OFFSETS_TRIED_PER_STREAM = 5
VIOLATIONS_SHOWN_PER_GUARANTEE = 20

STABLE = offsets_are_stable.__name__
AGREES = producer_state_agrees_with_data.__name__


class Answer(NamedTuple):
    """What the server said, and when."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    started: float
    ended: float

    @property
    def code(self) -> str:
        """The stable code of an error answer."""
        if "problem+json" not in (self.headers.get("Content-Type") or ""):
            return ""
        return str(json.loads(self.body)["code"])


class Server:
    """The server under test, which is up and stays up."""

    def __init__(self, url: str) -> None:
        self._connection = http.client.HTTPConnection(
            urlsplit(url).netloc, timeout=ANSWER_SECONDS_MAX
        )

    def ask(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        **query: str,
    ) -> Answer:
        """One request. Raises OSError when the server is not there."""
        target = "/v1/stream/" + quote(path) + ("?" + urlencode(query) if query else "")
        started = time.monotonic()
        self._connection.request(method, target, body, dict(headers or {}))
        response = self._connection.getresponse()
        data = response.read()
        told = dict(response.headers.items())
        return Answer(response.status, told, data, started, time.monotonic())

    def read(self, path: str, media_type: str) -> Contents:
        """A stream, from its start to its end."""
        splitter = Splitter(media_type)
        contents = Contents(True, [], False, "-1", [], "", time.monotonic(), 0.0)
        position = 0
        while not contents.ended:
            answer = self.ask("GET", path, offset=contents.tail)
            if answer.status == 404 and contents.tail == "-1":
                contents.exists = False
                contents.ended = answer.ended
                break
            if answer.status != 200:
                contents.garbage = f"reading on from {contents.tail} gave {answer.status}"
                contents.ended = answer.ended
                break
            try:
                messages = splitter.feed(answer.body)
            except Garbage as garbage:
                contents.garbage = str(garbage)
                messages = []
            contents.messages += messages
            position += len(messages) if media_type == JSON else len(answer.body)
            contents.tail = answer.headers["Stream-Next-Offset"]
            contents.places.append((contents.tail, position))
            contents.closed = "Stream-Closed" in answer.headers
            if "Stream-Up-To-Date" in answer.headers or contents.garbage:
                contents.ended = answer.ended
        if splitter.unfinished_bytes and not contents.garbage:
            contents.garbage = f"the last {splitter.unfinished_bytes} bytes are half a message"
        return contents


@dataclass
class Report:
    """Violations by guarantee, each once."""

    violations: dict[str, dict[str, None]] = field(default_factory=dict)

    def add(self, guarantee: str, sentence: str) -> None:
        """Note a violation."""
        self.violations.setdefault(guarantee, {})[sentence] = None

    def validate(self, evidence: Evidence) -> None:
        """Run all validators."""
        for validator in VALIDATORS:
            for sentence in validator(evidence):
                self.add(validator.__name__, sentence)


class Checker:
    """One check of one server against one folder of journals."""

    def __init__(self, server: Server, journals: Path, rng: random.Random) -> None:
        self._server = server
        self._journals = journals
        self._rng = rng
        self._journal = Journal(journals, "checker")
        self._name = f"probe{time.monotonic_ns()}"
        self._sent = 0
        self.report = Report()

    def run(self) -> dict[str, object]:
        """Check everything; what was counted."""
        evidence = self._look()
        self.report.validate(evidence)
        for incarnation in evidence.incarnations.values():
            if incarnation.final is not None and incarnation.final.exists:
                self._try_offsets(incarnation)
        counts = count(evidence)
        probes = self._probe_all(evidence)
        self._journal.close()
        # What the probes left behind has to hold as well.
        self.report.validate(self._look())
        return {**counts, "producers_asked": probes}

    def _look(self) -> Evidence:
        """The journals as they are now, with what each path has now."""
        evidence = Evidence(read_journals(self._journals))
        for path, incarnations in evidence.paths.items():
            last = incarnations[-1]
            last.final = self._server.read(path, last.media_type)
            head = self._server.ask("HEAD", path)
            tail = head.headers.get("Stream-Next-Offset")
            if last.final.exists and last.ttl_s is None and tail != last.final.tail:
                self.report.add(STABLE, f"{last.name}: HEAD and GET tell different tails")
        return evidence

    def _try_offsets(self, incarnation: Incarnation) -> None:
        """Read from offsets that were told to writers: what follows must be what lies behind."""
        final = incarnation.final
        assert final is not None
        index = {message.id: at for at, message in enumerate(final.messages)}
        told = [
            (append.own_offset, index[append.send.messages[-1][0]] + 1)
            for append in incarnation.appends
            if append.own_offset and append.send.messages[-1][0] in index
        ]
        for offset, at in self._rng.sample(told, k=min(len(told), OFFSETS_TRIED_PER_STREAM)):
            answer = self._server.ask("GET", incarnation.path, offset=offset)
            if answer.status == 404 and incarnation.ttl_s is not None:
                return
            found: list[Message] | str
            try:
                found = Splitter(incarnation.media_type).feed(answer.body)
            except Garbage as garbage:
                found = str(garbage)
            if answer.status != 200 or found != final.messages[at : at + len(found)]:
                self.report.add(
                    STABLE,
                    f"{incarnation.name}: reading from {offset} gave {answer.status} {found}",
                )
            elif not answer.body and at < len(final.messages):
                self.report.add(STABLE, f"{incarnation.name}: nothing follows {offset}")

    # Producers

    def _probe_all(self, evidence: Evidence) -> int:
        probes = 0
        for incarnation in evidence.incarnations.values():
            final = incarnation.final
            if final is None or not final.exists or incarnation.ttl_s is not None:
                continue
            for last in last_of_each_producer(incarnation):
                self._probe(incarnation, last, final.closed)
                probes += 1
            sequenced = [a for a in incarnation.appends if a.send.stream_seq and a.acknowledged]
            if sequenced and not final.closed:
                self._probe_stream_seq(incarnation, sequenced)
        return probes

    def _probe(self, incarnation: Incarnation, last: Append, closed: bool) -> None:
        """The last acknowledged request again, then the next one, then one of an old epoch."""
        producer = last.send.producer
        assert producer is not None
        name, epoch, seq = producer
        again = self._send_again(incarnation, last)
        if closed and not last.send.closes:
            self._expect(again, last, 409, "closed")
        else:
            self._expect(again, last, 204, "")
            told = (again.headers.get("Producer-Epoch"), again.headers.get("Producer-Seq"))
            if again.status == 204 and told != (str(epoch), str(seq)):
                self.report.add(AGREES, f"{last.send.key} again: the server has {told}")
        following = self._send_new(incarnation, producer=(name, epoch, seq + 1))
        self._expect(following, last, 409 if closed else 200, "closed" if closed else "")
        if epoch and not closed:
            stale = self._send_new(incarnation, producer=(name, epoch - 1, seq + 1))
            self._expect(stale, last, 403, "stale-epoch")

    def _probe_stream_seq(self, incarnation: Incarnation, sequenced: list[Append]) -> None:
        highest = max(append.send.stream_seq or "" for append in sequenced)
        last = next(append for append in sequenced if append.send.stream_seq == highest)
        regression = self._send_again(incarnation, last)
        self._expect(regression, last, 409, "stream-seq-regression")
        following = self._send_new(incarnation, stream_seq=f"{int(highest) + 1:08d}")
        self._expect(following, last, 204, "")

    def _expect(self, answer: Answer, last: Append, status: int, code: str) -> None:
        if (answer.status, answer.code) != (status, code):
            self.report.add(
                AGREES,
                f"after {last.send.key} was acknowledged, {status} {code} was due, and "
                f"{answer.status} {answer.code} came",
            )

    def _send_again(self, incarnation: Incarnation, last: Append) -> Answer:
        """The same tuple with another body: only a server that forgot it would store that."""
        body = None
        headers = {}
        if last.send.messages:
            body = make_message(incarnation.media_type, f"{incarnation.name}/twice/0", self._rng)
            headers["Content-Type"] = incarnation.media_type
        headers |= _headers(last.send.producer, last.send.stream_seq, last.send.closes)
        answer = self._server.ask("POST", incarnation.path, headers, body)
        self._note(last.send.key, answer)
        return answer

    def _send_new(
        self,
        incarnation: Incarnation,
        producer: ProducerTuple | None = None,
        stream_seq: str | None = None,
    ) -> Answer:
        writer = f"{self._name}x{self._sent}"
        self._sent += 1
        message_id = f"{incarnation.name}/{writer}/0"
        body = make_message(incarnation.media_type, message_id, self._rng)
        size = 1 if incarnation.media_type == JSON else len(body)
        key = f"{incarnation.name}/{writer}:0"
        messages = [(message_id, digest_of(body), size)]
        self._journal.write(
            Send(
                key,
                incarnation.name,
                messages,
                False,
                producer,
                stream_seq,
                False,
                time.monotonic(),
            )
        )
        headers = {"Content-Type": incarnation.media_type}
        headers |= _headers(producer, stream_seq, False)
        answer = self._server.ask("POST", incarnation.path, headers, body)
        self._note(key, answer)
        return answer

    def _note(self, key: str, answer: Answer) -> None:
        offset = answer.headers.get("Stream-Next-Offset") or ""
        self._journal.write(
            Attempt(key, answer.status, answer.code, offset, answer.started, answer.ended)
        )


def _headers(
    producer: ProducerTuple | None, stream_seq: str | None, closes: bool
) -> dict[str, str]:
    headers = {}
    if producer is not None:
        names = ("Producer-Id", "Producer-Epoch", "Producer-Seq")
        headers = dict(zip(names, map(str, producer), strict=True))
    if stream_seq is not None:
        headers["Stream-Seq"] = stream_seq
    if closes:
        headers["Stream-Closed"] = "true"
    return headers


def last_of_each_producer(incarnation: Incarnation) -> Iterator[Append]:
    """Each producer's newest acknowledged append, unless a newer one is in doubt."""
    newest: dict[str, Append] = {}
    for append in incarnation.appends:
        producer = append.send.producer
        if producer is None or append.refused:
            continue
        known = newest.get(producer[0])
        if known is None or known.send.producer is None or known.send.producer < producer:
            newest[producer[0]] = append
    for append in newest.values():
        if append.acknowledged:
            yield append


def count(evidence: Evidence) -> dict[str, object]:
    """How much was checked."""
    appends = evidence.appends.values()
    attempts = [attempt for append in appends for attempt in append.attempts]
    reads = [read for run in evidence.runs.values() for read in run.reads]
    return {
        "streams": len(evidence.incarnations),
        "streams_deleted": sum(i.deleted_at < i.missed_at for i in evidence.incarnations.values()),
        "streams_expired": sum(i.missed_at < i.deleted_at for i in evidence.incarnations.values()),
        "appends_acknowledged": sum(append.acknowledged for append in appends),
        "messages_acknowledged": sum(len(a.send.messages) for a in appends if a.acknowledged),
        "appends_in_doubt_on_the_way": sum(append.in_doubt for append in appends),
        "appends_in_doubt_at_the_end": sum(a.in_doubt and not a.acknowledged for a in appends),
        "duplicates_recognised": sum(
            attempt.status == 204 and bool(append.send.messages)
            for append in appends
            if append.send.producer is not None
            for attempt in append.attempts
        ),
        "messages_read": sum(len(read.messages) for read in reads),
        "reads": dict(Counter(read.mode for read in reads)),
        "answers_to_appends": {
            str(status): number
            for status, number in sorted(Counter(a.status for a in attempts).items())
        },
        "misses": dict(Counter(f"{miss.status} {miss.code}".strip() for miss in evidence.misses)),
    }


def main(arguments: argparse.Namespace) -> int:
    """The exit code."""
    checker = Checker(Server(arguments.url), arguments.journals, random.Random(arguments.seed))
    counts = checker.run()
    violations = {
        guarantee: list(sentences) for guarantee, sentences in checker.report.violations.items()
    }
    shown = {
        guarantee: sentences[:VIOLATIONS_SHOWN_PER_GUARANTEE]
        for guarantee, sentences in violations.items()
    }
    total = sum(map(len, violations.values()))
    print(json.dumps({"counts": counts, "violations_total": total, "violations": shown}, indent=1))
    return 1 if total else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--url", required=True)
    parser.add_argument("--journals", type=Path, required=True)
    parser.add_argument("--seed", default="0")
    sys.exit(main(parser.parse_args()))
