"""A measurement against an earlier one, for people's own CI: slower only where the interval says so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..._base import strict_json
from ...errors import LavtError
from .measure import FORMAT_VERSION
from .statistics import Ratio, divided, unpaired_ratio

_MAX_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Verdict:
    """`change` is the engine's time now over then, `through` the peer that both runs were compared with, or None."""

    change: Ratio
    through: str | None
    slower: bool
    notes: tuple[str, ...] = ()


def read_result(path: Path) -> dict[str, Any]:
    """What `lavt-bench --json` wrote. Raises LavtError where it is not that."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise LavtError(f"{path}: larger than {_MAX_BYTES} bytes; give a file that lavt-bench --json wrote")
        result = strict_json.loads(path.read_bytes())
    except OSError as error:
        raise LavtError(f"{path}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise LavtError(f"{path}: not JSON; give a file that lavt-bench --json wrote") from error
    if not isinstance(result, dict) or result.get("format") != FORMAT_VERSION:
        raise LavtError(f"{path}: not a result of lavt-bench, format {FORMAT_VERSION}")
    try:
        _check(result)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise LavtError(f"{path}: damaged, or of a single round; measure it again with lavt-bench --json") from error
    return result


def _check(result: dict[str, Any]) -> None:
    """Raises some error where `compare_with_baseline` could not use a result."""
    sides, ratios = result["sides"], result["ratios"]
    for side in sides:
        if not isinstance(side["name"], str) or len(side["seconds"]) < 2 or not all(map(_is_time, side["seconds"])):
            raise ValueError(side["name"])
    for row in ratios:
        if (
            not all(map(_is_time, (row["low"], row["ratio"], row["high"])))
            or not row["low"] <= row["ratio"] <= row["high"]
        ):
            raise ValueError(row["against"])
    if not sides or [side["name"] for side in sides[1:]] != [row["against"] for row in ratios]:
        raise ValueError("sides and ratios")
    for key in ("cpu", "gpu"):
        _model(result, key)


def _is_time(value: object) -> bool:
    """Whether a value is a positive number that arithmetic neither rounds to zero nor overflows with."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 1e-100 < value < 1e100


def compare_with_baseline(result: Mapping[str, Any], baseline: Mapping[str, Any], max_slowdown: float) -> Verdict:
    """Whether the engine, the first side, is slower than in an earlier result, by more than `max_slowdown` (1.05).

    Where both runs measured one peer beside it, engine over peer is compared: what slowed the machine slowed both.
    Otherwise the times themselves are, which holds on a machine that is as fast as then. Slower is what the interval
    leaves no doubt of. Raises LavtError for another size, batch, precision, device or number of threads.
    """
    now, then = result["sides"][0], baseline["sides"][0]
    for key in ("size", "batch", "precision", "device"):
        if now.get(key) != then.get(key):
            raise LavtError(f"--baseline: its {key} is {then.get(key)}, here it is {now.get(key)}; measure it alike")
    threads = [(one.get("machine") or {}).get("threads") for one in (baseline, result)]
    if threads[0] != threads[1]:
        raise LavtError(f"--baseline: measured with {threads[0]} threads, here with {threads[1]}; measure it alike")
    common = [name for name in _side_names(result)[1:] if name in _side_names(baseline)[1:]]
    if common:
        change = divided(_ratio(result, common[0]), _ratio(baseline, common[0]))
    else:
        change = unpaired_ratio(now["seconds"], then["seconds"])
    notes = []
    if not common:
        notes.append("no peer is in both runs, so a slower machine counts as a slower engine; give both --against one")
    if now.get("runtime") != then.get("runtime"):
        notes.append(f"the baseline ran on {then.get('runtime')}, this on {now.get('runtime')}")
    for key in ("cpu", "gpu"):
        if _model(result, key) != _model(baseline, key):
            notes.append(f"the baseline is of another machine ({_model(baseline, key)}, here {_model(result, key)})")
    return Verdict(change, common[0] if common else None, change.low > max_slowdown, tuple(notes))


def _side_names(result: Mapping[str, Any]) -> list[str]:
    return [str(side["name"]) for side in result["sides"]]


def _ratio(result: Mapping[str, Any], against: str) -> Ratio:
    (one,) = [row for row in result["ratios"] if row["against"] == against]
    return Ratio(one["ratio"], one["low"], one["high"])


def _model(result: Mapping[str, Any], key: str) -> str | None:
    about = (result.get("machine") or {}).get(key) or {}
    return about.get("model") or about.get("name")
