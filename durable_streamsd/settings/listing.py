"""The settings in effect as a TOML file, each with where it came from."""

import json
from collections.abc import Iterator

import msgspec

from durable_streamsd.settings.loading import Gathered
from durable_streamsd.settings.values import is_secret, size_words

__all__ = ["listing", "toml_words"]

ORIGIN_COLUMN = 48
DELETE = "\x7f"
"""The one control character that JSON lets stand in text and TOML does not."""


def listing(gathered: Gathered) -> Iterator[str]:
    """One line for each setting. A secret's line says that it is set, and not to what."""
    for name in gathered.settings.__struct_fields__:
        source = gathered.sources.get(name)
        origin = "default" if source is None else source.origin()
        key = name.replace("_", "-")
        value = getattr(gathered.settings, name)
        if value is None:
            line = f"#{key} is not set"
        elif value and is_secret(name):
            line = f"#{key} is set, and not shown"
        elif "bytes" in name and isinstance(value, int):
            size = size_words(value)
            line = f"{key} = {size if size.isdigit() else toml_words(size)}"
        else:
            line = f"{key} = {toml_words(msgspec.to_builtins(value))}"
        yield f"{line:<{ORIGIN_COLUMN}}# {origin}"


def toml_words(value: object) -> str:
    """A value as it stands in a TOML file, on one line."""
    match value:
        case dict():
            pairs = [
                f"{key} = {toml_words(inner)}" for key, inner in value.items() if inner is not None
            ]
            return f"{{ {', '.join(pairs)} }}"
        case list() | tuple():
            return f"[{', '.join(map(toml_words, value))}]"
        case float():
            return f"{value:g}"
    return json.dumps(value, ensure_ascii=False).replace(DELETE, "\\u007f")
