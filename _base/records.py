"""Frozen dataclasses as plain JSON types, and back: one rule for every class, by its fields."""

from __future__ import annotations

import functools
import math
import re
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

Record = TypeVar("Record")
# The metadata of a field that JSON leaves out while it is None.
OPTIONAL = {"optional": True}
_KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "an object",
}


def like(pattern: str, what: str) -> dict[str, object]:
    """The metadata of a field whose text, or each of its texts, matches all of `pattern`; `what` says so in words."""
    return {"pattern": re.compile(pattern, re.DOTALL), "what": what}


def within(low: int, high: int) -> dict[str, object]:
    """The metadata of a field whose number lies from `low` to `high`."""
    return {"range": (low, high)}


def to_plain(value: object) -> Any:
    """Dataclasses and mappings as dicts, sequences as lists, paths as text, other values as they are.

    JSON has no infinity: a float that is not finite is None.
    """
    if is_dataclass(value) and not isinstance(value, type):
        contents = [(field, getattr(value, field.name)) for field in fields(value)]
        return {
            field.name: to_plain(content)
            for field, content in contents
            if content is not None or "optional" not in field.metadata
        }
    if isinstance(value, Mapping):
        return {key: to_plain(content) for key, content in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(content) for content in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def from_plain(kind: type[Record], value: object, name: str | None = None) -> Record:
    """The dataclass that `to_plain` wrote. Keys that it has no field for are passed over.

    Raises ValueError if a field is missing, not of the type that the class says, or not as `like` and `within` ask; it
    names the field as part of `name` (None: the class's).
    """
    made: Record = _read(kind, value, kind.__name__ if name is None else name)
    return made


def _read(kind: Any, value: Any, name: str) -> Any:
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, types.UnionType):
        (inner_kind,) = (part for part in inner if part is not types.NoneType)
        return None if value is None else _read(inner_kind, value, name)
    if is_dataclass(kind):
        return _read_fields(kind, _checked(dict, value, name), name)
    if origin is tuple:
        values = _checked(list, value, name)
        kinds = inner[:1] * len(values) if inner[-1] is Ellipsis else inner
        if len(kinds) != len(values):
            raise ValueError(f"{name} has {len(values)} values, not {len(kinds)}")
        return tuple(
            _read(part, content, f"{name}[{i}]") for i, (part, content) in enumerate(zip(kinds, values, strict=True))
        )
    if origin is Mapping:
        entries = _checked(dict, value, name)
        return {key: _read(inner[1], content, _inside(name, key)) for key, content in entries.items()}
    if origin is Literal:
        kind = type(inner[0])  # which of them is for the class to check
    if kind is Path:
        return Path(_checked(str, value, name))
    if kind is float and type(value) is int:
        return value
    return _checked(kind, value, name)


_hints = functools.cache(get_type_hints)


def _read_fields(kind: Any, values: Mapping[str, Any], name: str) -> Any:
    hints, given = _hints(kind), {}
    for field in fields(kind):
        where = _inside(name, field.name)
        if field.name in values:
            given[field.name] = _read(hints[field.name], values[field.name], where)
            _check_rules(given[field.name], field.metadata, where)
        elif field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"{where} is missing")
    return kind(**given)


def _inside(name: str, key: str) -> str:
    return f"{name}.{key if key.isprintable() else ascii(key)}".removeprefix(".")


def _check_rules(value: Any, rules: Mapping[str, Any], name: str) -> None:
    if value is None:
        return
    if "range" in rules:
        low, high = rules["range"]
        if not low <= value <= high:
            raise ValueError(f"{name}: expected {low} to {high}, found {shown(value)}")
    if "pattern" in rules:
        for text in value if isinstance(value, tuple) else (value,):
            if not rules["pattern"].fullmatch(text):
                raise ValueError(f"{name}: expected {rules['what']}, found {shown(text)}")


def _checked(kind: type, value: Any, name: str) -> Any:
    if type(value) is not kind:  # a bool is no int
        raise ValueError(f"{name}: expected {_KINDS[kind]}, found {shown(value)}")
    return value


def shown(value: object) -> str:
    """A JSON value as one short line; containers by their type only, since they may be deep or large."""
    if value is None:
        return "nothing"
    if isinstance(value, (dict, list)):
        return _KINDS[type(value)]
    if isinstance(value, int) and abs(value) > 2**64:
        return "a huge number"
    text = ascii(value)
    return text if len(text) <= 60 else text[:57] + "..."
