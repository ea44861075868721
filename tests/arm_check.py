"""`make arm-check`: the runtime on aarch64, under qemu, against this machine: its tests, masks, logits and refusals.

Needs qemu-aarch64-static and mmdebstrap (Debian's packages qemu-user-static and mmdebstrap) and nothing of the kernel:
a Debian root for arm64 is unpacked, not configured, and wheels for aarch64 are put beside it. Writes arm-check.json.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from lavt_edge.data.shapes import scene_at
from lavt_edge.tests.runtime_alone import RUNTIME_TESTS, copy_tests, run
from lavt_edge.tests.runtime_bundle import READY_BUNDLES
from PIL import Image

SIZE = "160"  # pixels: qemu takes six seconds for 240
QEMU, BOOTSTRAP = "qemu-aarch64-static", "mmdebstrap"
# By precision: scenes, the least share of equal pixels, the largest error of the logits. INT8 rounds what FP32 kernels
# give it: where those differ in the last digit, some of it moves by a step.
BOUNDS = {"fp32": (20, 0.9999, 1e-4), "int8-cpu": (4, 0.999, 0.02)}

# ONNX Runtime crashes as it is unloaded under qemu, whatever ran: a process leaves before that. One that a test starts
# does not.
_UNLOADS = "test_runtime_backend.py::test_without_a_gpu_auto_is_the_cpu_and_prints_nothing"
_LEAVE = "\nimport os, sys\nsys.stdout.flush()\nsys.stderr.flush()\nos._exit(int(code))"
_TESTS = "import sys, pytest\nsys.executable = sys.argv.pop(1)\ncode = pytest.main(sys.argv[1:])"
_REFUSED = """
import sys
from lavt_edge.cli import run_main
sys.stderr = sys.stdout
try:
    run_main()
except SystemExit as error:
    code = not error.code
"""
_SEGMENT = """
import sys
import numpy as np
from lavt_edge.runtime import Segmenter
from lavt_edge.runtime.images import resize
bundle, images, output, precision = sys.argv[1:]
found = {}
with np.load(images) as given, Segmenter.load(bundle, device="cpu", precision=precision) as segmenter:
    for name, image in given.items():
        prompt = segmenter.encode(name.split("|")[0])
        small = resize(image, *segmenter.input_size)[None]
        found[name] = segmenter.run_graph(small, prompt.prompt[None], prompt.word_mask[None])[0]
np.savez(output, **found)
code = 0
"""


class Arm:
    """A Debian root for arm64 with a wheel, what that needs, and pytest."""

    def __init__(self, folder: Path, wheel: Path) -> None:
        root, self.packages, self.python = folder / "root", folder / "packages", folder / "python"
        packages = "--include=python3,libgomp1,libstdc++6"
        run(BOOTSTRAP, "--quiet", "--variant=extract", "--architectures=arm64", packages, "bookworm", root)
        # A program that tests can start as well: the kernel knows no aarch64.
        self.python.write_text(f'#!/bin/sh\nexec {QEMU} -L {root} {root}/usr/bin/python3.11 "$@"\n')
        self.python.chmod(0o755)
        target = ("--python-version", "3.11", "--python-platform", "aarch64-manylinux_2_28", "--only-binary", ":all:")
        # ONNX Runtime 1.32 reads the host's caches as it is imported, and crashes under qemu 7.2.
        wanted = (f"{wheel}[cpu]", "onnxruntime~=1.24.2", "pytest>=8", "hypothesis>=6.100")
        run(sys.executable, "-m", "uv", "pip", "install", "--quiet", *target, "--target", self.packages, *wanted)

    def run(self, code: str, *arguments: str | Path, **environment: str) -> str:
        """What Python code, which sets `code`, prints."""
        return run(self.python, "-c", code + _LEAVE, *arguments, PYTHONPATH=str(self.packages), **environment)

    def test(self, folder: Path) -> Counter[str]:
        """How many of the runtime's own tests passed, and were skipped."""
        tests = copy_tests(self.packages / "lavt_edge", folder / "ready")
        options = ("-q", "-rsfE", "--import-mode=importlib", "-p", "no:cacheprovider", "--rootdir", tests)

        def passed_and_skipped(names: Sequence[str]) -> Counter[str]:
            chosen = [*options, "--deselect", _UNLOADS, *(tests / name for name in names)]
            shown = self.run(_TESTS, self.python, *chosen, **{READY_BUNDLES: str(folder / "ready")})
            return Counter({word: int(count) for count, word in re.findall(r"(\d+) (passed|skipped)", shown[-200:])})

        with ThreadPoolExecutor() as pool:
            first, second = pool.map(passed_and_skipped, (RUNTIME_TESTS[::2], RUNTIME_TESTS[1::2]))
        return first + second

    def compare(self, folder: Path, bundle: Path, precision: str) -> dict[str, float]:
        """Over scenes: the least share of mask pixels equal to this machine's, and the logits' largest error."""
        sentences = ("the leftmost shape", "the red circle")
        images, here, there = (folder / f"{name}.npz" for name in ("images", "here", "there"))
        scenes = {f"{sentences[i % 2]}|{i}": scene_at(9, "val", i).render() for i in range(BOUNDS[precision][0])}
        np.savez(images, **scenes)  # type: ignore[arg-type]
        run(sys.executable, "-c", _SEGMENT, bundle, images, here, precision)
        self.run(_SEGMENT, bundle, images, there, precision)
        with np.load(here) as ours, np.load(there) as theirs:
            pairs = [(ours[name], theirs[name]) for name in scenes]
        shares = [np.mean((a[1] > a[0]) == (b[1] > b[0])) for a, b in pairs]
        errors = [np.linalg.norm(b - a) / np.linalg.norm(a) for a, b in pairs]
        return {"masks": len(pairs), "equal_pixels": float(min(shares)), "relative_error": float(max(errors))}

    def refusal(self, folder: Path, bundle: Path) -> str:
        """What `lavt-run` says of a bundle with one bit changed."""
        damaged = Path(shutil.copytree(bundle, folder / "damaged"))
        content = bytearray((damaged / "segmenter.onnx").read_bytes())
        content[len(content) // 2] ^= 1
        (damaged / "segmenter.onnx").write_bytes(content)
        photo = folder / "photo.png"
        Image.fromarray(scene_at(9, "val", 0).render()).save(photo)
        return self.run(_REFUSED, damaged, photo, "the red circle").strip()


def check(folder: Path, wheel: Path) -> dict[str, object]:
    """All of it, as plain JSON. Raises AssertionError where aarch64 differs from this machine."""
    arm = Arm(folder, wheel)
    with ThreadPoolExecutor() as pool:
        testing = pool.submit(arm.test, folder)
        tools, bundle = Path(sys.executable).parent, folder / "bundle"
        run(tools / "lavt-export", "onnx", "--image-size", SIZE, "--output", bundle)
        run(tools / "lavt-export", "quantize", bundle, "--int8", "--rest", "fp32", "--samples", "4", "--max-drop", "5")
        figures = {precision: arm.compare(folder, bundle, precision) for precision in BOUNDS}
        refusal, tests = arm.refusal(folder, bundle), testing.result()
    for precision, (_, equal_pixels, relative_error) in BOUNDS.items():
        assert figures[precision]["equal_pixels"] >= equal_pixels, figures
        assert figures[precision]["relative_error"] <= relative_error, figures
    assert refusal.count("\n") == 0
    assert "segmenter.onnx" in refusal
    assert tests["passed"] > 350
    return {"tests": tests, "against_x86_64": figures, "damaged_bundle": refusal}


def main() -> None:
    for tool in (QEMU, BOOTSTRAP):
        if shutil.which(tool) is None:
            sys.exit(f"error: {tool} is not installed: apt install qemu-user-static mmdebstrap")
    with TemporaryDirectory() as name:
        folder = Path(name)
        run(sys.executable, "-m", "build", "--wheel", "--outdir", folder, Path(__file__).parent.parent)
        (wheel,) = folder.glob("*.whl")
        shown = json.dumps(check(folder, wheel), indent=1)
    Path("arm-check.json").write_text(shown + "\n", encoding="utf-8")
    print(shown)


if __name__ == "__main__":
    main()
