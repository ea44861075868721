"""Checks against real CUDA bindings every name of theirs in given source files; run in a process of its own.

    python cuda_lookup.py MODULE FILE...

Names are attributes of the API (`api.cudaMemcpyKind`), and strings such as "cudaMalloc", by which functions are called:
`call("cudaMalloc", size)`; `make("cudaFree", "cudaMalloc", size)`, where the last is called with what follows and the
others with one value; `[("cudaSetDevice", 0)]`. Prints JSON: `found` and `missing` names, and `misfits`, calls whose
arguments the function does not take.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAME = re.compile(r"cuda[A-Z]\w+")


def strings(nodes: list[ast.expr]) -> list[str]:
    """The names that a list of arguments begins with."""
    names: list[str] = []
    for node in nodes:
        if not (isinstance(node, ast.Constant) and isinstance(node.value, str) and NAME.fullmatch(node.value)):
            break
        names.append(node.value)
    return names


def calls(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Functions that are called, with the number of their arguments."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Attribute) and NAME.fullmatch(node.func.attr):
                yield node.func.attr, len(node.args)
            names = strings(node.args)
            if names and not names[-1].startswith("cudaMemcpyHost") and not names[-1].startswith("cudaMemcpyDevice"):
                yield names[-1], len(node.args) - len(names)
                yield from ((name, 1) for name in names[:-1])
        elif isinstance(node, ast.Tuple) and (names := strings(node.elts)):
            yield names[0], len(node.elts) - 1


def find(api: Any, name: str) -> Any:
    """A name of the API, or of one of its enumerations."""
    if hasattr(api, name):
        return getattr(api, name)
    kinds = (getattr(api, kind) for kind in dir(api) if NAME.fullmatch(kind))
    return next((getattr(kind, name) for kind in kinds if inspect.isclass(kind) and hasattr(kind, name)), None)


def main(module: str, *files: str) -> None:
    api = importlib.import_module(module)
    found, missing, misfits = set(), set(), []
    for file in files:
        tree = ast.parse(Path(file).read_text(encoding="utf-8"))
        used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and NAME.fullmatch(node.attr)}
        used |= {name for node in ast.walk(tree) if isinstance(node, ast.Constant) for name in strings([node])}
        for name in used:
            (missing if find(api, name) is None else found).add(name)
        for name, count in calls(tree):
            if callable(getattr(api, name, None)):
                try:
                    inspect.signature(getattr(api, name)).bind(*range(count))
                except TypeError as error:
                    misfits.append(f"{name} with {count} arguments: {error}")
    print(json.dumps({"found": sorted(found), "missing": sorted(missing), "misfits": misfits}))


if __name__ == "__main__":
    main(*sys.argv[1:])
