"""The first code of the zipapp: looks whether it can run here, then hands over to shiv's bootstrap.

What cannot work is told in a sentence, before anything is unpacked. It has to be readable by any
Python 3.6 or newer, which may be what somebody tries, and imports nothing that takes time.
"""

import os
import sys
from importlib.machinery import EXTENSION_SUFFIXES

SUFFIXES = ()  # type: tuple[str, ...]


def check_interpreter() -> None:
    """Are there compiled modules for this interpreter, machine and C library?"""
    if EXTENSION_SUFFIXES[0] not in SUFFIXES:
        fitting = ", ".join(suffix.split(".")[1] for suffix in SUFFIXES)
        this = EXTENSION_SUFFIXES[0].split(".")[1]
        sys.exit(
            f"durable-streamsd: this file runs under {fitting}; "
            f"this is {this} ({sys.executable}, {sys.version.split()[0]})"
        )


def choose_cache() -> None:
    """Make SHIV_ROOT say where to unpack, by default below the user's cache directory."""
    below = os.environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache")
    root = os.environ.setdefault("SHIV_ROOT", os.path.join(below, "durable-streamsd"))
    if root.startswith("$"):
        return  # shiv's own way to name a variable
    folder = os.path.expanduser(root)
    try:
        if folder.startswith("~"):
            raise OSError(0, "there is no home directory")
        os.makedirs(folder, exist_ok=True)
        if not os.access(folder, os.W_OK) and not os.listdir(folder):
            raise OSError(0, "it cannot be written")
    except OSError as error:
        sys.exit(
            f"durable-streamsd: cannot unpack into {folder}: {error.strerror}; "
            "set SHIV_ROOT to a directory that only this user can write"
        )


check_interpreter()
choose_cache()

import _bootstrap  # type: ignore[import-not-found] # noqa: E402

_bootstrap.bootstrap()
