"""`lavt-export trt`: a bundle's engines, built, verified where that can be done, and recorded; both or none.

Nothing here needs torch or onnx: the typed graphs are in the bundle already, made by `lavt-export quantize`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..._base.progress import Report, ignore
from ...errors import ExportError
from ...runtime.bundle import Bundle, file_entry, open_bundle
from ...runtime.cuda import find_device
from ...runtime.manifest import FileEntry, Manifest
from ...runtime.tensorrt.flavor import Flavor, find_flavor
from ...runtime.tensorrt.record import EngineRecord, device_misfit, rebuild_command
from ...runtime.update import BundleUpdate, update_bundle
from .build import BuiltEngine, build_engine, known_targets
from .layers import count_precisions, count_products
from .memory import free_memory, memory_message, needed_bytes
from .options import BuildPlan, EngineOptions, engine_name, plan_build, wanted_graphs
from .progress import Progress
from .verify import EngineParity, UnmeasurableError, verify_engine


@dataclass(frozen=True)
class EngineSummary:
    """One engine as a command tells of it; `unverified` says why it could not be compared with its graph, or None."""

    name: str
    bytes: int
    build_seconds: float
    layers: dict[str, int]
    unverified: str | None

    def describe(self) -> str:
        """Such as "25.1 MB in 3 s, layers fp16 207, fp32 33; unverified: there is no CUDA device here"."""
        counts = ", ".join(f"{precision} {count}" for precision, count in sorted(self.layers.items()))
        state = "verified" if self.unverified is None else f"unverified: {self.unverified}"
        return f"{self.bytes / 1e6:.1f} MB in {self.build_seconds:.0f} s, layers {counts or 'not reported'}; {state}"


@dataclass(frozen=True)
class EngineOutcome:
    """What was built: the bundle's manifest now, the plan that was followed, and the engines."""

    manifest: Manifest
    plan: BuildPlan
    engines: tuple[EngineSummary, ...]


def build_engines(
    root: Path,
    options: EngineOptions | None = None,
    *,
    report: Report = ignore,
    progress: Progress = ignore,
    warn: Report = ignore,
) -> EngineOutcome:
    """Builds the text and the image engine of the bundle in folder `root`, and one of each graph for a camera's frames,
    and enters them in its manifest.

    `report` is told each step, `progress` the build's phase with the share done (0 to 1), `warn` a line that the user
    should see. If it is stopped or killed, the bundle stays as it was; only a kill at the moment when new engines
    replace old ones can leave it with neither. Raises BundleError for a damaged bundle, BackendError if no
    TensorRT can be imported, ExportError if an option or a graph cannot be built, or the bundle lacks a typed graph.
    """
    options = options or EngineOptions()
    bundle, flavor, plan = plan_engines(root, options)
    for precision in _missing(bundle, options.precision):
        raise ExportError(
            f"{root} has no graphs of precision {precision}: run lavt-export quantize {root} --{precision}"
        )
    with update_bundle(root) as change:
        build = _Build(open_bundle(root), flavor, plan, change, report, progress, warn)
        made = [build.make(graph) for graph in build.graphs()]
        records = {summary.name: record for summary, _, record in made}
        manifest = change.commit(
            {summary.name: entry for summary, entry, _ in made},
            lambda manifest: replace(manifest, engines={**manifest.engines, **records}),
        )
    return EngineOutcome(manifest, plan, tuple(summary for summary, _, _ in made))


def missing_graphs(root: Path, options: EngineOptions) -> tuple[str, ...]:
    """The precisions whose typed graphs `build_engines` would refuse the bundle for; raises as that does."""
    return _missing(plan_engines(root, options)[0], options.precision)


def _missing(bundle: Bundle, precision: str) -> tuple[str, ...]:
    missing = {wanted for role, wanted in wanted_graphs(precision) if not bundle.has(role, wanted)}
    return tuple(sorted(missing))


def plan_engines(root: Path, options: EngineOptions) -> tuple[Bundle, Flavor, BuildPlan]:
    """The bundle in folder `root`, the TensorRT at hand and what it is to build; raises as `build_engines` does."""
    flavor, bundle = find_flavor(options.flavor), open_bundle(root)
    plan = plan_build(
        root,
        options,
        bundle.manifest.input,
        flavor=flavor.name,
        version=flavor.version,
        device=find_device(),
        known_targets=known_targets(flavor),
    )
    return bundle, flavor, plan


def planned_record(plan: BuildPlan, **of_graph: Any) -> EngineRecord:
    """The record of an engine that was built to plan and not verified; `of_graph` are the fields about its graph."""
    device = None if plan.targets else plan.device
    return EngineRecord(
        flavor=plan.flavor,
        version=plan.version,
        gpu=device.name if device else None,
        compute_capability=device.compute_capability if device else None,
        multiprocessors=device.multiprocessors if device else None,
        targets=plan.targets,
        version_compatible=plan.options.version_compatible,
        hardware_compatible=plan.options.hardware_compatible,
        verified=False,
        **of_graph,
    )


@dataclass(frozen=True)
class _Build:
    """What is built from what, and who is told what happens; see `build_engines`."""

    bundle: Bundle
    flavor: Flavor
    plan: BuildPlan
    change: BundleUpdate
    report: Report
    progress: Progress
    warn: Report

    def graphs(self) -> list[Path]:
        """The smaller of the two graphs of the precision, the larger, and each graph for frames."""
        wanted = [self.bundle.file(*graph) for graph in wanted_graphs(self.plan.options.precision)]
        names = {name: None for frame in self.bundle.manifest.frames.values() for name in (frame.frame, frame.mask)}
        return wanted + [self.bundle.verified(name) for name in names]

    def make(self, graph: Path) -> tuple[EngineSummary, FileEntry, dict[str, Any]]:
        """Builds one engine into the bundle's next file of its name; the manifest's entry and record of it, too."""
        manifest = self.bundle.manifest
        role, precision = manifest.files[graph.name].role, manifest.files[graph.name].precision
        name = engine_name(role, precision) if precision else graph.with_suffix(".engine").name
        self.report(f"building {name}")
        weights = sum(manifest.files[part].bytes for part in (graph.name, *manifest.weights_of(graph.name)))
        built = build_engine(
            graph,
            self.plan,
            self.flavor,
            progress=lambda phase, share: self.progress(f"{name}: {phase}", share),
            on_memory=lambda activations: self._tell_memory(name, weights, activations),
        )
        record = self._record(name, graph.name)
        parity, unverified = self._verify(record, built)
        layers = count_precisions(built.layers)
        recorded = {
            **replace(record, verified=parity is not None).to_dict(),
            "layers": layers,
            "products": count_products(built.layers),
            "build_seconds": round(built.seconds, 2),
            "parity": None if parity is None else asdict(parity),
        }
        path = self.change.new(name)
        with open(path, "wb") as stream:
            stream.write(built.data)
        entry = file_entry(path, "engine", precision)
        return EngineSummary(name, entry.bytes, built.seconds, layers, unverified), entry, recorded

    def _tell_memory(self, name: str, weights: int, activations: int) -> None:
        device = self.plan.device
        free = free_memory(device) if device is not None else None
        if device is not None and free is not None:
            shared = device.shares_memory and self.flavor.name == "tensorrt"
            needed = needed_bytes(weights, activations, self.plan.options.workspace, builder=shared)
            (self.report if free >= needed else self.warn)(memory_message(name, needed, free))

    def _record(self, name: str, graph: str) -> EngineRecord:
        """Graphs for frames have no precision: they compute in whole numbers and FP32, one frame at a time."""
        plan, entry = self.plan, self.bundle.manifest.files[graph]
        return planned_record(
            plan,
            name=name,
            rebuild=rebuild_command(self.bundle.root, entry.precision),
            role=entry.role,
            precision=entry.precision or "fp32",
            onnx_file=graph,
            onnx_sha256=entry.sha256,
            max_batch=plan.max_batch if entry.precision else 1,
        )

    def _verify(self, record: EngineRecord, built: BuiltEngine) -> tuple[EngineParity | None, str | None]:
        """The engine's parity with its graph, or why it could not be measured. Raises ExportError if it is too far."""
        device = self.plan.device
        if device is None:
            return None, "there is no CUDA device here"
        if device_misfit(record, device):
            return None, f"it is not for the {device.name} of this machine"
        self.report(f"comparing {record.name} with {record.onnx_file}")
        try:
            return verify_engine(bytes(built.data), record, self.bundle, self.flavor), None
        except UnmeasurableError as error:
            return None, str(error)
