"""`lavt-export trt` for its tests: run to its end, or started and watched, and what a bundle holds before and after."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

COMMAND = Path(sys.executable).parent / "lavt-export"
TARGETS = ("sm86", "sm89")


def trt(bundle: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [
        COMMAND,
        "trt",
        bundle,
        "--flavor",
        "tensorrt_rtx",
        "--compute-capability",
        ",".join(TARGETS),
        *arguments,
    ]
    return subprocess.run([str(part) for part in command], capture_output=True, text=True)


def state(bundle: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in bundle.iterdir()}


def refused(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.strip().count("\n") == 0
    return done.stderr


WATCHED = """
import sys
from pathlib import Path
from lavt_edge import cli
from lavt_edge.export.engines import bundle as engine
original = engine.build_engines
def watched(*arguments, progress, **more):
    def tell(phase, share):
        print(phase, share, flush=True)
        progress(phase, share)
    return original(*arguments, progress=tell, **more)
engine.build_engines = watched
sys.argv = ["lavt-export", "trt", sys.argv[1], "--flavor", "tensorrt_rtx", "--compute-capability", "sm86"]
cli.export_main()
"""


def start_and_wait_for(bundle: Path, phase: str) -> subprocess.Popen[str]:
    """The command, once it says that it is in the midst of a phase."""
    process = subprocess.Popen(
        [sys.executable, "-c", WATCHED, str(bundle)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        name, _, share = line.strip().rpartition(" ")
        if name.startswith(phase) and float(share) > 0:
            return process
    raise AssertionError(f"{phase} was never reached: {process.communicate()[1]}")


def damage(bundle: Path, name: str, data: bytes) -> None:
    """Another file under the name, and a manifest that agrees with it."""
    (bundle / name).unlink()
    (bundle / name).write_bytes(data)
    manifest: dict[str, Any] = json.loads((bundle / "lavt.json").read_text())
    manifest["files"][name].update(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))
    (bundle / "lavt.json").unlink()
    (bundle / "lavt.json").write_text(json.dumps(manifest))
