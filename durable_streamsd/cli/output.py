"""Standard output and standard error of all commands, and how a command ends early.

Output goes straight to the file descriptor, so that nothing waits in a buffer and a reader that
went away is noticed at the write that met it.
"""

import os
import sys
from typing import NoReturn

import click

STDOUT = 1
EXIT_FAILED = 1
EXIT_OUTPUT_CLOSED = 128 + 13  # as a shell reports SIGPIPE


class WorkFailed(Exception):
    """The command cannot do its work; the message is one sentence for standard error."""


class OutputClosed(Exception):
    """The reader of standard output went away: there is nobody left to tell."""


def fail(sentence: str) -> NoReturn:
    """Say why on standard error and exit with 1."""
    say(sentence)
    sys.exit(EXIT_FAILED)


def say(sentence: str) -> None:
    """One line on standard error."""
    click.echo(f"durable-streamsd: {sentence}", err=True)


def counted(number: int, what: str, ending: str = "s") -> str:
    """A number with its noun, in singular or plural."""
    return f"{number} {what}{'' if number == 1 else ending}"


def print_line(text: str) -> None:
    """One line on standard output. Raises as `write_out` does."""
    write_out(text.encode("utf-8", "surrogateescape") + b"\n")


def write_out(data: bytes) -> None:
    """All of `data` on standard output; OutputClosed if its reader went away, or WorkFailed."""
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(STDOUT, rest) :]
        except BrokenPipeError:
            raise OutputClosed from None
        except OSError as error:
            raise WorkFailed(f"cannot write to standard output ({error.strerror})") from error
