"""A measurement against an earlier one, for people's own CI: slower only if the interval says so."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..._base import strict_json
from ..._base.records import from_plain
from ..._base.timing import Ratio, divided, unpaired_ratio
from ...errors import LavtError
from .machine import Machine
from .result import FORMAT_VERSION, Result

_MAX_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Verdict:
    """`change` is the engine's time now over then, `through` the peer that both runs were compared with, or None."""

    change: Ratio
    through: str | None
    slower: bool
    notes: tuple[str, ...] = ()


def read_result(path: Path) -> Result:
    """What `lavt-bench --json` wrote. Raises LavtError if the file is not that."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise LavtError(f"{path}: larger than {_MAX_BYTES} bytes; give a file that lavt-bench --json wrote")
        plain = strict_json.loads(path.read_bytes())
    except OSError as error:
        raise LavtError(f"{path}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise LavtError(f"{path}: not JSON; give a file that lavt-bench --json wrote") from error
    if not isinstance(plain, dict) or plain.get("format") != FORMAT_VERSION:
        raise LavtError(f"{path}: not a result of lavt-bench, format {FORMAT_VERSION}")
    try:
        result = from_plain(Result, plain)
        _check(result)
    except ValueError as error:
        raise LavtError(
            f"{path}: damaged, or of a single round ({error}); measure it again with lavt-bench --json"
        ) from error
    return result


def _check(result: Result) -> None:
    """Raises ValueError if `compare_with_baseline` could not use a result."""
    for side in result.sides:
        if len(side.seconds) < 2 or not all(map(_is_time, side.seconds)):
            raise ValueError(f"seconds of {side.name}")
    for row in result.ratios:
        if not all(map(_is_time, (row.low, row.ratio, row.high))) or not row.low <= row.ratio <= row.high:
            raise ValueError(f"ratio over {row.against}")
    if not result.sides or _peers(result) != [row.against for row in result.ratios]:
        raise ValueError("not each peer has one ratio")


def _is_time(value: float) -> bool:
    """Whether a value is positive, and arithmetic neither rounds it to zero nor overflows with it."""
    return 1e-100 < value < 1e100


def compare_with_baseline(result: Result, baseline: Result, max_slowdown: float) -> Verdict:
    """Whether the engine, the first side, is slower than in an earlier result, by more than `max_slowdown` (1.05).

    If both runs measured the same peer beside it, engine over peer is compared: what slowed the machine slowed both.
    Otherwise the times themselves are, which holds on a machine that is as fast as then. Slower means that the whole
    interval lies above. Raises LavtError for another size, batch, precision, device or number of threads.
    """
    now, then = result.sides[0], baseline.sides[0]
    for key in ("size", "batch", "precision", "device"):
        before, here = getattr(then, key), getattr(now, key)
        if before != here:
            raise LavtError(f"--baseline: its {key} is {before}, here it is {here}; measure both alike")
    threads = baseline.machine.threads, result.machine.threads
    if threads[0] != threads[1]:
        raise LavtError(f"--baseline: measured with {threads[0]} threads, here with {threads[1]}; measure both alike")
    common = next((name for name in _peers(result) if name in _peers(baseline)), None)
    notes = []
    if common is not None:
        change = divided(_ratio(result, common), _ratio(baseline, common))
    else:
        change = unpaired_ratio(now.seconds, then.seconds)
        notes.append("no peer is in both runs, so a slower machine counts as a slower engine; give both --against one")
    if now.runtime != then.runtime:
        notes.append(f"the baseline ran on {then.runtime}, this on {now.runtime}")
    for before, here in zip(_models(baseline.machine), _models(result.machine), strict=True):
        if before != here:
            notes.append(f"the baseline is of another machine ({before}, here {here})")
    return Verdict(change, common, change.low > max_slowdown, tuple(notes))


def _peers(result: Result) -> list[str]:
    return [side.name for side in result.sides[1:]]


def _ratio(result: Result, against: str) -> Ratio:
    return next(row for row in result.ratios if row.against == against)


def _models(machine: Machine) -> tuple[str | None, str | None]:
    """The names of the CPU and the GPU."""
    return machine.cpu.model, None if machine.gpu is None else machine.gpu.get("name")
