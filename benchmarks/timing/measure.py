"""An engine and its peers measured in one run: the result is one JSON object, which the command and the report show.

Sides take turns, one call each per round, in an order that changes from round to round; each has its own process.

    {"format": 1, "machine": {…}, "options": {…}, "sides": [{"name", "kind", "precision", "size", "batch", "device",
     "runtime", "file", "seconds", "summary", "memory", "split", "call", "overhead"}], "ratios": [{"name", "against",
     "ratio", "low", "high"}], "warnings": […], "parts", "roofline", "fidelity", "sweeps": […]}

Seconds are per call and in the order of the rounds; a ratio is `name` over `against`, so below 1 `name` is faster.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from ..._base.progress import Progress, Report, ignore
from ...errors import LavtError
from ...runtime.bundle import open_bundle, sha256_of
from ..peers.process import RemoteSide, call_apart
from ..peers.sides import PEERS, SideSpec, batch_of, specify
from .latency import split_call
from .machine import Ticks, describe_machine, machine_warnings, run_warnings
from .statistics import paired_ratio, summarise

FORMAT_VERSION = 1
SPLIT_ROUNDS = 10
DEMO_WEIGHTS = Path(__file__).parents[2] / "reference" / "demo.safetensors"


@dataclass(frozen=True)
class Options:
    """What to measure. `against` are peers by name or path; `checkpoint` None is the demo's where the bundle's is.

    `batch` in images, where graphs leave it free; `threads` None: one per core. `sweep_threads` and `sweep_batch` are
    measured as well, one after another, `sweep_rounds` each.
    """

    engine: Path
    against: tuple[str, ...] = ()
    checkpoint: str | None = None
    image: Path | None = None
    text: str = "the man in red"
    warmup: int = 3
    rounds: int = 20
    batch: int = 1
    threads: int | None = None
    device: str = "auto"
    sweep_threads: tuple[int, ...] = ()
    sweep_batch: tuple[int, ...] = ()
    sweep_rounds: int = 10
    split: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; paths as given."""
        fields = asdict(self)
        fields.update(engine=str(self.engine), image=None if self.image is None else str(self.image))
        return {key: list(value) if isinstance(value, tuple) else value for key, value in fields.items()}


def measure(options: Options, *, report: Report = ignore, progress: Progress = ignore) -> dict[str, Any]:
    """The result of measuring; parts, roofline and fidelity are None. See the module for its form.

    `report` is told each step, `progress` (rounds done, rounds in all).

    Raises LavtError: the engine or a peer cannot be opened or run, or options contradict each other.
    """
    if options.rounds < 2 and options.against:
        raise LavtError("--rounds 1 gives no interval; measure 2 or more rounds against a peer")
    machine = describe_machine(options.threads)
    warnings = machine_warnings(machine)
    specs = prepare_sides(options, report, warnings)
    before = Ticks.now()
    sides = measure_sides(specs, options.warmup, options.rounds, report, progress, warnings, split=options.split)
    warnings += run_warnings([one["name"] for one in sides], [one["seconds"] for one in sides], before, Ticks.now())
    return {
        "format": FORMAT_VERSION,
        "machine": machine,
        "options": options.to_dict(),
        "sides": sides,
        "ratios": ratios_of(sides),
        "warnings": list(dict.fromkeys(warnings)),
        "parts": None,
        "roofline": None,
        "fidelity": None,
        "sweeps": sweep(options, specs, report, progress),
    }


def prepare_sides(options: Options, report: Report = ignore, warnings: list[str] | None = None) -> list[SideSpec]:
    """The sides of the options, the engine first; makes the plain export where one is asked for.

    Raises LavtError.
    """
    bundle = open_bundle(options.engine)
    checkpoint, note = _checkpoint(options, bundle.manifest.checkpoint.sha256)
    specs = specify(
        options.engine,
        options.against,
        checkpoint=checkpoint,
        batch=batch_of(bundle, options.batch),
        threads=options.threads,
        device=options.device,
        text=options.text,
        image=options.image,
    )
    wanted = {name for name in options.against if name in PEERS}
    if note and warnings is not None and any(PEERS[name].plain or PEERS[name].kind == "torch" for name in wanted):
        warnings.append(note)
    if not any(PEERS[name].plain for name in wanted):
        return specs
    report("plain export of the reference")
    plain = call_apart(_make_plain_export, options.engine, checkpoint)
    taking = [False, *(name in PEERS and PEERS[name].plain for name in options.against)]
    return [replace(spec, plain=plain) if takes else spec for spec, takes in zip(specs, taking, strict=True)]


def _make_plain_export(engine: Path, checkpoint: str) -> Path:
    try:
        from ..peers.plain import plain_export
    except ModuleNotFoundError as error:
        raise LavtError(f"{error.name} is not installed: pip install 'lavt-edge[export]'") from error
    return plain_export(engine, checkpoint)


def reference_of(options: Options) -> str | None:
    """The checkpoint that the engine's bundle was exported from, "demo" or a path; None where it is not known.

    Raises LavtError where `options` name another one.
    """
    bundle = open_bundle(options.engine)
    checkpoint, other = _checkpoint(options, bundle.manifest.checkpoint.sha256)
    if options.checkpoint is not None and other:
        raise LavtError(f"{options.engine} was not exported from the checkpoint {options.checkpoint}; give its own")
    return None if checkpoint == "random" else checkpoint


def _checkpoint(options: Options, bundle_sha256: str) -> tuple[str, str | None]:
    """The checkpoint of the peers that run the reference, and what must be said of it."""
    if options.checkpoint is not None:
        path = DEMO_WEIGHTS if options.checkpoint == "demo" else Path(options.checkpoint)
        if not path.is_file():
            raise LavtError(f"{path}: no such file; give --checkpoint a .pth file or 'demo'")
        other = sha256_of(path) != bundle_sha256
        return options.checkpoint, "the peers' checkpoint is another than the bundle's" if other else None
    if DEMO_WEIGHTS.is_file() and sha256_of(DEMO_WEIGHTS) == bundle_sha256:
        return "demo", None
    return "random", "peers of the reference have random weights of the bundle's configuration: only their time counts"


def measure_sides(
    specs: Sequence[SideSpec],
    warmup: int,
    rounds: int,
    report: Report = ignore,
    progress: Progress = ignore,
    warnings: list[str] | None = None,
    *,
    split: bool = False,
) -> list[dict[str, Any]]:
    """Opens the sides, measures them in turn, and describes each; with `split`, where bundles spend a call's time.

    Raises LavtError where a side cannot be opened or run.
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
        for side, one in zip(sides, described, strict=True):
            if split and side.spec.kind == "bundle":
                report(f"splitting a call of {one['name']}")
                one.update(side.apply(split_call, SPLIT_ROUNDS))
    return described


def turns(sides: int) -> list[list[int]]:
    """The orders of the rounds, to be repeated: each side has each place, and follows each other, equally often.

    What ran before leaves its data in the caches and its heat in the core. Williams' design (1949): n orders for even
    n, 2n for odd.
    """
    zigzag = [(turn + 1) // 2 if turn % 2 else -turn // 2 for turn in range(sides)]
    orders = [[(place + shift) % sides for place in zigzag] for shift in range(sides)]
    return orders + ([order[::-1] for order in orders] if sides % 2 and sides > 1 else [])


class Timed(Protocol):
    """What can take turns: `run` makes one call and gives its seconds."""

    def run(self) -> float: ...


def interleave(sides: Sequence[Timed], warmup: int, rounds: int, progress: Progress = ignore) -> list[list[float]]:
    """Seconds of each side by round, (sides,rounds): in each round every side runs once, in the order of `turns`."""
    seconds: list[list[float]] = [[] for _ in sides]
    orders = turns(len(sides))
    for number in range(warmup + rounds):
        for side in orders[number % len(orders)]:
            elapsed = sides[side].run()
            if number >= warmup:
                seconds[side].append(elapsed)
        progress(number + 1, warmup + rounds)
    return seconds


def _describe(side: RemoteSide, seconds: list[float]) -> dict[str, Any]:
    return {
        "name": side.spec.name,
        "kind": side.spec.kind,
        **side.about,
        "seconds": seconds,
        "summary": summarise(seconds, side.about["batch"]).to_dict(),
        "memory": side.memory(),
        "split": None,
        "call": None,
        "overhead": None,
    }


def ratios_of(sides: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first side over each other one, per image."""
    engine, ratios = sides[0], []
    for peer in sides[1:]:
        found = paired_ratio(_per_image(engine), _per_image(peer), period=len(sides))
        ratios.append({"name": engine["name"], "against": peer["name"], **asdict(found)})
    return ratios


def _per_image(side: dict[str, Any]) -> list[float]:
    return [seconds / side["batch"] for seconds in side["seconds"]]


def sweep(
    options: Options, specs: Sequence[SideSpec], report: Report = ignore, progress: Progress = ignore
) -> list[dict[str, Any]]:
    """One entry for each side at each number of threads and each batch.

    An entry holds `sweep` ("threads" or "batch"), `threads`, `batch`, `name`, `seconds` and `summary`; a peer's also
    `ratio`, `low` and `high`, of the engine over it; one that does not take the batch, `skipped` with the reason.

    Raises LavtError where the engine itself does not.
    """
    entries: list[dict[str, Any]] = []
    for kind, values in (("threads", options.sweep_threads), ("batch", options.sweep_batch)):
        for value in values:
            report(f"sweep: {kind} {value}")
            changed = [
                replace(spec, threads=value) if kind == "threads" else replace(spec, batch=value) for spec in specs
            ]
            entries += [{"sweep": kind, **one} for one in _sweep_point(options, changed, progress)]
    return entries


def _sweep_point(options: Options, specs: Sequence[SideSpec], progress: Progress) -> list[dict[str, Any]]:
    taken, skipped = _takers(specs)
    sides = measure_sides(taken, options.warmup, options.sweep_rounds, progress=progress)
    ratios = [{}, *({key: one[key] for key in ("ratio", "low", "high")} for one in ratios_of(sides))]
    point = {"threads": specs[0].threads, "batch": sides[0]["batch"]}
    return [
        *(
            {**point, "name": one["name"], "seconds": one["seconds"], "summary": one["summary"], **ratio}
            for one, ratio in zip(sides, ratios, strict=True)
        ),
        *({**point, **one} for one in skipped),
    ]


def _takers(specs: Sequence[SideSpec]) -> tuple[list[SideSpec], list[dict[str, str]]]:
    """The sides that run with their batch, and why the others do not; the engine must."""
    taken: list[SideSpec] = []
    skipped = []
    for spec in specs:
        try:
            with RemoteSide(spec) as side:
                side.run()
                taken.append(spec)
        except LavtError as error:
            if not taken:
                raise
            skipped.append({"name": spec.name, "skipped": str(error)})
    return taken, skipped
