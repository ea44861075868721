"""The entry points of lavt-export, lavt-run, lavt-bench and lavt-serve; each command is a module of `commands/`."""

from __future__ import annotations

from ._base.exits import run_typer


def export_main() -> None:
    from .commands.export import export_app

    run_typer(export_app)


def run_main() -> None:
    from .commands.run import run_app

    run_typer(run_app)


def bench_main() -> None:
    from .commands.bench import bench_app

    run_typer(bench_app)


def serve_main() -> None:
    from .commands.serve import serve_app

    run_typer(serve_app)
