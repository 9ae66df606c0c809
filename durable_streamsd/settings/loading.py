"""Putting the settings together, and saying what is wrong with them: the first thing, or all."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from durable_streamsd.config import Settings, wrong_together
from durable_streamsd.settings.sources import (
    SettingsError,
    SettingsFile,
    Source,
    from_environment,
    from_flags,
)
from durable_streamsd.settings.values import WrongValue, checked, is_secret, shown

__all__ = ["Gathered", "gather", "load_settings"]


class Gathered:
    """What came together: the settings, the sources by name, and a sentence for each problem.

    A setting with a problem has what the source below it says.
    """

    def __init__(self) -> None:
        self.settings = Settings()
        self.sources: dict[str, Source] = {}
        self.problems: list[str] = []


def load_settings(
    flags: Mapping[str, object],
    environment: Mapping[str, str] = os.environ,
    file: Path | None = None,
) -> Settings:
    """Put the settings together. `flags` are settings by name; None means not given.

    Raises `SettingsError` for the first problem.
    """
    gathered = gather(flags, environment, file)
    if gathered.problems:
        raise SettingsError(gathered.problems[0])
    return gathered.settings


def gather(
    flags: Mapping[str, object], environment: Mapping[str, str], file: Path | None
) -> Gathered:
    """The same, with all problems. Raises `SettingsError` if the file cannot be read at all."""
    gathered = Gathered()
    given: dict[str, object] = {}
    for sources in (
        SettingsFile(file).given() if file is not None else (),
        from_environment(environment),
        from_flags(flags),
    ):
        _take(sources, given, gathered)
    gathered.settings = settings = msgspec.convert(given, Settings)
    for name, sentence in wrong_together(settings):
        source = gathered.sources.get(name)
        place = source.place() if source is not None else name
        told = "" if is_secret(name) else f", not {shown(getattr(settings, name))}"
        gathered.problems.append(f"{place}: {sentence}{told}")
    return gathered


def _take(sources: Iterable[Source], given: dict[str, object], gathered: Gathered) -> None:
    """Let what one kind of source has win over what is there."""
    here: dict[str, Source] = {}
    for source in sources:
        name = source.name
        if name not in Settings.__struct_fields__:
            what = f"there is no such setting{source.suggestion()}"
            gathered.problems.append(f"{source.place()}: {what}")
            continue
        if name in here:
            other = here[name]
            gathered.problems.append(f"{source.place()}: the same as {other.key}, which is there")
            continue
        here[name] = source
        try:
            given[name] = checked(name, source.value)
        except WrongValue as wrong:
            gathered.problems.append(f"{source.place(wrong.within)}: {wrong}")
        else:
            gathered.sources[name] = source
