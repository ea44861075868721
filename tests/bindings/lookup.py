"""Looks up in a TensorRT module every name of it that given source files use; run in a process of its own.

    python lookup.py MODULE FILE...

Prints JSON: `found` and `missing` names such as "ICudaEngine.num_io_tensors" or "MemoryPoolType.WORKSPACE", and
`guarded`, those that are missing where the code asks first (hasattr, getattr with a default, suppress(AttributeError)).

Names are collected from the source: what hangs on the module (`flavor.module.X`, a parameter `module: ModuleType`),
and what is asked of its objects. An object's type comes from annotations (`engine: tensorrt.ICudaEngine`),
constructors, and the return types that the bindings' own docstrings state.
"""

from __future__ import annotations

import ast
import importlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

MODULE = "module"
LIST = "list"
INSTANCE = "instance"
Known = tuple[str, Any]  # MODULE and the module; INSTANCE and its class; LIST and a class; "object" and what it is


class Lookup:
    """The names that were looked up in `module`, file by file."""

    def __init__(self, module: ModuleType) -> None:
        self.module = module
        self.found: set[str] = set()
        self.missing: set[str] = set()
        self.asked: set[str] = set()  # names that some code asks for before it uses them
        self._recording = False
        self.members: dict[str, type] = {}  # attributes and functions of our own that hold or return its objects

    def annotated(self, annotation: ast.expr | None) -> type | None:
        """The class in an annotation such as `tensorrt.ICudaEngine | None`."""
        names = re.findall(r"\btensorrt\.(\w+)", ast.unparse(annotation)) if annotation else []
        for name in names:
            (self.found if hasattr(self.module, name) else self.missing).add(name)
        return self._class(names[0]) if len(names) == 1 else None

    def _class(self, name: str) -> type | None:
        cls = getattr(self.module, name, None)
        return cls if isinstance(cls, type) else None

    def _get(self, owner: Any, name: str, path: str) -> Any:
        if hasattr(owner, name):
            self.found.add(path)
            return getattr(owner, name)
        if self._recording:
            self.missing.add(path)
        return None

    def declare(self, tree: ast.Module) -> None:
        """Notes the attributes, properties and functions that are annotated with a class of TensorRT."""
        for node in ast.walk(tree):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Attribute):
                self._declare(node.target.attr, node.annotation)
            elif isinstance(node, ast.FunctionDef):
                self._declare(node.name, node.returns)
            elif (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in ("hasattr", "getattr")
            ):
                guarded = node.func.id == "hasattr" or len(node.args) == 3
                if guarded and isinstance(node.args[1], ast.Constant):
                    self.asked.add(node.args[1].value)
            elif isinstance(node, ast.With) and "AttributeError" in ast.unparse(node.items[0]):
                self.asked |= {part.attr for part in ast.walk(node) if isinstance(part, ast.Attribute)}

    def _declare(self, name: str, annotation: ast.expr | None) -> None:
        cls = self.annotated(annotation)
        if cls is not None:
            self.members[name] = cls

    def visit(self, tree: ast.Module) -> None:
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                self._scope(node)
            elif isinstance(node, ast.ClassDef):
                self._recording = True
                for base in node.bases:
                    self.resolve(base, {MODULE: (MODULE, self.module)})
                self._recording = False

    def _scope(self, scope: ast.FunctionDef) -> None:
        names: dict[str, Known] = {}
        for argument in scope.args.args + scope.args.kwonlyargs:
            cls = self.annotated(argument.annotation)
            if cls is not None:
                names[argument.arg] = (INSTANCE, cls)
            elif argument.annotation is not None and ast.unparse(argument.annotation) == "ModuleType":
                names[argument.arg] = (MODULE, self.module)
        for node in ordered(scope):
            if isinstance(node, ast.Assign):
                self._assign(node.targets[0], node.value, names)
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                cls = self.annotated(node.annotation)
                if cls is not None:
                    names[node.target.id] = (INSTANCE, cls)
            elif isinstance(node, (ast.For, ast.comprehension)) and isinstance(node.target, ast.Name):
                kind, cls = self.resolve(node.iter, names) or (None, None)
                if kind == LIST:
                    names[node.target.id] = (INSTANCE, cls)
        self._recording = True
        for node in ast.walk(scope):
            if isinstance(node, ast.Attribute):
                before = set(self.missing)
                self.resolve(node, names)
                if any(start <= node.lineno <= end for start, end in after_asking(scope)):
                    self.asked |= self.missing - before
        self._recording = False

    def _assign(self, target: ast.expr, value: ast.expr, names: dict[str, Known]) -> None:
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple) and len(target.elts) == len(value.elts):
            for one, of in zip(target.elts, value.elts, strict=True):
                self._assign(one, of, names)
        elif isinstance(target, ast.Name):
            known = self.resolve(value, names)
            if known is not None:
                names[target.id] = known

    def resolve(self, node: ast.expr, names: dict[str, Known]) -> Known | None:
        """What an expression is, as far as TensorRT is concerned; looks up what it asks of TensorRT."""
        if isinstance(node, ast.Name):
            return names.get(node.id)
        if isinstance(node, ast.Call):
            return self._called(self.resolve(node.func, names), node.func)
        if isinstance(node, ast.ListComp):
            for generator in node.generators:
                self.resolve(generator.iter, names)
            known = self.resolve(node.elt, names)
            return (LIST, known[1]) if known and known[0] == INSTANCE else None
        if not isinstance(node, ast.Attribute):
            return None
        owner = self.resolve(node.value, names)
        if owner is None:
            if node.attr == MODULE:
                return MODULE, self.module
            cls = self.members.get(node.attr)
            return (INSTANCE, cls) if cls is not None else None
        kind, of = owner
        if kind == LIST or (kind == MODULE and node.attr.startswith("__")):
            return None
        name = "" if kind == MODULE else f"{of.__name__}." if isinstance(of, type) else ""
        value = self._get(of, node.attr, f"{name}{node.attr}")
        if value is None or kind != INSTANCE:
            return None if value is None else ("object", value)
        match = RETURNS.search(documented(value))
        returned = self._class(match[1]) if match else None
        if isinstance(value, property):
            return (INSTANCE, returned) if returned else None
        return ("method", returned)

    def _called(self, function: Known | None, node: ast.expr) -> Known | None:
        if function is None:
            cls = self.members.get(node.id) if isinstance(node, ast.Name) else None
            return (INSTANCE, cls) if cls is not None else None
        kind, of = function
        if kind == "method":
            return (INSTANCE, of) if of is not None else None
        return (INSTANCE, of) if isinstance(of, type) else function if kind == INSTANCE else None


def after_asking(scope: ast.FunctionDef) -> Iterator[tuple[int, int]]:
    """The lines that only run if a `hasattr` was true."""
    for node in ast.walk(scope):
        if isinstance(node, ast.If) and "hasattr(" in ast.unparse(node.test):
            if isinstance(node.test, ast.UnaryOp) and isinstance(node.body[-1], ast.Return):
                yield node.body[-1].lineno + 1, scope.end_lineno or 0
            else:
                yield node.body[0].lineno, node.body[-1].end_lineno or 0


RETURNS = re.compile(r"-> (?:[\w.]+\.)?(\w+)")


def documented(value: Any) -> str:
    return str((value.fget if isinstance(value, property) else value).__doc__ or "")


def ordered(scope: ast.AST) -> Iterator[ast.AST]:
    """The scope's nodes in the order of the source."""
    return iter(sorted(ast.walk(scope), key=lambda node: (getattr(node, "lineno", 0), getattr(node, "col_offset", 0))))


def main(module: str, *files: str) -> None:
    lookup = Lookup(importlib.import_module(module))
    trees = [ast.parse(Path(name).read_text(encoding="utf-8")) for name in files]
    for tree in trees:
        lookup.declare(tree)
    for tree in trees:
        lookup.visit(tree)
    guarded = {name for name in lookup.missing if name in lookup.asked or name.rpartition(".")[2] in lookup.asked}
    answer = {"found": lookup.found, "missing": lookup.missing - guarded, "guarded": guarded}
    print(json.dumps({key: sorted(value) for key, value in answer.items()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
