"""The files of a run that was divided into shards, as the file that the whole run would have written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ..._base import strict_json
from ..._base.records import from_plain
from ...data.refcoco import GENERALISED
from ...errors import LavtError, reason_of
from .results import (
    FIRST_KEY,
    FORMAT_VERSION,
    MAX_LINE,
    Run,
    SentenceResult,
    Shard,
    as_line,
    difference,
    open_locked,
    parse_result,
    unusable,
)


@dataclass(frozen=True)
class ShardFile:
    """A finished shard. `common` is its first line without the shard's number: equal in all shards of a run."""

    path: Path
    run: Run
    shard: Shard
    common: Mapping[str, Any]
    lines: Sequence[bytes]
    results: Sequence[SentenceResult]


def read_shards(paths: Sequence[Path]) -> list[ShardFile]:
    """The shards of one run, all of them, in the order of its split; `paths` are in any order.

    Raises LavtError if a file is not a finished shard's, of another run, or there twice, or if a shard is missing.
    """
    files = [_read(path) for path in paths]
    first, by_number = files[0], dict[int, ShardFile]()
    for file in files:
        if file.common != first.common:
            reason = difference(as_line(file.common), as_line(first.common))
            raise LavtError(f"{file.path}: of another run than {first.path} ({reason}); merge the shards of one run")
        twin = by_number.setdefault(file.shard.number, file)
        if twin is not file:
            raise LavtError(f"{file.path}: shard {file.shard.number} again, as in {twin.path}; give each shard once")
    count, missing = first.shard.of, first.shard.of - len(files)
    if missing:
        number = next(number for number in range(1, count + 1) if number not in by_number)
        are = "is" if missing == 1 else f"and {missing - 1} more are"
        raise LavtError(f"shard {number}/{count} {are} missing; run with --shard {number}/{count}, then merge all")
    return [by_number[number] for number in sorted(by_number)]


def write_merged(shards: Sequence[ShardFile], path: Path, *, restart: bool = False) -> None:
    """Writes the whole run's file, over one of the same run that stopped too; over any other if `restart`.

    Raises LavtError.
    """
    header = as_line({key: value for key, value in shards[0].common.items() if key != "shard"})
    content = b"".join([header, *(line for shard in shards for line in shard.lines)])
    with open_locked(path) as file:
        try:
            if not restart and not content.startswith(file.read(len(content) + 1)):
                raise LavtError(
                    f"{path}: holds something else than these shards; name another file with --results, or "
                    "replace it with --restart"
                )
            file.seek(0)
            file.write(content)
            file.truncate()
        except OSError as error:
            raise unusable(path, error) from error


def _read(path: Path) -> ShardFile:
    """A shard's file, whole. Raises LavtError."""
    try:
        with path.open("rb") as file:
            first = file.readline(MAX_LINE)
            run, header = _parse_header(first)
            if run.shard is None:
                raise LavtError(f"{path}: of a run that was not divided; give the files that --shard wrote")
            part = run.shard.part(run.batch)
            lines = list(islice(iter(lambda: file.readline(MAX_LINE), b""), part.stop - part.start + 1))
    except OSError as error:
        raise LavtError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise LavtError(f"{path}: not a results file of lavt-bench ({reason_of(error)})") from error
    results = _parse_results(path, lines, part.stop - part.start, run.dataset == GENERALISED)
    common = {**header, "shard": {key: value for key, value in header["shard"].items() if key != "number"}}
    return ShardFile(path, run, run.shard, common, lines, results)


def _parse_header(line: bytes) -> tuple[Run, dict[str, Any]]:
    """What the first line says, checked and as it is. Raises ValueError."""
    header = strict_json.loads(line)
    run = from_plain(Run, header)
    if header.get(FIRST_KEY) != FORMAT_VERSION or run.batch < 1:
        raise ValueError(f"{FIRST_KEY} is {header.get(FIRST_KEY)}, batch {run.batch}")
    return run, header


def _parse_results(path: Path, lines: Sequence[bytes], count: int, generalised: bool) -> list[SentenceResult]:
    """The results of exactly `count` lines, of gRefCOCO or of others. Raises LavtError."""
    results: list[SentenceResult] = []
    for number, line in enumerate(lines, 2):
        if not line.endswith(b"\n") and len(line) < MAX_LINE:
            break
        result = parse_result(line)
        fields = () if result is None else (result.predicted, result.no_target)
        if result is None or len(results) == count or any((value is not None) != generalised for value in fields):
            raise LavtError(f"{path}: line {number} is damaged; run the shard again, with --restart")
        results.append(result)
    if len(results) < count:
        raise LavtError(f"{path}: {len(results)} of the shard's {count} sentences; run it again, it goes on from there")
    return results
