"""The extras on the machines that people have: each resolves to wheels, and no two pull apart what belongs together."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import product
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
# Published as sources that fetch NVIDIA's libraries when they are built: what the index has of them cannot be resolved.
SOURCES_ONLY = ("tensorrt", "tensorrt-rtx-cu13")
# Pure Python without a wheel, which nvidia-modelopt needs: pip builds it anywhere.
BUILT = ("cppimport",)
PYTHONS = ("3.10", "3.12")
MACHINES = ("aarch64-manylinux_2_35", "x86_64-manylinux_2_35")


def expanded(extra: str) -> list[str]:
    """The requirements of an extra, with those of the extras that it names."""
    lines: list[str] = []
    for line in EXTRAS[extra]:
        named = re.fullmatch(r"lavt-edge\[([\w,]+)\]", line)
        lines += [other for name in named[1].split(",") for other in expanded(name)] if named else [line]
    return lines


def resolve(extra: str, python: str, machine: str) -> dict[str, str]:
    """The versions of a package's wheels that pip would install."""
    wanted = [*PROJECT["dependencies"], *expanded(extra)]
    wanted = [line for line in wanted if re.split(r"[^\w-]", line)[0] not in SOURCES_ONLY]
    options = ("--python-version", python, "--python-platform", machine, "--no-header", "--no-python-downloads")
    options += ("--only-binary", ":all:", *(part for name in BUILT for part in ("--no-binary", name)))
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-annotate", *options, "-"]
    done = subprocess.run(command, input="\n".join(wanted), capture_output=True, text=True)
    if "dns error" in done.stderr or "Failed to fetch" in done.stderr or "client error" in done.stderr:
        pytest.skip(f"the package index cannot be reached: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    return dict(re.findall(r"^([\w.-]+)(?:\[[\w,]+\])?==(\S+)", done.stdout, re.MULTILINE))


@pytest.fixture(scope="module")
def resolved() -> Iterator[dict[tuple[str, str, str], Future[dict[str, str]]]]:
    """Every resolution, several at once: they wait for the package index."""
    with ThreadPoolExecutor(8) as pool:
        cases = product(EXTRAS, PYTHONS, MACHINES)
        yield {case: pool.submit(resolve, *case) for case in cases}


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("extra", EXTRAS)
def test_every_extra_resolves_to_wheels(
    extra: str, python: str, machine: str, resolved: dict[tuple[str, str, str], Future[dict[str, str]]]
) -> None:
    versions = resolved[extra, python, machine].result()
    assert {"numpy", "pillow", "tokenizers"} <= {name.lower() for name in versions}
    if any(line.startswith("cuda-bindings") for line in expanded(extra)) and machine.startswith("aarch64"):
        # A driver for CUDA 12, as JetPack 6 has with Python 3.10, refuses bindings of 13 with error 35.
        assert versions["cuda-bindings"].split(".")[0] == ("12" if python == "3.10" else "13")
    backends = {"onnxruntime", "onnxruntime-gpu"} & versions.keys()
    assert len(backends) <= 1, "onnxruntime and onnxruntime-gpu cannot stand beside each other"
    if "export" in extra or extra in ("cpu", "bench", "test"):
        assert backends


def test_the_bindings_are_split_in_one_place() -> None:
    named = [extra for extra, lines in EXTRAS.items() if any("cuda-bindings" in line for line in lines)]
    assert named == ["jetson"]
    assert {extra for extra in EXTRAS if EXTRAS["jetson"][0] in expanded(extra)} >= {"rtx", "trt", "jetson", "test"}


def test_jetson_check_sees_the_systems_packages(tmp_path: Path) -> None:
    """What `make jetson-check` would run: an environment over JetPack's, the runtime's extras and pytest, a bundle."""
    command = ["make", "--dry-run", "--always-make", "jetson-check", "BUNDLE=my-bundle", "PYTHON=python3"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert re.search(r"^python3 -m venv --system-site-packages (\S+)$", shown, re.MULTILINE)
    (packages,) = re.findall(r"pip install .*--editable '\.\[(.*)\]' (.*)$", shown, re.MULTILINE)
    assert set(packages[0].split(",")) == {"cpu", "jetson"}
    assert re.findall(r"'(\w+)", packages[1]) == ["pytest", "numpy"]
    assert re.search(r"gpu_check --bundle my-bundle$", shown, re.MULTILINE)
    refused = subprocess.run(["make", "jetson-check"], cwd=ROOT, capture_output=True, text=True)
    assert refused.returncode != 0
    assert "BUNDLE=" in refused.stderr


@pytest.mark.parametrize("python", PYTHONS)
def test_building_engines_does_not_hold_torch_back(
    python: str, resolved: dict[tuple[str, str, str], Future[dict[str, str]]]
) -> None:
    """On x86-64 torch brings CUDA's bindings of its own; a bound beside it would pick an older torch."""
    export, test = (resolved[extra, python, MACHINES[1]].result() for extra in ("export", "test"))
    assert test["torch"] == export["torch"]
