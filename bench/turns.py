"""One turn: one round of one scenario for one server, or for one yardstick beside the servers.

Most turns are alike (`one_server`): start a server, drive it once, stop it. A scenario that needs
more than that, several servers or several phases, has a `conduct` of its own.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import msgspec

from bench.load import measure
from bench.measure import Job, Measurement, Sizes
from bench.servers import Server
from bench.targets import Target

__all__ = ["Conduct", "NotComparable", "Turn", "Yardstick", "one_server"]


class NotComparable(Exception):
    """This server has no figure in this scenario, which is no error; the message says why."""


class Turn(msgspec.Struct, frozen=True):
    """What is measured in a turn."""

    scenario: str
    target: Target
    sizes: Sizes
    folder: Path
    """Empty, on the disk that is measured, and removed after the run."""

    def measure(self, server: Server, phase: str = "") -> Measurement:
        """Drive a server that runs, for one phase if the scenario has several.

        Raises LoadError.
        """
        return measure(
            Job(
                scenario=self.scenario,
                sizes=self.sizes,
                url=server.url,
                run=self.folder.name,
                server_pid=server.pid,
                data_dir=None if server.data_dir is None else str(server.data_dir),
                phase=phase,
                notes=str(self.folder / "notes"),
            )
        )


Conduct = Callable[[Turn], Measurement]
"""Takes a turn. Raises LoadError, TargetError or NotComparable."""


def one_server(turn: Turn) -> Measurement:
    """The usual turn."""
    with turn.target.running(turn.folder) as server:
        return turn.measure(server)


class Yardstick(Protocol):
    """Something that is no server of the protocol, and shows what the machine can do.

    It takes turns with the servers.
    """

    @property
    def name(self) -> str: ...

    def measure(self, sizes: Sizes, folder: Path) -> Measurement:
        """Measure once with a scenario's sizes, in an empty folder on the disk that is measured.

        Raises NotComparable if the machine lacks what it needs, LoadError or TargetError if it
        fails.
        """
        ...
