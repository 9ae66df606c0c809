"""Child processes that run a module of ours: the same interpreter, finding the same packages."""

import os
import sys


def child_command(module: str, *arguments: str) -> list[str]:
    """The command that runs a module of ours in a child."""
    return [sys.executable, "-m", module, *arguments]


def child_environment() -> dict[str, str]:
    """The environment in which a child imports from where this process does, a zipapp included."""
    return dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path)))
