"""`make arm-check`: the runtime on aarch64, under qemu, against this machine: its tests, masks, logits and refusals.

Needs qemu-aarch64-static and mmdebstrap (Debian's packages qemu-user-static and mmdebstrap) and nothing of the kernel:
a Debian root for arm64 is unpacked, not configured, and wheels for aarch64 are put beside it. Writes arm-check.json.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from lavt_edge.data.shapes import scene_at
from lavt_edge.tests.runtime_alone import copy_tests, run
from lavt_edge.tests.runtime_bundle import READY_BUNDLES

QEMU, BOOTSTRAP = "qemu-aarch64-static", "mmdebstrap"
MASKS = 20
# Of pixels and logits, by precision: INT8 kernels of another processor round to other steps, which is what INT8 costs.
BOUNDS = {"fp32": (0.9999, 1e-4), "int8-cpu": (0.999, 0.02)}

# ONNX Runtime crashes as it is unloaded under qemu, whatever ran: a process leaves before that.
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

    def test(self, folder: Path) -> dict[str, int]:
        """How many of the runtime's own tests passed, and were skipped."""
        tests = copy_tests(self.packages / "lavt_edge", folder / "ready")
        options = ("-q", "-rsfE", "--import-mode=importlib", "-p", "no:cacheprovider", "--rootdir", tests)
        shown = self.run(_TESTS, self.python, *options, tests, **{READY_BUNDLES: str(folder / "ready")})
        return {word: int(count) for count, word in re.findall(r"(\d+) (passed|skipped)", shown.splitlines()[-1])}

    def compare(self, folder: Path, bundle: Path, precision: str) -> dict[str, float]:
        """Over MASKS scenes: the least share of mask pixels equal to this machine's, and the logits' largest error."""
        sentences = ("the leftmost shape", "the red circle")
        images, here, there = (folder / f"{name}.npz" for name in ("images", "here", "there"))
        scenes = {f"{sentences[i % 2]}|{i}": np.asarray(scene_at(9, "val", i).render()) for i in range(MASKS)}
        np.savez(images, **scenes)  # type: ignore[arg-type]
        run(sys.executable, "-c", _SEGMENT, bundle, images, here, precision)
        self.run(_SEGMENT, bundle, images, there, precision)
        with np.load(here) as ours, np.load(there) as theirs:
            pairs = [(ours[name], theirs[name]) for name in scenes]
        shares = [np.mean((a[1] > a[0]) == (b[1] > b[0])) for a, b in pairs]
        errors = [np.linalg.norm(b - a) / np.linalg.norm(a) for a, b in pairs]
        return {"equal_pixels": float(min(shares)), "relative_error": float(max(errors))}

    def refusal(self, folder: Path, bundle: Path) -> str:
        """What `lavt-run` says of a bundle with one bit changed."""
        damaged = Path(shutil.copytree(bundle, folder / "damaged"))
        content = bytearray((damaged / "segmenter.onnx").read_bytes())
        content[len(content) // 2] ^= 1
        (damaged / "segmenter.onnx").write_bytes(content)
        photo = folder / "photo.png"
        scene_at(9, "val", 0).render().save(photo)
        return self.run(_REFUSED, damaged, photo, "the red circle").strip()


def check(folder: Path, wheel: Path) -> dict[str, object]:
    """All of it, as plain JSON. Raises AssertionError where aarch64 differs from this machine."""
    tools, bundle = Path(sys.executable).parent, folder / "bundle"
    run(tools / "lavt-export", "onnx", "--output", bundle)
    run(tools / "lavt-export", "quantize", bundle, "--int8", "--rest", "fp32", "--samples", "4", "--max-drop", "5")
    arm = Arm(folder, wheel)
    found = {precision: arm.compare(folder, bundle, precision) for precision in BOUNDS}
    for precision, figures in found.items():
        equal_pixels, relative_error = BOUNDS[precision]
        assert figures["equal_pixels"] >= equal_pixels, (precision, figures)
        assert figures["relative_error"] <= relative_error, (precision, figures)
    refusal = arm.refusal(folder, bundle)
    assert refusal.count("\n") == 0
    assert "segmenter.onnx" in refusal
    tests = arm.test(folder)
    assert tests["passed"] > 350
    return {"tests": tests, "masks": MASKS, "against_x86_64": found, "damaged_bundle": refusal}


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
