"""One real-size export that several test files share: `lavt-export onnx` on an official-layout file for base."""

from __future__ import annotations

import gc
import json
import os
import pty
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from lavt_edge.reference import LAVTConfig
from lavt_edge.tests.golden import golden_lavt, official_content


@dataclass(frozen=True)
class CommandRun:
    """A run of `lavt-export onnx`: the bundle, exit code, seconds, peak memory in bytes, what a terminal showed."""

    bundle: Path
    returncode: int
    seconds: float
    peak: int
    shown: str


def watch(command: list[str], bundle: Path) -> CommandRun:
    """Runs a command with a terminal for its output."""
    terminal, side = pty.openpty()
    shown: list[bytes] = []

    def read() -> None:
        while True:
            try:
                data = os.read(terminal, 1 << 16)
            except OSError:  # the other side is closed
                return
            shown.append(data)

    start, peak = time.monotonic(), 0
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=side, stderr=side, env=environment)
    os.close(side)
    reader = threading.Thread(target=read)
    reader.start()
    while process.poll() is None:
        # The kernel keeps the peak of the process's own memory; a child's resource usage would count its parent's.
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                peak = max(peak, int(line.split()[1]) * 1024)
        time.sleep(0.1)
    seconds = time.monotonic() - start
    reader.join()
    os.close(terminal)
    return CommandRun(bundle, process.returncode, seconds, peak, b"".join(shown).decode(errors="replace"))


def export_base(folder: Path) -> None:
    """`lavt-export onnx` on an official-layout file for base with golden weights and BERT, optimizer state included."""
    checkpoint, bundle = folder / "official.pth", folder / "bundle"
    model = golden_lavt(LAVTConfig(swin="base", window=12, variant="lavt"))
    torch.save(official_content(model, optimizer_bytes=600_000_000), checkpoint)
    del model
    gc.collect()
    assert checkpoint.stat().st_size > 1_500_000_000
    executable = Path(sys.executable).parent / "lavt-export"
    command = [str(executable), "onnx", "--checkpoint", str(checkpoint), "--output", str(bundle)]
    run = watch(command, bundle)
    print(f"\nbase: {run.seconds:.0f} s, peak memory {run.peak / 1e9:.2f} GB\n{run.shown[-1000:]}")
    assert run.returncode == 0, run.shown
    checkpoint.unlink()
    (folder / "run.json").write_text(json.dumps(asdict(run), default=str))


def recorded(folder: Path) -> CommandRun:
    """The run that `export_base` made in a folder."""
    run = json.loads((folder / "run.json").read_text())
    return CommandRun(**{**run, "bundle": Path(run["bundle"])})
