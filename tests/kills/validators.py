"""The guarantees, each with the validator that is named after it.

A validator takes the evidence (with what the checker read at the end) and yields a sentence for
every breach. Each argues from times that are sure only: *before* means that one request was
acknowledged before the other was first sent.

Part of the checker; knows nothing of the server.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import accumulate, pairwise

from kills.evidence import NEVER, Append, Evidence, Incarnation, is_unknown
from kills.journal import Read
from kills.messages import JSON, incarnation_of, writer_of

Validator = Callable[[Evidence], Iterator[str]]


def acknowledged_is_present(evidence: Evidence) -> Iterator[str]:
    """What was acknowledged is there: at the end, for readers in between, and the stream itself."""
    for incarnation in evidence.incarnations.values():
        yield from _present(incarnation)
        final = incarnation.final
        if (
            final is not None
            and not final.exists
            and incarnation.surely_there(final.started, final.ended)
        ):
            yield f"{incarnation.name} is gone, and nobody deleted it"
        for done in incarnation.dones:
            if done.status == 404 and not done.in_doubt and incarnation.ttl_s is None:
                yield f"{incarnation.name} was to be deleted, and was not there"
        for append in incarnation.appends:
            for attempt in append.attempts:
                if attempt.status == 404 and incarnation.surely_there(
                    attempt.started, attempt.ended
                ):
                    yield f"{append.send.key} was told that {incarnation.name} is not there"
    for miss in evidence.misses:
        current = evidence.current(miss.path, miss.started, miss.ended)
        if (
            miss.status == 404
            and current is not None
            and current.surely_there(miss.started, miss.ended)
        ):
            yield f"a reader ({miss.mode}) was told that {current.name} is not there"


def _present(incarnation: Incarnation) -> Iterator[str]:
    place = {message_id: at for at, (message_id, _) in enumerate(incarnation.reference)}
    acknowledged = sorted(
        (append for append in incarnation.appends if append.acknowledged and append.send.messages),
        key=lambda append: append.acknowledged_at,
    )
    looked_at = max(
        (read.started for run in incarnation.runs for read in run.reads if read.up_to_date),
        default=0.0,
    )
    if incarnation.final is not None and incarnation.final.exists:
        looked_at = NEVER
    for append in acknowledged:
        for message_id, _, _ in append.send.messages:
            if message_id not in place and append.acknowledged_at < looked_at:
                yield f"{message_id} is missing ({append.send.key})"
    times = [append.acknowledged_at for append in acknowledged]
    ends = list(
        accumulate((place.get(append.send.messages[-1][0], -1) + 1 for append in acknowledged), max)
    )
    for run in incarnation.runs:
        seen = 0
        for read in run.reads:
            seen += len(read.messages)
            before = bisect_left(times, read.started)
            if read.up_to_date and before and seen < ends[before - 1]:
                yield (
                    f"{incarnation.name}: {run.name} was told that it is up to date after {seen} "
                    f"messages, when {ends[before - 1]} had been acknowledged"
                )


def exactly_once(evidence: Evidence) -> Iterator[str]:
    """Nothing is there twice, and nothing that was refused is there at all."""
    for incarnation in evidence.incarnations.values():
        sequences = [("at the end", incarnation.reference)]
        sequences += [(run.name, run.messages) for run in incarnation.runs]
        for where, messages in sequences:
            for message_id, count in Counter(message_id for message_id, _ in messages).items():
                if count > 1:
                    yield f"{message_id} is there {count} times ({where})"
        for message_id, _ in incarnation.reference:
            sent = incarnation.by_message.get(message_id)
            if sent is not None and sent[0].refused:
                yield f"{message_id} was refused and is there ({sent[0].send.key})"
        for append in incarnation.appends:
            accepted = [attempt for attempt in append.successes if attempt.status == 200]
            if append.send.producer is not None and len(accepted) > 1:
                yield f"{append.send.key} was accepted {len(accepted)} times"


def in_order(evidence: Evidence) -> Iterator[str]:
    """Messages lie as they were sent: per writer, between writers by time, appends in one piece."""
    for incarnation in evidence.incarnations.values():
        last: dict[str, int] = {}
        for message_id, _ in incarnation.reference:
            writer, number = writer_of(message_id)
            if number < last.get(writer, -1):
                yield f"{message_id} lies after number {last[writer]} of the same writer"
            last[writer] = number
        yield from _in_real_time_order(incarnation)
        place = {message_id: at for at, (message_id, _) in enumerate(incarnation.reference)}
        for append in incarnation.appends:
            ids = [message_id for message_id, _, _ in append.send.messages]
            places = [place[message_id] for message_id in ids if message_id in place]
            if any(after != before + 1 for before, after in pairwise(places)):
                yield f"{append.send.key} was torn apart"
            if places and len(places) < len(ids) and not _cut_by_reader(incarnation, places):
                yield f"{append.send.key} is there in part"
        for run in incarnation.runs:
            for at, ((seen, _), (is_there, _)) in enumerate(
                zip(run.messages, incarnation.reference, strict=False)
            ):
                if seen != is_there and seen in place:
                    yield f"{run.name} saw {seen} as message {at} of {incarnation.name}"
                    break


def _cut_by_reader(incarnation: Incarnation, places: list[int]) -> bool:
    """Whether an append is in part only because the reference is a reader's that went no further.

    A chunk may end between two messages of one append.
    """
    from_reader = incarnation.final is None or not incarnation.final.exists
    return from_reader and places[-1] == len(incarnation.reference) - 1


def _in_real_time_order(incarnation: Incarnation) -> Iterator[str]:
    earliest, earliest_id = NEVER, ""
    for message_id, _ in reversed(incarnation.reference):
        sent = incarnation.by_message.get(message_id)
        if sent is None:
            continue
        append = sent[0]
        if earliest < append.send.at:
            yield f"{message_id} lies before {earliest_id}, which was acknowledged earlier"
        if append.acknowledged_at < earliest:
            earliest, earliest_id = append.acknowledged_at, message_id


def bytes_identical(evidence: Evidence) -> Iterator[str]:
    """Everything read is what somebody sent to this very stream, byte for byte."""
    for nonsense in evidence.nonsense:
        yield f"{nonsense.run} read from {nonsense.path}: {nonsense.detail}"
    for incarnation in evidence.incarnations.values():
        if incarnation.final is not None and incarnation.final.garbage:
            yield f"{incarnation.name} at the end: {incarnation.final.garbage}"
        sequences = [("at the end", incarnation.reference)]
        sequences += [(run.name, run.messages) for run in incarnation.runs]
        for where, messages in sequences:
            for message_id, digest in messages:
                owner = evidence.incarnations.get(incarnation_of(message_id))
                sent = owner.by_message.get(message_id) if owner is not None else None
                if sent is None or owner is None or owner.path != incarnation.path:
                    yield f"nobody sent {message_id} to {incarnation.path} ({where})"
                elif sent[1] != digest:
                    yield f"{message_id} has other bytes than were sent ({where})"


def closed_stays_closed(evidence: Evidence) -> Iterator[str]:
    """A closed stream takes nothing more, says so to everybody, and nobody else's close is told."""
    for incarnation in evidence.incarnations.values():
        closes = [append for append in incarnation.appends if append.send.closes]
        closed_at = min((append.acknowledged_at for append in closes), default=NEVER)
        closed_from = min((append.send.at for append in closes), default=NEVER)
        final = incarnation.final
        if final is not None and final.exists:
            if closed_at < NEVER and not final.closed:
                yield f"{incarnation.name} was closed and is open"
            if final.closed and closed_from == NEVER:
                yield f"{incarnation.name} is closed, and nobody closed it"
        for run in incarnation.runs:
            yield from _closed_for(run.reads, run.name, incarnation, closed_at, closed_from)
        for append in incarnation.appends:
            for attempt in append.attempts:
                if attempt in append.successes and attempt.started > closed_at:
                    if not append.send.closes:
                        yield f"{append.send.key} was accepted after {incarnation.name} was closed"
                elif attempt.code == "closed" and attempt.ended < closed_from:
                    yield f"{append.send.key} was told of a close that nobody had sent"
        for append in closes:
            if append.acknowledged and append.send.messages and incarnation.reference:
                ids = [message_id for message_id, _ in incarnation.reference]
                last = append.send.messages[-1][0]
                if last in ids and ids[-1] != last:
                    yield f"{ids[-1]} lies behind the closing {append.send.key}"


def _closed_for(
    reads: list[Read], name: str, incarnation: Incarnation, closed_at: float, closed_from: float
) -> Iterator[str]:
    seen = 0
    for read in reads:
        seen += len(read.messages)
        if read.closed and read.ended < closed_from:
            yield f"{name} was told that {incarnation.name} is closed before anybody closed it"
        if read.closed and seen != len(incarnation.reference):
            yield (
                f"{name} was told that {incarnation.name} ends after {seen} messages, "
                f"and it has {len(incarnation.reference)}"
            )
        if read.up_to_date and not read.closed and read.started > closed_at:
            yield f"{name} was not told that {incarnation.name} is closed"


def deleted_stays_deleted(evidence: Evidence) -> Iterator[str]:
    """What was deleted, or has expired, is seen by nobody, and its path is free."""
    for incarnation in evidence.incarnations.values():
        final = incarnation.final
        if final is not None and final.exists and incarnation.gone_at < final.started:
            yield f"{incarnation.name} is there again"
        if final is not None:
            for message in final.messages:
                if incarnation_of(message.id) != incarnation.name:
                    yield f"{message.id} is in {incarnation.name}"
        for run in incarnation.runs:
            for read in run.reads:
                if read.started > incarnation.gone_at and read.messages:
                    yield f"{run.name} read {incarnation.name} after its end"
                for message_id, _ in read.messages:
                    if incarnation_of(message_id) != incarnation.name:
                        yield f"{run.name} went on from {incarnation.name} to {message_id}"
        for append in incarnation.appends:
            for attempt in append.successes:
                if attempt.started > incarnation.gone_at:
                    yield f"{append.send.key} was accepted after the end of {incarnation.name}"
        for done in incarnation.dones:
            if done.what == "create" and done.status != 201 and not done.in_doubt:
                yield f"the path of {incarnation.name} was free, and creating it gave {done.status}"
    for run in evidence.runs.values():
        for read in run.reads:
            free = evidence.surely_free(run.path, read.started, read.ended)
            if free is not None:
                yield f"{run.name} found a stream at {run.path} after the end of {free.name}"


def no_reader_saw_what_is_gone(evidence: Evidence) -> Iterator[str]:
    """Whatever any reader was shown is there, at its place; readers of a deleted stream agree."""
    for incarnation in evidence.incarnations.values():
        ids = {message_id for message_id, _ in incarnation.reference}
        for run in incarnation.runs:
            for message_id, _ in run.messages:
                if message_id not in ids and incarnation_of(message_id) == incarnation.name:
                    yield f"{run.name} saw {message_id}, which is not there"


def producer_state_agrees_with_data(evidence: Evidence) -> Iterator[str]:
    """Producers and `Stream-Seq` writers are judged by exactly what is there."""
    by_tuple = {
        append.send.producer: append
        for append in evidence.appends.values()
        if append.send.producer is not None
    }
    for append in evidence.appends.values():
        producer = append.send.producer
        statuses = {attempt.status for attempt in append.attempts}
        if (
            producer is not None
            and append.send.messages
            and statuses & {200, 204} == {204}
            and not append.in_doubt
        ):
            yield f"{append.send.key} was called a duplicate, and it is the first"
        for number, attempt in enumerate(append.attempts):
            if attempt.code == "sequence-gap" and producer is not None:
                predecessor = by_tuple.get((producer[0], producer[1], producer[2] - 1))
                if producer[2] == 0 or (
                    predecessor is not None and predecessor.acknowledged_at < attempt.started
                ):
                    yield f"{append.send.key} was told of a gap that is none"
            elif attempt.code == "stale-epoch" and not _newer_epoch(evidence, append):
                yield f"{append.send.key} was told of an epoch that nobody sent"
            elif attempt.code == "stream-seq-regression" and not any(
                is_unknown(earlier) or earlier in append.successes
                for earlier in append.attempts[:number]
            ):
                yield f"{append.send.key} was told of a Stream-Seq that nobody sent"


def _newer_epoch(evidence: Evidence, append: Append) -> bool:
    producer = append.send.producer
    assert producer is not None
    return any(
        other.send.producer is not None
        and other.send.producer[0] == producer[0]
        and other.send.producer[1] > producer[1]
        for other in evidence.incarnations[append.incarnation].appends
    )


def offsets_are_stable(evidence: Evidence) -> Iterator[str]:
    """An offset means one place, whoever was told it and when."""
    for miss in evidence.misses:
        run = evidence.runs.get(miss.run)
        if miss.status == 400 and run is not None and run.messages:
            reader_of = evidence.incarnations.get(incarnation_of(run.messages[0][0]))
            if reader_of is not None and reader_of.surely_there(miss.started, miss.ended):
                yield f"{miss.run} was refused ({miss.code}) the offset it had of {reader_of.name}"
    for incarnation in evidence.incarnations.values():
        places: dict[str, tuple[int, str]] = {}
        for offset, position, who in _told(incarnation):
            known = places.setdefault(offset, (position, who))
            if known[0] != position:
                yield (
                    f"{incarnation.name}: {offset} is position {known[0]} for {known[1]} and "
                    f"{position} for {who}"
                )


def _told(incarnation: Incarnation) -> Iterator[tuple[str, int, str]]:
    """Every (offset, position, to whom) of an incarnation."""
    if incarnation.final is not None:
        for offset, position in incarnation.final.places:
            yield offset, position, "the checker"
    for run in incarnation.runs:
        position = 0
        for read in run.reads:
            position += read.size
            yield read.end, position, run.name
    ends: dict[str, int] = {}
    position = 0
    for message_id, _ in incarnation.reference:
        sent = incarnation.by_message.get(message_id)
        if sent is None:
            return
        sizes = {known: size for known, _, size in sent[0].send.messages}
        position += 1 if incarnation.media_type == JSON else sizes[message_id]
        ends[message_id] = position
    for append in incarnation.appends:
        if append.own_offset and append.send.messages[-1][0] in ends:
            yield append.own_offset, ends[append.send.messages[-1][0]], append.send.key


EXPECTED = {
    "append": {0, 200, 204, 403, 404, 409, 503, 507},
    "create": {0, 200, 201, 503, 507},
    "read": {400, 404},
}


def answers_are_the_protocols(evidence: Evidence) -> Iterator[str]:
    """No request of this workload gives reason for any other answer, least of all for a 500."""
    for append in evidence.appends.values():
        expected = EXPECTED["create" if append.send.put else "append"]
        for attempt in append.attempts:
            if attempt.status not in expected:
                yield f"{append.send.key} was answered {attempt.status} {attempt.code}"
    for miss in evidence.misses:
        if miss.status not in EXPECTED["read"]:
            yield f"{miss.run} ({miss.mode}) was answered {miss.status} {miss.code}"
    for incarnation in evidence.incarnations.values():
        for done in incarnation.dones:
            if done.status not in (200, 201, 204, 404):
                yield f"to {done.what} {incarnation.name} was answered {done.status}"


VALIDATORS: tuple[Validator, ...] = (
    acknowledged_is_present,
    exactly_once,
    in_order,
    bytes_identical,
    closed_stays_closed,
    deleted_stays_deleted,
    no_reader_saw_what_is_gone,
    producer_state_agrees_with_data,
    offsets_are_stable,
    answers_are_the_protocols,
)
