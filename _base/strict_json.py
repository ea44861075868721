"""JSON as the standard has it: what Python's reader takes beyond that is refused."""

from __future__ import annotations

import json
import math
from typing import Any


def loads(text: bytes | str) -> Any:
    """The value of a JSON text. Raises ValueError for NaN, a number that no float holds, deep nesting."""
    try:
        return json.loads(text, parse_constant=_refuse, parse_float=_finite)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _refuse(text[:30])
