"""The client that calls webhooks: which address it connects to, whatever a name says."""

import asyncio
import socket
from typing import Any

import pytest
from webhook_receiver import Receiver, done

from durable_streamsd.subscriptions.delivery import DeliveryFailed, Webhooks
from durable_streamsd.subscriptions.targets import Reach

TIMEOUT_S = 5.0


class Names:
    """A resolver whose answers a test decides, one after the other; the last one stays."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers)
        self.asked = 0

    async def getaddrinfo(self, _host: str, port: int, **_: Any) -> list[Any]:
        """What the loop asks."""
        self.asked += 1
        addresses = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return [
            (
                socket.AF_INET6 if ":" in address else socket.AF_INET,
                socket.SOCK_STREAM,
                socket.IPPROTO_TCP,
                "",
                (address, port, 0, 0) if ":" in address else (address, port),
            )
            for address in addresses
        ]


async def post(reach: Reach, url: str, names: Names, times: int = 1) -> list[bool | str]:
    """Deliver, so many times; whether the receiver was done, or why it failed."""
    loop = asyncio.get_running_loop()
    loop.getaddrinfo = names.getaddrinfo  # type: ignore[method-assign,assignment]
    webhooks = Webhooks(reach, 4, TIMEOUT_S)
    found: list[bool | str] = []
    try:
        for _ in range(times):
            try:
                found.append(await webhooks.post(url, b"{}", "t=1"))
            except DeliveryFailed as failure:
                found.append(str(failure))
    finally:
        await webhooks.close()
    return found


def refused(outcome: bool | str) -> bool:
    """Whether the address was judged and not called."""
    return isinstance(outcome, str) and "local or private network" in outcome


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"],
        ["::1"],
        ["::ffff:127.0.0.1"],
        ["10.0.0.1"],
        ["169.254.169.254"],
        ["0.0.0.0"],
        ["fe80::1"],
        ["224.0.0.1"],
        ["127.0.0.1", "10.0.0.1", "169.254.169.254"],
    ],
    ids=" ".join,
)
def test_names_that_lead_inside(addresses: list[str]) -> None:
    """A name of the outside with an address of the inside is not called."""
    with Receiver() as receiver:
        port = receiver.url.split(":")[2]
        names = Names(addresses)
        url = f"http://worker.example:{port}"
        (outcome,) = asyncio.run(post(Reach.PUBLIC, url, names))
        assert refused(outcome)
        assert names.asked == 1
        assert receiver.nothing(0)


def test_addresses_in_the_url() -> None:
    """An address needs no resolver, and is judged all the same."""
    with Receiver() as receiver:
        for url in (receiver.url, receiver.url.replace("127.0.0.1", "[::ffff:127.0.0.1]")):
            (outcome,) = asyncio.run(post(Reach.PUBLIC, url, Names([])))
            assert refused(outcome)
        assert receiver.nothing(0)


def test_a_name_that_changes() -> None:
    """What is judged is what is connected to: a name asked again has no second chance."""
    with Receiver(done) as receiver:
        url = receiver.url.replace("127.0.0.1", "worker.example")
        names = Names(["127.0.0.1"], ["10.0.0.1"])
        first, second = asyncio.run(post(Reach.LOOPBACK, url, names, 2))
        # The first connection is kept: the second delivery uses it without asking the name.
        assert (first, second) == (True, True)
        names = Names(["10.0.0.1"], ["127.0.0.1"])
        first, second = asyncio.run(post(Reach.LOOPBACK, url, names, 2))
        assert refused(first)
        assert second is True


def test_a_name_with_good_and_bad_addresses() -> None:
    """Only those that may be called are."""
    with Receiver(done) as receiver:
        url = receiver.url.replace("127.0.0.1", "worker.example")
        names = Names(["10.0.0.1", "169.254.169.254", "127.0.0.1"])
        assert asyncio.run(post(Reach.LOOPBACK, url, names)) == [True]


def test_the_environment_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy in the environment would connect for us, to wherever it likes."""
    with Receiver(done) as receiver:
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
        assert asyncio.run(post(Reach.LOOPBACK, receiver.url, Names([]))) == [True]
