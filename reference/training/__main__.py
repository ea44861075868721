"""Trains the demo model on generated scenes: `python -m lavt_edge.reference.training --output DIR`.

Step k sees the same scenes in every run, and a run that was stopped goes on with `--resume` to the same weights. The
rate rises, stays and falls over the run's last part. DIR receives `checkpoint.pt`, `log.jsonl` (one line per 25 steps)
and in the end `loss.png` and `demo.safetensors`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..._base.exits import run_typer

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    output: Annotated[Path, typer.Option(help="Folder for checkpoint, log and weights.")],
    steps: Annotated[int, typer.Option(min=1, help="Length of the whole run.")] = 3000,
    minutes: Annotated[float, typer.Option(help="Stop after this long; --resume goes on from there.")] = 80,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in the output folder.")] = False,
    rate: Annotated[float, typer.Option(help="Highest learning rate.")] = 1.5e-3,
    threads: Annotated[int, typer.Option(min=1, help="Cores to use; it is part of what the result depends on.")] = 2,
    seed: Annotated[int, typer.Option(help="Seed of weights and scenes.")] = 1,
    half: Annotated[bool, typer.Option(help="bfloat16 where it is safe: faster on CPUs that have it.")] = True,
) -> None:
    """Train the demo model."""
    from rich.console import Console

    from .trainer import Options, train

    options = Options(steps=steps, rate=rate, threads=threads, seed=seed, half=half)
    train(output, options, minutes=minutes, resume=resume, console=Console())


if __name__ == "__main__":
    run_typer(app)
