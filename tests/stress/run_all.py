"""The heavy form of the robustness tests, under 30 minutes on two cores; CI runs a bounded form of each.

    python -m lavt_edge.tests.stress.run_all --output stress.json

Prints a table, writes the figures as JSON, and exits with 1 where anything failed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures import TimeoutError as NotDone
from pathlib import Path
from typing import Any

from lavt_edge._base.files import write_whole
from lavt_edge.commands.common import print_table
from lavt_edge.tests.stress import faults, soak, threads
from lavt_edge.tests.stress.source import export_demo

PART_SECONDS = 1500.0
"""After which a part counts as hanging."""
_PARTS = ("inputs", "kills", "threads", "soak")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("stress.json"), help="the JSON to write")
    parser.add_argument("--parts", default=",".join(_PARTS), help=f"some of {', '.join(_PARTS)}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--input-seconds", type=float, default=300)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5, help="of all calls, in each of eight threads")
    parser.add_argument("--calls", type=int, default=10_000, help="of the soak")
    given = parser.parse_args()
    chosen = given.parts.split(",")
    if not set(chosen) <= set(_PARTS):
        parser.error(f"--parts {given.parts}: give some of {', '.join(_PARTS)}")
    begun = time.monotonic()
    os.environ["PYTHONWARNINGS"] = "ignore:resource_tracker"  # which tells of the semaphores of the killed
    with tempfile.TemporaryDirectory(prefix="lavt-stress-") as folder:
        found = _run(chosen, given, Path(folder))
    found["seconds"] = round(time.monotonic() - begun, 1)
    write_whole(given.output, (json.dumps(found, indent=1) + "\n").encode())
    _print(found)
    return 1 if any("failed" in found[part] for part in chosen) else 0


def _run(chosen: list[str], given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    bundle = export_demo(folder / "demo") if {"threads", "soak"} & set(chosen) else folder
    works: dict[str, Callable[[], Mapping[str, Any]]] = {
        "inputs": lambda: _in_own_process(_inputs, given.input_seconds, given.seed),
        "kills": lambda: _in_own_process(faults.run, given.kills, given.seed),
        "threads": lambda: _in_own_process(threads.run, bundle, given.rounds, given.seed),
        "soak": lambda: _in_own_process(soak.run, bundle, given.calls, given.seed),
    }
    found: dict[str, Any] = {}
    for part in chosen:
        print(f"{part} ...", flush=True)
        try:
            found[part] = dict(works[part]())
        except Exception as error:  # whatever it is, the other parts still run, and the exit code tells
            found[part] = {"failed": f"{type(error).__name__}: {error}"}
            print(f"{part} failed: {error}", flush=True)
    return found


def _inputs(seconds: float, seed: int) -> dict[str, int]:
    from lavt_edge.tests.stress.inputs import run

    return run(seconds, seed)


def _in_own_process(work: Callable[..., Mapping[str, Any]], *arguments: Any) -> Mapping[str, Any]:
    """What `work` returns. After PART_SECONDS it is killed with all that it started: TimeoutError."""
    # A group of its own, by which its own processes are found too.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=os.setpgrp) as pool:
        group = pool.submit(os.getpid).result()
        done = pool.submit(work, *arguments)
        try:
            return done.result(PART_SECONDS)
        except (NotDone, KeyboardInterrupt) as stop:
            if done.done():  # the work's own error
                raise
            os.killpg(group, signal.SIGKILL)
            if isinstance(stop, KeyboardInterrupt):
                raise
            raise TimeoutError(f"no end after {PART_SECONDS:g} seconds") from None


def _print(found: dict[str, Any]) -> None:
    for part in _PARTS:
        rows = [(name, str(value)) for name, value in found.get(part, {}).items()]
        if rows:
            print_table(part, ("what", "figure"), rows)


if __name__ == "__main__":
    raise SystemExit(main())
