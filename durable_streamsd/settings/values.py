"""Values of settings: from what people write, and back into words.

Sizes may be strings such as `64MiB`, switches `on` and `off`, lists texts with commas. What was
expected instead of a wrong value follows from the setting's type.
"""

import json
import re
from typing import get_args, get_type_hints

import msgspec
from msgspec import inspect

from durable_streamsd.config import Settings
from durable_streamsd.settings.lines import Place

__all__ = ["WrongValue", "checked", "holds_secret", "is_secret", "shown", "size_words"]

UNITS = {"GiB": 1 << 30, "MiB": 1 << 20, "KiB": 1 << 10}
HIDDEN = "(hidden)"

_SIZE = re.compile(rf"(\d+) ?({'|'.join(UNITS)})")


_KEY_AT_FAULT = re.compile(r"(?:unknown field `|at `\$\.)(\w+)`")
"""In what msgspec says of a table."""


class WrongValue(ValueError):
    """A value is not what its setting takes; `within` leads to what is wrong inside it."""

    def __init__(self, sentence: str, within: Place = ()) -> None:
        super().__init__(sentence)
        self.within = within


def checked(name: str, value: object) -> object:
    """The value as its setting's type. Raises `WrongValue`."""
    kind = _type_of(name)
    if isinstance(kind, inspect.VarTupleType) and isinstance(kind.item_type, inspect.StructType):
        return _tables(name, value, kind, kind.item_type)
    plain = _from_words(name, value) if isinstance(value, str) else value
    try:
        one = msgspec.convert({name: plain}, Settings, strict=not isinstance(plain, str))
    except msgspec.ValidationError:
        told = HIDDEN if is_secret(name) else shown(value)
        raise WrongValue(f"expected {_expected(name)}, not {told}") from None
    return getattr(one, name)


def _tables(
    name: str, value: object, kind: inspect.VarTupleType, table_kind: inspect.StructType
) -> tuple[object, ...]:
    """The value of a setting that is an array of tables; sizes may be words there too."""
    tables = value if isinstance(value, list) else [value]
    taken = []
    for number, table in enumerate(tables):
        plain = table
        if isinstance(table, dict):
            plain = {
                key: _from_words(key, inner) if isinstance(inner, str) else inner
                for key, inner in table.items()
            }
        try:
            taken.append(msgspec.convert(plain, table_kind.cls))
        except msgspec.ValidationError as error:
            keys = ", ".join(field.encode_name for field in table_kind.fields)
            told = HIDDEN if is_secret(name) else shown(table)
            at_fault = _KEY_AT_FAULT.search(str(error))
            raise WrongValue(
                f"expected tables [[{name}]] with {keys}, not {told}: {error}",
                (number, at_fault[1]) if at_fault else (number,),
            ) from None
    if kind.max_length is not None and len(taken) > kind.max_length:
        raise WrongValue(f"expected at most {kind.max_length} tables")
    return tuple(taken)


def is_secret(name: str) -> bool:
    """Whether a setting's value is shown to nobody."""
    return holds_secret(_type_of(name))


def shown(value: object) -> str:
    """A value as it may stand in a file."""
    return json.dumps(value, ensure_ascii=False, default=str)


def size_words(size_bytes: int) -> str:
    """A number of bytes with the largest unit that divides it."""
    for unit, unit_bytes in UNITS.items():
        if size_bytes and size_bytes % unit_bytes == 0:
            return f"{size_bytes // unit_bytes}{unit}"
    return str(size_bytes)


def _from_words(name: str, text: str) -> object:
    """What people write for switches, lists and sizes, as a value; other text as it is."""
    if isinstance(getattr(Settings(), name, None), bool):
        return {"on": True, "yes": True, "off": False, "no": False}.get(text.lower(), text)
    if isinstance(getattr(Settings(), name, None), tuple):
        return [part.strip() for part in text.split(",") if part.strip()]
    if "bytes" in name and (size := _SIZE.fullmatch(text)):
        return int(size[1]) * UNITS[size[2]]
    return text


def _type_of(name: str) -> inspect.Type:
    described = inspect.type_info(Settings)
    assert isinstance(described, inspect.StructType)
    return next(field.type for field in described.fields if field.name == name)


def holds_secret(kind: inspect.Type) -> bool:
    """Whether `config.Secret` is in a type, however deep."""
    match kind:
        case inspect.Metadata(type=inner, extra=extra):
            return bool(extra and extra.get("secret")) or holds_secret(inner)
        case inspect.UnionType(types=kinds):
            return any(map(holds_secret, kinds))
        case inspect.VarTupleType(item_type=item) | inspect.ListType(item_type=item):
            return holds_secret(item)
        case inspect.DictType(value_type=item):
            return holds_secret(item)
        case inspect.StructType(fields=fields):
            return any(holds_secret(field.type) for field in fields)
    return False


def _expected(name: str) -> str:
    """What a setting takes, in plain words."""
    kind = _type_of(name)
    if isinstance(kind, inspect.UnionType):  # a setting that may be left out
        kind = next(one for one in kind.types if not isinstance(one, inspect.NoneType))
    match kind:
        case inspect.LiteralType():  # whose values are sorted, where these are in order
            return f"one of {', '.join(get_args(get_type_hints(Settings)[name]))}"
        case inspect.VarTupleType():
            return 'texts such as ["a", "b"]'
        case inspect.BoolType():
            return "on or off"
        case inspect.IntType(ge=int(low), le=int(high)) if "bytes" in name:
            example = size_words(getattr(Settings(), name))
            span = f"{size_words(low)} to {size_words(high)}"
            return f"a number of bytes from {span}, such as {example}"
        case inspect.IntType(ge=low, le=high):
            return f"a whole number from {low} to {high}"
        case inspect.FloatType(ge=low, le=high):
            return f"a number of seconds from {low:g} to {high:g}"
    return "text"
