"""The runtime's tests that need neither torch nor onnx nor transformers, to be run where the runtime is alone."""

from __future__ import annotations

import os
import shutil
import subprocess
from itertools import product
from pathlib import Path

from lavt_edge.tests.runtime_bundle import ready_bundle, write_bundle

# A test among them that does need one of them skips itself.
RUNTIME_TESTS = (
    "test_runtime_backend.py",
    "test_runtime_bundle.py",
    "test_runtime_cuda.py",
    "test_runtime_images.py",
    "test_runtime_overlay.py",
    "test_runtime_segmenter.py",
    "test_runtime_stream.py",
    "test_runtime_tensorrt.py",
    "test_runtime_tensorrt_choice.py",
    "test_runtime_tensorrt_fit.py",
)
BESIDE_THEM = (
    "conftest.py",
    "engine_records.py",
    "runtime_bundle.py",
    "runtime_engines.py",
    "runtime_machine.py",
    "runtime_simulated_cuda.py",
)


def run(*command: str | Path, **environment: str) -> str:
    """Its output. In the root folder, so that the checkout is not taken for what is installed."""
    parts = [str(part) for part in command]
    done = subprocess.run(parts, capture_output=True, text=True, env={**os.environ, **environment}, cwd=os.sep)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    return done.stdout


def copy_tests(package: Path, ready: Path) -> Path:
    """Puts the tests into an installed package, and the bundles that they need into `ready`. Returns their folder."""
    tests = package / "tests"
    tests.mkdir()
    for name in (*RUNTIME_TESTS, *BESIDE_THEM):
        shutil.copy(Path(__file__).parent / name, tests)
    for batch, seed, external in (*product((1, 3, None), (0, 1), (False,)), (1, 0, True)):
        write_bundle(ready_bundle(ready, batch, seed, external), batch, seed, external)
    return tests
