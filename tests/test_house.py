"""The layout: imports point up the map of docs/architecture.md only, and never in a circle."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAP = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").split("```text\n")[1].split("```")[0]
MOST_MODULES = 15
OUTSIDE = ("setup", "tests", "docs", "examples", "build", "dist")
PYTORCH = "benchmarks.peers.pytorch"


def parts_of(line: str) -> list[str]:
    """The names before a line's description: `errors.py, _base/` is errors and _base."""
    return re.findall(r"(\w+)(?:/|\.py)", re.split(r"\s{2,}", line)[0])


LINES = [line for line in MAP.splitlines() if line[:1] not in ("", " ") and re.match(r"[\w, ./]+\s{2,}", line)]
ORDER = [name for line in LINES for name in parts_of(line)]
BENCHMARKS = next(line for line in LINES if line.startswith("benchmarks/"))
WINGS = re.findall(r"(\w+)/", BENCHMARKS)[1:]


@cache
def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name within it; a package is its `__init__`."""
    found = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[0] not in OUTSIDE and not parts[0].startswith("."):
            found[".".join(parts)] = path
    return found


def imported(name: str, source: str | None = None) -> Iterator[str]:
    """The modules of the package that a module imports from, wherever in its code, also by their names as strings."""
    folder = name.split(".")[:-1]
    tree = ast.parse(source or modules()[name].read_text(encoding="utf-8"))
    yield from named_by_strings(tree, folder)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (known(alias.name.split(".")[1:]) for alias in node.names if alias.name.startswith("lavt_edge."))
        elif isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").split(".")[0] == "lavt_edge"):
            base = folder[: len(folder) - node.level + 1] if node.level else []
            parts = [*base, *(node.module or "").split(".")[0 if node.level else 1 :]]
            parts = [part for part in parts if part]
            for alias in node.names:
                yield known([*parts, alias.name])


def named_by_strings(tree: ast.Module, folder: list[str]) -> Iterator[str]:
    """Modules whose full names are strings; if the code imports by name, those that are named from its folder, too."""
    names = {getattr(node, "attr", getattr(node, "id", "")) for node in ast.walk(tree)}
    imports_by_name = bool(names & {"import_module", "__import__", "run_module", "lazy_names"})
    for text in (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)):
        if not isinstance(text, str) or not re.fullmatch(r"\.*\w+(\.\w+)*", text):
            continue
        path = text.lstrip(".")
        dots = len(text) - len(path)
        named = [path.removeprefix("lavt_edge.")] if path.startswith("lavt_edge.") else []
        if imports_by_name:  # a table may leave out the first dot, which its reader adds
            named += [".".join([*folder[: len(folder) - up], path]) for up in {max(dots - 1, 0), dots}]
        yield from {name for one in named for name in (one, f"{one}.__init__") if name in modules()}


def known(parts: list[str]) -> str:
    """The module that these parts name, or that holds the last of them."""
    for tried in (parts, parts[:-1]):
        for name in (".".join(tried), ".".join([*tried, "__init__"])):
            if name in modules():
                return name
    raise AssertionError(f"no module {'.'.join(parts)}")


def graph() -> dict[str, set[str]]:
    return {name: set(imported(name)) - {name} for name in modules()}


@pytest.mark.parametrize(
    ("source", "module"),
    [
        ("from ...export.graph import export_graph", "export.graph"),
        ("def later():\n    from ...commands import run", "commands.run"),
        ("if TYPE_CHECKING:\n    from ..report.page import page", "benchmarks.report.page"),
        ("from lavt_edge.cli import run_main", "cli"),
        ("def later():\n    import lavt_edge.commands.run as run", "commands.run"),
        ("import_module('lavt_edge.commands.run')", "commands.run"),
        ("import_module('..report.page', __package__)", "benchmarks.report.page"),
        ("TABLE = {'torch': ('pytorch', 'TorchSide')}\nimport_module(f'.{TABLE[kind][0]}', __package__)", PYTORCH),
        ("lazy_names(__name__, {'page': '.report.page'})", "benchmarks.report.page"),
        ("[sys.executable, '-m', 'lavt_edge.reference.training']", "reference.training.__init__"),
    ],
)
def test_every_form_of_import_is_seen(source: str, module: str) -> None:
    assert module in imported("benchmarks.peers.sides", source)


def test_the_map_is_true_of_the_tree() -> None:
    folders = {name.split(".")[0] for name in modules()} - {"__init__"}
    assert sorted(ORDER) == sorted(folders)
    assert sorted(WINGS) == sorted(path.parent.name for path in ROOT.glob("benchmarks/*/__init__.py"))
    for line in LINES:
        for folder in re.findall(r"(\w+)/(?!\w)", re.split(r"\s{2,}", line, maxsplit=1)[1]):
            assert (ROOT / parts_of(line)[0] / folder / "__init__.py").is_file(), line
    for path in re.findall(r"[\w/]+\.py", MAP.split("Start at")[1]):
        assert (ROOT / path).is_file(), path


def rank(name: str) -> tuple[int, int]:
    """A module's place in the map, then its wing's within benchmarks; the root's `__init__` is below all."""
    parts = name.split(".")
    if parts == ["__init__"]:
        return -1, -1
    wing = WINGS.index(parts[1]) if parts[0] == "benchmarks" and len(parts) > 2 else -1
    return ORDER.index(parts[0]), wing


@pytest.mark.parametrize("name", sorted(modules()))
def test_imports_point_up_the_map(name: str) -> None:
    for other in imported(name):
        assert rank(other) <= rank(name), f"{name} imports {other}, which the map has below it"


def test_no_module_imports_in_a_circle() -> None:
    try:
        order = list(TopologicalSorter(graph()).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))
    assert len(order) == len(modules()) > 120
    assert sum(map(len, graph().values())) > 400


def test_no_folder_is_crowded() -> None:
    for folder in {path.parent for path in modules().values()}:
        assert len(list(folder.glob("*.py"))) <= MOST_MODULES, folder
