"""Idempotent producers, each with several appends in flight.

As the protocol's TypeScript client does it: a producer sends each append as a request of its own,
with the next `Producer-Seq`, and does not wait for the one before, up to a number in flight. They
go over connections of their own, so they may arrive out of order; the server then answers 409 and
the producer sends that append again as soon as all before it are acknowledged. (To pipeline them
on one connection would keep them in order, but no client does it.)

One refusal leads to more: while an append waits to be sent again, the next one overtakes it, and is
refused as well. A server that lets connections overtake each other is sent nearly all twice.

A latency runs from first sending an append to its acknowledgement, however often it was sent.
In the end each producer repeats its last append, which must be taken for a duplicate, and its
stream must hold what it sent, each once, in order of sequence.
"""

import time

from bench.connections import Requester, append_head, connect
from bench.loops import ClosedLoop
from bench.measure import Figure, Job, Measurement, Messages
from bench.wire import Address, Answer, Client

__all__ = ["produce"]

CONTENT_TYPE = "application/octet-stream"
EPOCH = 0


async def produce(job: Job) -> Measurement:
    """Drive the scenario `producer` once. Raises LoadError.

    There are `streams` producers, with a stream each, that share the connections evenly.
    """
    client = Client(job.url)
    sizes = job.sizes
    loop = ClosedLoop(job)
    producers = []
    for number in range(sizes.streams):
        name = f"{job.run}-{number}"
        client.create(name, CONTENT_TYPE)
        messages = Messages(number, sizes.message_bytes)
        in_flight = sizes.connections // sizes.streams
        producers.append(_Producer(client.address, name, messages, in_flight, loop))
    client.end()
    senders = [sender for producer in producers for sender in producer.senders]
    await connect(client.address, senders, sizes.stall_seconds_max)
    await loop.run([sender.begin for sender in senders])
    for sender in senders:
        sender.end()
    for producer in producers:
        producer.repeat_last(client)
        client.check(producer.name, producer.messages.first(producer.count))
    count = sum(producer.count for producer in producers)
    again = sum(producer.sent_again for producer in producers)
    return loop.measurement(
        f"{len(producers)} streams read back: {count} messages, each once, in order; "
        "a repeated append was recognised on each",
        Figure("sent again, out of order", 100 * again / count, "%"),
    )


class _Producer:
    """One producer: gives sequence numbers to its senders, and says who may send again."""

    def __init__(
        self, address: Address, name: str, messages: Messages, in_flight: int, loop: ClosedLoop
    ) -> None:
        self.name = name
        self.messages = messages
        self.count = 0
        """How many sequence numbers were given out."""
        self.sent_again = 0
        self.senders = [_Sender(address, self, loop) for _ in range(in_flight)]
        self._unacknowledged: set[int] = set()
        self._refused: dict[int, _Sender] = {}

    def next_seq(self) -> int:
        seq = self.count
        self.count += 1
        self._unacknowledged.add(seq)
        return seq

    def acknowledged(self, seq: int) -> None:
        self._unacknowledged.remove(seq)
        self._release()

    def refused(self, sender: "_Sender", seq: int) -> None:
        """The append arrived before an earlier one."""
        self._refused[seq] = sender
        self._release()

    def repeat_last(self, client: Client) -> None:
        """Repeat the last append, as a client does that has not seen its acknowledgement."""
        seq = self.count - 1
        fields = {"Producer-Epoch": str(EPOCH), "Producer-Seq": str(seq)}
        fields |= {"Content-Type": CONTENT_TYPE, "Producer-Id": self.name}
        client.repeat(self.name, fields, self.messages.at(seq))

    def _release(self) -> None:
        """Let the refused append be sent again that has no earlier one before it."""
        if self._refused:
            sender = self._refused.pop(min(self._unacknowledged), None)
            if sender is not None:
                self.sent_again += 1
                sender.send_now()


class _Sender(Requester):
    """One connection of a producer, with at most one of its appends."""

    def __init__(self, address: Address, producer: _Producer, loop: ClosedLoop) -> None:
        super().__init__(f"produces to {producer.name}")
        self._producer = producer
        self._loop = loop
        self._seq = self._begun_ns = 0
        fields = (f"Producer-Id: {producer.name}", f"Producer-Epoch: {EPOCH}")
        size = producer.messages.message_bytes
        head = append_head(address, producer.name, CONTENT_TYPE, size, *fields)
        self._head = head.removesuffix(b"\r\n")  # one more field follows

    def begin(self) -> None:
        """Send the producer's next append."""
        self._seq = self._producer.next_seq()
        self._begun_ns = time.perf_counter_ns()
        self.send_now()

    def send_now(self) -> None:
        """Send the append, for the first time or again."""
        seq = self._seq
        field = b"Producer-Seq: %d\r\n\r\n" % seq
        self.send(self._head + field + self._producer.messages.at(seq))

    def answered(self, status: int, answer: Answer | None) -> None:
        if status == 200:
            latency_ns = time.perf_counter_ns() - self._begun_ns
            self._producer.acknowledged(self._seq)
            self._loop.done(latency_ns, self.begin)
        elif status == 409 and answer is not None and self._is_early(answer):
            self._producer.refused(self, self._seq)
        else:
            raise self.refused(status, answer)

    def _is_early(self, answer: Answer) -> bool:
        """Whether the server has not had an append before this one yet."""
        expected = answer.head.fields.get(b"producer-expected-seq", b"")
        return expected.isdigit() and int(expected) < self._seq
