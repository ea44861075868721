"""What is promised to be quick: seconds, the best of five, beside the promise; part of `make bench`.

    python -m lavt_edge.benchmarks.runs.promises --data-root ROOT

With `--data-root`, reading RefCOCO's train split is timed as well.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np

from ..._base.exits import run_main
from ...runtime.images import prepare, result_of

_IMPORT = "import time; start = time.perf_counter(); import lavt_edge.runtime; print(time.perf_counter() - start)"
_HELP = "import sys; from lavt_edge.cli import export_main; sys.argv = ['lavt-export', '--help']; export_main()"
_REFCOCO = (
    "import sys, time; start = time.perf_counter(); from lavt_edge.data import RefCOCO; "
    "RefCOCO(sys.argv[1], split='train'); print(time.perf_counter() - start)"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", help="the folder that holds refcoco and images")
    root = parser.parse_args().data_root
    sizes = ((480, 640, 3), (1080, 1920, 3))
    vga, hd = (np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8) for size in sizes)
    logits = np.random.default_rng(0).standard_normal((2, 480, 480), dtype=np.float32)
    promises: list[tuple[str, float, Callable[[], float]]] = [
        ("import lavt_edge.runtime", 0.3, lambda: float(_python(_IMPORT))),
        ("lavt-export --help", 1.0, lambda: _timed(lambda: _python(_HELP))),
        ("640x480 frame: resize and mask", 0.012, lambda: _timed(lambda: _around_the_model(vga, logits))),
        ("1920x1080 frame: resize and mask", 0.020, lambda: _timed(lambda: _around_the_model(hd, logits))),
    ]
    if root is not None:
        promises.append(("open RefCOCO, train", 20.0, lambda: float(_python(_REFCOCO, root))))
    for what, promised, measure in promises:
        best = min(measure() for _ in range(5))
        print(f"{what:32} {best:8.4f} s, promised {promised:g} s{'' if best <= promised else ': too slow'}")


def _python(code: str, *arguments: str) -> str:
    return subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True, text=True).stdout


def _timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _around_the_model(frame: np.ndarray, logits: np.ndarray) -> None:
    prepared = prepare(frame, *logits.shape[1:])
    result_of(logits, "", (prepared.height, prepared.width)).mask.any()


if __name__ == "__main__":
    run_main(main)
