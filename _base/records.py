"""Frozen dataclasses as plain JSON types, and back: one rule for every class, by its fields."""

from __future__ import annotations

import math
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

Record = TypeVar("Record")
# The metadata of a field that JSON leaves out while it is None.
OPTIONAL = {"optional": True}


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


def from_plain(kind: type[Record], value: object) -> Record:
    """The dataclass that `to_plain` wrote. Keys that it has no field for are passed over.

    Raises ValueError, which names the field, if one is missing or is not of the type that the class says.
    """
    made: Record = _read(kind, value, kind.__name__)
    return made


def _read(kind: Any, value: Any, name: str) -> Any:
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        (inner_kind,) = (one for one in inner if one is not types.NoneType)
        return None if value is None else _read(inner_kind, value, name)
    if is_dataclass(kind):
        return _read_fields(kind, _checked(dict, value, name), name)
    if origin is tuple:
        values = _checked(list, value, name)
        kinds = inner[:1] * len(values) if inner[-1] is Ellipsis else inner
        if len(kinds) != len(values):
            raise ValueError(f"{name} has {len(values)} values, not {len(kinds)}")
        return tuple(
            _read(one, content, f"{name}[{i}]") for i, (one, content) in enumerate(zip(kinds, values, strict=True))
        )
    if origin is Mapping:
        return {key: _read(inner[1], content, f"{name}.{key}") for key, content in _checked(dict, value, name).items()}
    if kind is Path:
        return Path(_checked(str, value, name))
    if kind is float and type(value) is int:
        return value
    return _checked(kind, value, name)


def _read_fields(kind: Any, values: Mapping[str, Any], name: str) -> Any:
    hints, given = get_type_hints(kind), {}
    for field in fields(kind):
        if field.name in values:
            given[field.name] = _read(hints[field.name], values[field.name], f"{name}.{field.name}")
        elif field.default is MISSING:
            raise ValueError(f"{name}.{field.name} is missing")
    return kind(**given)


def _checked(kind: type, value: Any, name: str) -> Any:
    if type(value) is not kind:  # a bool is no int
        raise ValueError(f"{name} is {type(value).__name__}, not {kind.__name__}")
    return value
