"""Checks against real CUDA bindings every call that a source file makes of `self._api`; run in a process of its own.

    python cuda_lookup.py MODULE FILE

Prints JSON: `found` and `missing` names such as "cudaMemcpyKind.cudaMemcpyHostToDevice", and `misfits`, calls whose
arguments the function does not take.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import sys
from pathlib import Path


def path_of(node: ast.expr) -> list[str]:
    """["cudaMemcpyKind", "cudaMemcpyHostToDevice"] for `self._api.cudaMemcpyKind.cudaMemcpyHostToDevice`; else []."""
    names: list[str] = []
    while isinstance(node, ast.Attribute) and node.attr != "_api":
        names.insert(0, node.attr)
        node = node.value
    return names if isinstance(node, ast.Attribute) else []


def main(module: str, file: str) -> None:
    api = importlib.import_module(module)
    tree = ast.parse(Path(file).read_text(encoding="utf-8"))
    # A property or variable that stands for part of the API, such as `_kind` for cudaMemcpyKind.
    short: dict[str, list[str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and isinstance(node.body[-1], ast.Return) and node.body[-1].value:
            short[node.name] = path_of(node.body[-1].value)
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            short[node.targets[0].id] = path_of(node.value)
    found, missing, misfits = set(), set(), []
    for node in ast.walk(tree):
        names = path_of(node) if isinstance(node, ast.Attribute) else []
        if not names and isinstance(node, ast.Attribute):
            base = node.value.attr if isinstance(node.value, ast.Attribute) else getattr(node.value, "id", "")
            names = [*short[base], node.attr] if short.get(base) else []
        owner = api
        for name in names:
            owner = getattr(owner, name, None)
        if names:
            (missing if owner is None else found).add(".".join(names))
        if isinstance(node, ast.Call):
            direct = path_of(node.func)
            function, arguments = (
                (direct, node.args) if direct else (path_of(node.args[0]) if node.args else [], node.args[1:])
            )
            if len(function) == 1 and callable(getattr(api, function[0], None)):
                try:
                    inspect.signature(getattr(api, function[0])).bind(*arguments)
                except TypeError as error:
                    misfits.append(f"{function[0]} with {len(arguments)} arguments: {error}")
    print(json.dumps({"found": sorted(found), "missing": sorted(missing), "misfits": misfits}))


if __name__ == "__main__":
    main(*sys.argv[1:])
