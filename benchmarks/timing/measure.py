"""An engine and its peers measured in one run.

Sides take turns, one call each per round, in an order that changes from round to round; each has its own process.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from ..._base.exits import needs
from ..._base.progress import Progress, Report, ignore
from ..._base.timing import interleave, paired_ratio, summarise
from ...errors import LavtError
from ...export.source import Source, peer_source
from ...runtime.bundle import open_bundle
from ..peers.process import RemoteSide, run_in_subprocess
from ..peers.sides import PEERS, SideSpec, batch_of, specify
from .latency import split_call
from .machine import Ticks, describe_machine, machine_warnings, run_warnings
from .result import Memory, Options, Result, SideRatio, SideResult, SweepPoint

SPLIT_ROUNDS = 10
RANDOM_PEERS = "peers of the reference have random weights of the bundle's configuration: only their time counts"
OTHER_PEERS = "the peers' checkpoint is another than the bundle's"


def measure(options: Options, *, report: Report = ignore, progress: Progress = ignore) -> Result:
    """Times the engine and its peers; parts, estimate, layers and fidelity are left for others to add.

    `report` is told each step, `progress` (rounds done, rounds in all).

    Raises LavtError if the engine or a peer cannot be opened or run, or if options contradict each other.
    """
    if options.rounds < 2 and options.against:
        raise LavtError("--rounds 1 gives no interval; measure 2 or more rounds against a peer")
    machine = describe_machine(options.threads)
    warnings = machine_warnings(machine)
    specs = prepare_sides(options, report, warnings)
    before = Ticks.now()
    sides = measure_sides(specs, options.warmup, options.rounds, report, progress, warnings, split=options.split)
    warnings += run_warnings([side.name for side in sides], [side.seconds for side in sides], before, Ticks.now())
    return Result(
        machine=machine,
        options=options,
        sides=tuple(sides),
        ratios=tuple(ratios_of(sides)),
        warnings=tuple(dict.fromkeys(warnings)),
        sweeps=tuple(sweep(options, specs, report, progress)),
    )


def prepare_sides(options: Options, report: Report = ignore, warnings: list[str] | None = None) -> list[SideSpec]:
    """The sides of the options, the engine first; makes the plain export if one is asked for. Raises LavtError."""
    bundle = open_bundle(options.engine)
    source = peer_source(bundle, options.checkpoint)
    specs = specify(
        options.engine,
        options.against,
        source=source,
        batch=batch_of(bundle, options.batch),
        threads=options.threads,
        device=options.device,
        text=options.text,
        image=options.image,
        frame=options.frame,
    )
    wanted = {name for name in options.against if name in PEERS}
    runs_reference = any(PEERS[name].plain or PEERS[name].kind == "torch" for name in wanted)
    if warnings is not None and runs_reference and not source.is_of(bundle):
        warnings.append(RANDOM_PEERS if source.kind == "random" else OTHER_PEERS)
    if not any(PEERS[name].plain for name in wanted):
        return specs
    report("plain export of the reference")
    plain = run_in_subprocess(_make_plain_export, options.engine, source)
    taking = [False, *(name in PEERS and PEERS[name].plain for name in options.against)]
    return [replace(spec, plain=plain) if takes else spec for spec, takes in zip(specs, taking, strict=True)]


def _make_plain_export(engine: Path, source: Source) -> Path:
    with needs("export"):
        from ..peers.plain import plain_export
    return plain_export(engine, source)


def measure_sides(
    specs: Sequence[SideSpec],
    warmup: int,
    rounds: int,
    report: Report = ignore,
    progress: Progress = ignore,
    warnings: list[str] | None = None,
    *,
    split: bool = False,
) -> list[SideResult]:
    """Opens the sides, measures them in turn, and describes each; with `split` also where bundles spend a call's time.

    Raises LavtError if a side cannot be opened or run.
    """
    with ExitStack() as stack:
        sides: list[RemoteSide] = []
        for spec in specs:
            report(f"opening {spec.name}")
            sides.append(stack.enter_context(RemoteSide(spec)))
            if warnings is not None:
                warnings += [f"{spec.name}: {line}" for line in sides[-1].warnings]
        report("measuring")
        seconds = interleave(sides, warmup, rounds, progress)
        described = [_describe(side, values) for side, values in zip(sides, seconds, strict=True)]
        if split:
            described = [_with_split(side, result, report) for side, result in zip(sides, described, strict=True)]
    return described


def _describe(side: RemoteSide, seconds: list[float]) -> SideResult:
    return SideResult(
        name=side.spec.name,
        kind=side.spec.kind,
        **vars(side.about),
        seconds=tuple(seconds),
        summary=summarise(seconds, side.about.batch),
        memory=Memory(**side.memory()),
    )


def _with_split(side: RemoteSide, described: SideResult, report: Report) -> SideResult:
    if side.spec.kind != "bundle":
        return described
    report(f"splitting a call of {described.name}")
    split = side.apply(split_call, SPLIT_ROUNDS)
    medians = {part: float(np.median(seconds)) for part, seconds in split.parts.items()}
    return replace(described, split=medians, call=float(np.median(split.calls)), overhead=split.overhead())


def ratios_of(sides: Sequence[SideResult]) -> list[SideRatio]:
    """The first side over each other one, per image."""
    engine, *peers = sides
    return [
        SideRatio(
            **vars(paired_ratio(_per_image(engine), _per_image(peer), period=len(sides))),
            name=engine.name,
            against=peer.name,
        )
        for peer in peers
    ]


def _per_image(side: SideResult) -> list[float]:
    return [seconds / side.batch for seconds in side.seconds]


def sweep(
    options: Options, specs: Sequence[SideSpec], report: Report = ignore, progress: Progress = ignore
) -> list[SweepPoint]:
    """A point for each side at each number of threads and each batch. Raises LavtError if the engine cannot run so."""
    points: list[SweepPoint] = []
    for kind, values in (("threads", options.sweep_threads), ("batch", options.sweep_batch)):
        for value in values:
            report(f"sweep: {kind} {value}")
            changed = [
                replace(spec, threads=value) if kind == "threads" else replace(spec, batch=value) for spec in specs
            ]
            points += _sweep_points(kind, options, changed, progress)
    return points


def _sweep_points(kind: str, options: Options, specs: Sequence[SideSpec], progress: Progress) -> list[SweepPoint]:
    running, skipped = try_sides(specs)
    sides = measure_sides(running, options.warmup, options.sweep_rounds, progress=progress)
    ratios = {ratio.against: (ratio.ratio, ratio.low, ratio.high) for ratio in ratios_of(sides)}
    point = partial(SweepPoint, kind, specs[0].threads, sides[0].batch)
    measured = [
        point(side.name, side.seconds, side.summary, *ratios.get(side.name, (None, None, None))) for side in sides
    ]
    return measured + [point(name, skipped=reason) for name, reason in skipped]


def try_sides(specs: Sequence[SideSpec]) -> tuple[list[SideSpec], list[tuple[str, str]]]:
    """The sides that run with their batch, and the names of the others with the reason. Raises LavtError if the
    engine, the first, does not run."""
    running: list[SideSpec] = []
    skipped = []
    for spec in specs:
        try:
            with RemoteSide(spec) as side:
                side.run()
                running.append(spec)
        except LavtError as error:
            if not running:
                raise
            skipped.append((spec.name, str(error)))
    return running, skipped
