"""What a Jetson installs: wheels that exist for its processor and Python, and a runtime that passes its tests there."""

from __future__ import annotations

import configparser
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from lavt_edge.tests.runtime_alone import copy_tests, run
from lavt_edge.tests.runtime_bundle import READY_BUNDLES

ROOT = Path(__file__).parent.parent
JETPACK6 = (3, 10)
NEVER = {"torch", "torchvision", "onnx", "transformers", "timm", "tensorrt", "opencv_python_headless"}


def find_python(version: tuple[int, int]) -> Path | None:
    """A Python of this version: this one, pyenv's, or one on the PATH."""
    name = f"{version[0]}.{version[1]}"
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = [sys.executable, *sorted(pyenv.glob(f"{name}.*/bin/python")), shutil.which(f"python{name}")]
    for path in filter(None, found):
        asked = subprocess.run([path, "-c", "import sys; print(sys.version_info[:2])"], capture_output=True, text=True)
        if asked.stdout.strip() == str(version):
            return Path(path)
    return None


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment of JetPack 6's Python."""
    base = find_python(JETPACK6)
    if base is None:
        pytest.skip(f"no Python {JETPACK6[0]}.{JETPACK6[1]} was found: put one on the PATH")
    folder = tmp_path_factory.mktemp("jetpack6")
    run(base, "-m", "venv", "--without-pip", folder)
    return folder / "bin" / "python"


def test_every_dependency_is_a_wheel_for_a_jetson(wheel: Path, tmp_path: Path) -> None:
    """Installed for JetPack 6 by uv, which takes markers from the machine that it installs for."""
    target = ("--python-version", "3.10", "--python-platform", "aarch64-manylinux_2_35", "--only-binary", ":all:")
    run(sys.executable, "-m", "uv", "pip", "install", "--quiet", *target, "--target", tmp_path, f"{wheel}[cpu,jetson]")
    installed = list(importlib.metadata.distributions(path=[str(tmp_path)]))
    versions = {entry.name.lower().replace("-", "_"): entry.version for entry in installed}
    assert {"lavt_edge", "numpy", "pillow", "tokenizers", "onnxruntime", "polygraphy", "cuda_bindings"} <= set(versions)
    assert not NEVER & set(versions)
    for entry in installed:
        tags = re.findall(r"^Tag: (\S+)$", entry.read_text("WHEEL") or "", re.MULTILINE)
        assert tags
        assert all(tag.endswith(("-none-any", "_aarch64")) for tag in tags), entry.name
    assert versions["cuda_bindings"].startswith("12."), "JetPack 6 has a driver for CUDA 12"


def test_the_runtime_passes_its_tests_on_the_python_of_jetpack_6(python: Path, wheel: Path, tmp_path: Path) -> None:
    # numpy<2 as docs/jetson.md says, for JetPack's OpenCV.
    packages = (f"{wheel}[cpu,jetson]", "numpy<2", "pytest>=8", "hypothesis>=6.100")
    run(sys.executable, "-m", "uv", "pip", "install", "--quiet", "--python", python, *packages)
    package = Path(run(python, "-c", "import lavt_edge; print(lavt_edge.__path__[0])").strip())
    tests = copy_tests(package, tmp_path)
    arguments = ("-q", "-rsfE", "--import-mode=importlib", "-p", "no:cacheprovider", "--rootdir", tests)
    shown = run(python, "-m", "pytest", *arguments, tests, **{READY_BUNDLES: str(tmp_path)})
    passed = re.search(r"(\d+) passed", shown)
    assert passed
    assert int(passed[1]) > 350, shown
    skipped = [line for line in shown.splitlines() if line.startswith("SKIPPED")]
    assert all(re.search("torch|onnx|openvino|CUDA|TensorRT|tensorrt", line) for line in skipped), skipped


@pytest.mark.parametrize(
    ("name", "program"), [("lavt-camera", "/examples/camera.py"), ("lavt-serve", "/bin/lavt-serve")]
)
def test_the_services_run_what_is_there(name: str, program: str) -> None:
    """Units that systemd takes, whose program is an example or a command."""
    path = ROOT / "examples" / f"{name}.service"
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read(path)
    assert set(unit.sections()) == {"Unit", "Service", "Install"}
    assert unit["Service"]["User"] != "root"
    assert "WatchdogSec" not in unit["Service"]
    assert program in unit["Service"]["ExecStart"]
    if analyze := shutil.which("systemd-analyze"):
        said = subprocess.run([analyze, "verify", path], capture_output=True, text=True)
        assert all("is not executable: No such file" in line for line in said.stderr.splitlines()), said.stderr


def test_the_container_copies_what_is_there() -> None:
    lines = (ROOT / "examples" / "Dockerfile.jetson").read_text().splitlines()
    copied = [word for line in lines if line.startswith("COPY") for word in line.split()[1:-1] if "*" not in word]
    assert copied
    for name in copied:
        assert (ROOT / name).exists(), name


def test_no_power_mode_is_named_by_its_number_alone() -> None:
    """They differ from module to module: mode 0 is the slowest of an Orin Nano Super and the fastest of an AGX Orin."""
    page = (ROOT / "docs" / "jetson.md").read_text(encoding="utf-8")
    assert re.findall(r"nvpmodel -m (\S+)", page) == ['"${id:?there']
    assert not re.findall(r"(?i)\bmode [0-9]+\b", page)
    assert "/etc/nvpmodel.conf" in page
