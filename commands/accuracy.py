"""`lavt-bench --dataset` and `--merge`: the accuracy of a bundle or a checkpoint, on all of a data set or in shards."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from .._base.exits import needs
from ..errors import LavtError, one_line
from .common import out, parse_heads, parse_shard, parse_size, print_table, progress_bar, refuse

if TYPE_CHECKING:
    from ..benchmarks.evaluation.evaluate import Evaluation

MODEL_OPTIONS = ("image_size", "fusion_heads", "bert", "vocabulary", "ema")


def bench_accuracy(context: typer.Context, asked: dict[str, Any]) -> None:
    """Runs a bundle or a checkpoint over a data set and prints its figures. Raises LavtError."""
    engine = asked["engine"]
    if engine is not None:
        refuse(
            context,
            ("checkpoint", *MODEL_OPTIONS),
            "is for a checkpoint and says nothing of a bundle; leave it or --engine out",
        )
    size = None if asked["image_size"] is None else parse_size(asked["image_size"])
    heads, shard = parse_heads(asked["fusion_heads"]), parse_shard(asked["shard"])
    from ..benchmarks.evaluation.evaluate import evaluate
    from ..benchmarks.evaluation.predictors import Predictor, load_bundle
    from ..data.sentences import open_split

    swap, run = asked["swap"], {name: asked[name] for name in ("batch_size", "device", "threads")}
    with progress_bar("opening the data set") as (_, progress):
        sentences = open_split(
            asked["dataset"],
            asked["split"],
            **{name: asked[name] for name in ("data_root", "split_by", "images")},
            swap=swap,
            progress=progress,
        )
    predictor: Predictor
    if engine is not None:
        predictor = load_bundle(engine, **run)
    else:
        with needs("export"):
            from ..benchmarks.evaluation.reference import load_reference
        from ..export.source import open_source

        beside = {"bert": asked["bert"], "words": asked["vocabulary"], "ema": asked["ema"]}
        predictor = load_reference(open_source(asked["checkpoint"], heads, **beside), image_size=size, **run)
    with progress_bar("sentences") as (_, progress):
        evaluation = evaluate(
            predictor,
            sentences,
            asked["results"],
            limit=asked["limit"],
            shard=shard,
            restart=asked["restart"],
            progress=progress,
        )
    _print_accuracy(evaluation)


def bench_merge(context: typer.Context, asked: dict[str, Any]) -> None:
    """Prints the figures of the shards' files as those of one run. Raises LavtError."""
    if not asked["merge"]:
        raise LavtError(f"{asked['files'][0]}: files are for --merge; name a bundle with --engine")
    others = tuple(name for name in asked if name not in ("merge", "files", "results", "restart"))
    refuse(context, others, "says nothing of a merge, which runs no model; leave it or --merge out")
    if not asked["files"]:
        raise LavtError("--merge needs the shards' results: name their files")
    from ..benchmarks.evaluation.evaluate import merge

    _print_accuracy(merge(asked["files"], asked["results"], restart=asked["restart"]))


def _print_accuracy(evaluation: Evaluation) -> None:
    print_table(one_line(evaluation.title), evaluation.header, evaluation.table())
    out.print(f"each sentence's result: {evaluation.results}")
