"""docs/api.md: the public API from its docstrings, and the commands from their options. Written by generate.py."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import textwrap
import typing
from collections.abc import Iterator
from types import ModuleType
from typing import Any

MODULES = (
    "lavt_edge.runtime",
    "lavt_edge.data",
    "lavt_edge.reference",
    "lavt_edge.benchmarks.accuracy",
    "lavt_edge.export",
    "lavt_edge.calibration",
    "lavt_edge.errors",
)
COMMANDS = {
    "lavt-export": "export.export_app",
    "lavt-run": "run.run_app",
    "lavt-bench": "bench.bench_app",
    "lavt-serve": "serve.serve_app",
}
SECTIONS = ("Args", "Attributes", "Raises", "Returns")
HEAD = """# API reference

Written by `python docs/generate.py` from docstrings and options; a test compares. Arrays are given by their shape:
B images, H and W pixels, N pixels as rows, T words, L channels of a word, C channels of a pixel.
"""


def reference() -> str:
    """The whole page."""
    parts = [HEAD]
    for name in MODULES:
        module = importlib.import_module(name)
        parts += [f"## {name}\n", f"{_cells(inspect.cleandoc(module.__doc__ or ''))}\n"]
        for one in _public(module):
            parts += _entry(one, getattr(module, one))
    parts += ["## Commands\n"]
    for command, app in COMMANDS.items():
        module, _, name = app.partition(".")
        parts += _command(command, getattr(importlib.import_module(f"lavt_edge.commands.{module}"), name))
    return "\n".join(parts)


def _cells(text: str) -> str:
    """A text with tables, whose bars within code end no cell."""
    rows = [line if line[:1] != "|" else re.sub("`[^`]*`", _without_bars, line) for line in text.splitlines()]
    return "\n".join(rows)


def _without_bars(match: re.Match[str]) -> str:
    return match[0].replace("|", r"\|")


def _public(module: ModuleType) -> list[str]:
    """A module's public classes and functions; errors stand in lavt_edge.errors alone."""
    names = getattr(module, "__all__", None)
    if names is None:
        names = [name for name, found in vars(module).items() if getattr(found, "__module__", "") == module.__name__]
    own = [name for name in names if not name.startswith("_") and inspect.getmodule(getattr(module, name))]
    if module.__name__ == "lavt_edge.errors":
        return [name for name in own if inspect.isclass(getattr(module, name))]
    return sorted((name for name in own if getattr(module, name).__module__ != "lavt_edge.errors"), key=str.lower)


def _entry(name: str, found: Any) -> Iterator[str]:
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(found))).body
    yield f"### {name}\n"
    if isinstance(node, ast.FunctionDef):
        yield f"`{_signature(node, name)}`\n"
        yield from _docstring(node)
        return
    assert isinstance(node, ast.ClassDef)
    bases = ", ".join(map(ast.unparse, node.bases))
    yield f"`class {name}{f'({bases})' if bases else ''}`\n"
    methods = [part for part in node.body if isinstance(part, ast.FunctionDef)]
    decorators = {part: {ast.unparse(one) for one in part.decorator_list} for part in methods}
    if not any("classmethod" in kinds for kinds in decorators.values()):  # else those make the objects
        yield from (f"`{_signature(part, name)[: -len(' -> None')]}`\n" for part in methods if part.name == "__init__")
    yield from _docstring(node)
    if "Attributes:" not in (ast.get_docstring(node) or ""):
        yield from _fields(node)
    for part, kinds in decorators.items():
        if "overload" in kinds or part.name.startswith("_") or not ast.get_docstring(part):
            continue
        shown = f"{name}.{part.name}" if "classmethod" in kinds else part.name
        yield f"#### {name}.{part.name}\n"
        if "property" in kinds:
            yield f"`{part.name}: {ast.unparse(part.returns) if part.returns else ''}`\n"
        else:
            yield f"`{_signature(part, shown)}`\n"
        yield from _docstring(part)


def _signature(node: ast.FunctionDef, name: str) -> str:
    arguments = ast.unparse(node.args)
    arguments = re.sub(r"^(self|cls)(, |$)", "", arguments)
    returns = f" -> {ast.unparse(node.returns)}" if node.returns is not None else ""
    return f"{name}({arguments}){returns}"


def _fields(node: ast.ClassDef) -> Iterator[str]:
    """A dataclass's fields, each with the text that stands below it."""
    lines = []
    for part, below in zip(node.body, [*node.body[1:], None], strict=True):
        if isinstance(part, ast.AnnAssign) and not ast.unparse(part.target).startswith("_"):
            text = ""
            if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
                text = ": " + " ".join(str(below.value.value).split())
            default = (
                "" if part.value is None or "field(" in ast.unparse(part.value) else f" = {ast.unparse(part.value)}"
            )
            lines.append(f"- `{ast.unparse(part.target)}: {ast.unparse(part.annotation)}{default}`{text}")
    if lines:
        yield "\n".join(lines) + "\n"


def _docstring(node: ast.FunctionDef | ast.ClassDef) -> Iterator[str]:
    """A docstring as Markdown: its sections as lists, its indented examples as blocks."""
    text = ast.get_docstring(node)
    blocks: list[str] = []
    for part in re.split(r"\n\s*?\n", text) if text else ():
        if part.startswith("    ") and blocks and blocks[-1].startswith("    "):
            blocks[-1] += f"\n\n{part}"  # an example goes on over its empty lines
        else:
            blocks.append(part)
    for block in blocks:
        lines = block.splitlines()
        head, rest = lines[0].rstrip(":"), textwrap.dedent("\n".join(lines[1:]))
        if lines[0].endswith(":") and head in SECTIONS:
            rest = rest.replace("\n ", "")
            items = re.sub(r" +", " ", rest).splitlines()
            shown = [re.sub(r"^(\w+): ", r"`\1`: ", item) if head != "Returns" else item for item in items]
            yield f"{head}:\n\n" + "\n".join(f"- {item}" for item in shown) + "\n"
        elif lines[0].startswith("    "):
            yield f"```python\n{textwrap.dedent(block)}\n```\n"
        else:
            yield f"{block}\n"


def _command(name: str, app: Any) -> Iterator[str]:
    registered = app.registered_commands
    for one in registered:
        shown = f"{name} {one.name}" if one.name else name
        yield f"### {shown}\n"
        yield f"{inspect.cleandoc(one.callback.__doc__)}\n"
        yield "| | | by default | |\n| --- | --- | --- | --- |"
        hints = typing.get_type_hints(one.callback, include_extras=True)
        parameters = inspect.signature(one.callback).parameters
        yield "\n".join(_parameter(parameters[key], hint) for key, hint in hints.items() if _is_parameter(hint)) + "\n"


def _is_parameter(hint: Any) -> bool:
    return typing.get_origin(hint) is typing.Annotated


def _parameter(parameter: inspect.Parameter, hint: Any) -> str:
    kind, info = typing.get_args(hint)
    kinds = [one for one in typing.get_args(kind) if one is not type(None)] or [kind]
    (base,) = kinds
    word = {"str": "text", "int": "integer", "float": "number", "Path": "path", "bool": "", "list": "text, repeatable"}
    base_name = getattr(typing.get_origin(base) or base, "__name__", str(base))
    given = [one for one in (info.default, *(info.param_decls or ())) if isinstance(one, str)]
    label = ", ".join(given or [f"--{parameter.name.replace('_', '-')}"])
    if type(info).__name__ == "ArgumentInfo":
        label = parameter.name.upper()
    default = "required"
    if parameter.default is not inspect.Parameter.empty:
        default = "" if parameter.default is None or parameter.default is False else f"`{parameter.default}`"
    return f"| `{label}` | {word[base_name]} | {default} | {' '.join(info.help.split())} |"
