"""Every input of lavt-edge, damaged in every way that a seed leads to.

    python -m lavt_edge.tests.stress.inputs --seconds 300 --seed 1

`--kind` with `--case` tries one case again.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from lavt_edge.tests.stress import bundles, calibration_files, checkpoints, images, sentences
from lavt_edge.tests.stress.cases import Kind, try_cases

KINDS: dict[str, Kind] = {
    **images.KINDS,
    **sentences.KINDS,
    **bundles.KINDS,
    **checkpoints.KINDS,
    **calibration_files.KINDS,
}
_TURN = 5.0


def run(seconds: float, seed: int) -> dict[str, int]:
    """Tries inputs of all kinds for about `seconds`, in turns of equal time; how many of each kind.

    Raises AssertionError on the first that is answered wrongly, with what reproduces it.
    """
    counts = dict.fromkeys(KINDS, 0)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        cases = {}
        for i, (kind, prepare) in enumerate(KINDS.items()):
            (place := Path(folder) / str(i)).mkdir()
            cases[kind] = prepare(place)
        turn = min(_TURN, seconds / len(KINDS))
        while time.monotonic() - begun < seconds:
            for kind, case in cases.items():
                counts[kind] += try_cases(kind, case, 10**9, seed, turn, watchdog=True)
            seed += 1
    return counts


def run_kind(kind: str, cases: int, seed: int, folder: Path) -> int:
    """Tries some cases of one kind; `folder` is empty."""
    return try_cases(kind, KINDS[kind](folder), cases, seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=list(KINDS))
    parser.add_argument("--case", type=int, help="with --kind: this case alone")
    given = parser.parse_args()
    if given.kind is None:
        for kind, count in run(given.seconds, given.seed).items():
            print(f"{count:8d} {kind}")
        return
    with tempfile.TemporaryDirectory() as folder:
        case = KINDS[given.kind](Path(folder))
        if given.case is None:
            print(try_cases(given.kind, case, 10**9, given.seed, given.seconds, watchdog=True))
        else:
            case(np.random.default_rng([given.seed, given.case]))


if __name__ == "__main__":
    main()
