"""What was given, where: by flags, in the environment, in a file."""

import re
import tomllib
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from durable_streamsd.config import FLAGS, Settings
from durable_streamsd.settings.lines import Place, key_lines, unfinished_line

__all__ = [
    "ENVIRONMENT_PREFIX",
    "SettingsError",
    "SettingsFile",
    "Source",
    "from_environment",
    "from_flags",
]

ENVIRONMENT_PREFIX = "DURABLE_STREAMSD_"

_WHERE = re.compile(r"(.*) \(at line (\d+), column (\d+)\)")


class SettingsError(ValueError):
    """A setting is wrong; one sentence that begins with where it was given."""


class Source(NamedTuple):
    """One given value. `key` is as it is written there."""

    name: str
    value: object
    key: str
    file: "SettingsFile | None" = None

    def place(self, within: Place = ()) -> str:
        """Where this is, for a sentence about it; `within` leads to a part of the value."""
        if self.file is None:
            return self.key
        keys = [self.key, *(str(part) for part in within if isinstance(part, str))]
        return f"{self.file.place((self.key, *within))}: {'.'.join(keys)}"

    def origin(self) -> str:
        """Where this came from, for a listing."""
        return f"flag {self.key}" if self.key.startswith("--") else self._origin()

    def _origin(self) -> str:
        return f"environment {self.key}" if self.file is None else self.file.place((self.key,))

    def suggestion(self) -> str:
        """The name that was probably meant, as it is written there."""
        known = [*Settings.__struct_fields__, *(flag.replace("-", "_") for flag in FLAGS)]
        for nearest in get_close_matches(self.name, known, 1):
            if self.key.startswith(ENVIRONMENT_PREFIX):
                return f"; is it {ENVIRONMENT_PREFIX}{nearest.upper()}?"
            return f"; is it {nearest.replace('_', '-')}?"
        return ""


class SettingsFile:
    """A configuration file. Raises `SettingsError` if it cannot be read or is not TOML."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._text = path.read_text("utf-8")
            self._document = tomllib.loads(
                self._text + "\n"
            )  # or errors in the last line have no place
        except OSError as error:
            raise SettingsError(f"--config: cannot read {path}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise SettingsError(f"{path}: it is not valid TOML: it is not UTF-8") from None
        except ValueError as error:
            raise SettingsError(self._not_toml(str(error))) from None

    def given(self) -> Iterator[Source]:
        """Its settings, in order."""
        for key, value in self._document.items():
            yield Source(_setting(key), value, key, self)

    def place(self, keys: Place) -> str:
        """The file and the line of a key; of what is around it, if the key is not there."""
        while keys and keys not in self._lines:
            keys = keys[:-1]
        return f"{self.path}:{self._lines[keys]}" if keys else str(self.path)

    @cached_property
    def _lines(self) -> Mapping[Place, int]:
        return key_lines(self._text)

    def _not_toml(self, reason: str) -> str:
        where = _WHERE.fullmatch(reason)
        if where is None:
            line = unfinished_line(self._text)
            return f"{self.path}:{line}: it is not valid TOML: {reason}"
        return f"{self.path}:{where[2]}: it is not valid TOML: {where[1]} (column {where[3]})"


def from_environment(environment: Mapping[str, str]) -> Iterator[Source]:
    """What variables with the prefix set."""
    for variable, value in environment.items():
        if variable.startswith(ENVIRONMENT_PREFIX):
            key = variable.removeprefix(ENVIRONMENT_PREFIX).lower()
            yield Source(_setting(key), value, variable)


def from_flags(flags: Mapping[str, Any]) -> Iterator[Source]:
    """What flags set; they are settings by name, and None means not given."""
    names = {setting: f"--{flag}" for flag, setting in FLAGS.items()}
    for name, value in flags.items():
        if value is not None:
            yield Source(name, value, names.get(name, name))


def _setting(key: str) -> str:
    return FLAGS.get(key.replace("_", "-"), key.replace("-", "_"))
