"""The demo model's bundle, made by the command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def export_demo(bundle: Path) -> Path:
    """Writes the demo model's bundle, of its own input size, to `bundle`."""
    program = Path(sys.executable).parent / "lavt-export"
    subprocess.run([str(program), "onnx", "--output", str(bundle)], check=True, stdout=subprocess.DEVNULL)
    return bundle
