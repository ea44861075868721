"""What a fresh machine sees: the wheel, the lean runtime, quick help, clean code."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent


def run(*command: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)  # type: ignore[call-overload, no-any-return]


def make_python(folder: Path, *packages: str | Path) -> Path:
    """The Python of a new environment with these packages and what they depend on, nothing else, not even pip."""
    venv.create(folder)
    python = folder / "bin" / "python"
    installed = run(sys.executable, "-m", "uv", "pip", "install", "--quiet", "--python", python, *packages)
    assert installed.returncode == 0, installed.stderr
    return python


@pytest.fixture(scope="session")
def lean_python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with the wheel, its own dependencies and onnxruntime, nothing else."""
    return make_python(tmp_path_factory.mktemp("lean"), f"{wheel}[cpu]")


def test_wheel_holds_the_package_and_not_the_tests(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for expected in (
        "lavt_edge/runtime/segmenter.py",
        "lavt_edge/export/rewrites/pwam.py",
        "lavt_edge/benchmarks/report/style.css",
        "lavt_edge/reference/bert-base-uncased.vocab.txt",
        "lavt_edge/reference/demo.safetensors",
        "lavt_edge/cli.py",
        "lavt_edge/py.typed",
    ):
        assert expected in names
    assert not [name for name in names if "/tests/" in name or "/training/" in name]


def test_sdist_holds_what_building_testing_and_reading_need(distributions: tuple[Path, Path]) -> None:
    with tarfile.open(distributions[0]) as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    tracked = run("git", "ls-files", cwd=ROOT)
    if tracked.returncode:
        pytest.skip("no git checkout, whose files are compared with the sdist's")
    wanted = {name for name in tracked.stdout.splitlines() if (ROOT / name).is_file() and not name.startswith(".")}
    assert not wanted - names
    assert not {name for name in names if "__pycache__" in name or name.startswith((".", "demo-output"))}


def test_twine_finds_nothing(distributions: tuple[Path, Path]) -> None:
    checked = run(sys.executable, "-m", "twine", "check", "--strict", *distributions)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert checked.stdout.count("PASSED") == 2


def test_metadata_says_what_it_is(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = Parser().parsestr(archive.read(name).decode())
        assert [one for one in archive.namelist() if one.endswith(("licenses/LICENSE", "licenses/NOTICE"))]
    assert metadata["Name"] == "lavt-edge"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.10"
    assert wheel.name.endswith("-py3-none-any.whl")
    needed = [line.split(";")[0] for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert {re.split("[^A-Za-z]", line)[0] for line in needed} == {"numpy", "Pillow", "tokenizers", "typer", "rich"}


def test_runtime_imports_and_runs_where_torch_is_not(lean_python: Path, demo_bundle: Path, tmp_path: Path) -> None:
    missing = run(
        lean_python,
        "-c",
        "import importlib.util as u; import lavt_edge.runtime\n"
        "print([n for n in ('torch', 'onnx', 'transformers', 'timm') if u.find_spec(n)])",
        cwd=tmp_path,
    )
    assert (missing.returncode, missing.stdout.strip()) == (0, "[]"), missing.stderr

    image = ROOT / "tests/data/refer_mini/images/mscoco/images/train2014/COCO_train2014_000000581000.jpg"
    done = run(lean_python.parent / "lavt-run", demo_bundle, image, "the red circle", "-o", "out.png", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "out.png" in done.stdout
    assert "on cpu" in done.stdout
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


def test_export_without_its_packages_says_what_to_install(lean_python: Path, tmp_path: Path) -> None:
    failed = run(lean_python.parent / "lavt-export", "onnx", "--output", "bundle", cwd=tmp_path)
    assert failed.returncode == 1
    assert failed.stderr.strip().count("\n") == 0
    assert "pip install 'lavt-edge[export]'" in failed.stderr
    assert not any(tmp_path.iterdir())


def test_serving_without_its_packages_says_what_to_install(lean_python: Path, tmp_path: Path) -> None:
    failed = run(lean_python.parent / "lavt-serve", "bundle", cwd=tmp_path)
    assert failed.returncode == 1
    assert failed.stderr.strip().count("\n") == 0
    assert "pip install 'lavt-edge[serve]'" in failed.stderr


@pytest.mark.parametrize(
    "command", [["lavt-export"], ["lavt-export", "onnx"], ["lavt-run"], ["lavt-bench"], ["lavt-serve"]]
)
def test_help_imports_nothing_heavy(command: list[str]) -> None:
    code = (
        "import sys; sys.argv = [*sys.argv[1:], '--help']\n"
        "from lavt_edge import cli\n"
        "try:\n    getattr(cli, sys.argv[0].removeprefix('lavt-') + '_main')()\n"
        "finally:\n    heavy = {'torch', 'onnx', 'onnxruntime', 'transformers', 'timm', 'numpy'} & set(sys.modules)\n"
        "    print('heavy:', sorted(heavy))"
    )
    shown = run(sys.executable, "-c", code, *command)
    assert shown.returncode == 0, shown.stderr
    assert "heavy: []" in shown.stdout


@pytest.mark.parametrize("target", ["demo", "test", "stress", "bench", "gpu-check"])
def test_make_starts_what_exists(target: str) -> None:
    recipe = run("make", "-n", "-s", "-o", ".venv/.installed", f"BIN={BIN}", target, cwd=ROOT)
    assert recipe.returncode == 0, recipe.stderr
    for line in recipe.stdout.splitlines():
        python, flag, module, *_ = line.split()
        assert flag == "-m"
        shown = run(python, flag, module, "--help", cwd=ROOT)
        assert shown.returncode == 0, shown.stderr


def test_what_is_promised_to_be_quick_is_timed() -> None:
    timed = run(sys.executable, "-m", "lavt_edge.benchmarks.runs.promises")
    assert timed.returncode == 0, timed.stderr
    for what in ("import lavt_edge.runtime", "lavt-export --help", "640x480 frame"):
        assert re.search(rf"^{re.escape(what)}.* \d+\.\d+ s, promised ", timed.stdout, re.MULTILINE)


def test_ruff_finds_nothing() -> None:
    for arguments in (("check",), ("format", "--check")):
        result = run(BIN / "ruff", *arguments, ROOT)
        assert result.returncode == 0, result.stdout + result.stderr


def test_mypy_finds_nothing(tmp_path: Path) -> None:
    # The repository root is the package, so mypy must meet it under the package's name.
    (tmp_path / "lavt_edge").symlink_to(ROOT)
    environment = {**os.environ, "MYPY_CACHE_DIR": str(ROOT / ".mypy_cache")}
    packages = ["_base", "benchmarks", "calibration", "commands", "data", "export", "reference", "runtime", "serving"]
    packages += ["cli", "errors"]
    targets = [part for name in packages for part in ("-p" if (ROOT / name).is_dir() else "-m", f"lavt_edge.{name}")]
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), *targets]
    result = run(*command, cwd=tmp_path, env=environment)
    assert result.returncode == 0, result.stdout + result.stderr
