"""What a measurement ran on, and what made it noisy. All is read from the system; what it does not say is None."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np

from ..._base.timing import Seconds
from ..peers.process import command_output

# The instructions that decide how fast products of small types are, on x86 and on ARM.
FLAGS = (
    *("avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_int8", "amx_bf16", "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2"),
)
PACKAGES = (
    *("lavt-edge", "numpy", "Pillow", "onnxruntime", "onnxruntime-gpu", "openvino", "torch", "onnx", "tensorrt"),
    *("tensorrt_rtx_cu13", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13"),
)
_CPUS = Path("/sys/devices/system/cpu")
_GPU_FIELDS = (
    *("name", "driver_version", "memory.total", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.limit"),
    *("persistence_mode", "temperature.gpu"),
)


@dataclass(frozen=True)
class Cpu:
    """A processor: `allowed` of its `cores` are this process's, `quota` is how many a control group grants (None: all).

    Clocks are in MHz; `flags` are the instructions of FLAGS that it has.
    """

    model: str | None
    flags: tuple[str, ...]
    cores: int
    allowed: int
    quota: float | None
    virtual: bool
    mhz: float | None
    max_mhz: float | None
    governor: str | None


@dataclass(frozen=True)
class Jetson:
    model: str
    release: str
    power_mode: str | None


@dataclass(frozen=True)
class Machine:
    """What a measurement ran on; `gpu` is what nvidia-smi says of the first one, `load` the system's at the start."""

    cpu: Cpu
    threads: int
    memory_bytes: int | None
    gpu: Mapping[str, str] | None
    jetson: Jetson | None
    system: str
    python: str
    versions: Mapping[str, str]
    load: float


def describe_machine(threads: int | None = None) -> Machine:
    """This machine; `threads` are those that a side may use (None: one per core that is allowed)."""
    cpu = _cpu()
    return Machine(
        cpu=cpu,
        threads=threads or cpu.allowed,
        memory_bytes=_memory_bytes(),
        gpu=parse_gpu(command_output("nvidia-smi", f"--query-gpu={','.join(_GPU_FIELDS)}", "--format=csv,noheader")),
        jetson=_jetson(),
        system=f"{platform.system()} {platform.release().split('-')[0]} {platform.machine()}",
        python=platform.python_version(),
        versions=package_versions(PACKAGES),
        load=round(os.getloadavg()[0], 2),
    )


def _cpu() -> Cpu:
    info = _text(Path("/proc/cpuinfo")) or ""
    flags = (_first(r"^(?:flags|Features)\s*:\s*(.*)$", info) or "").split()
    clocks = [float(value) for value in re.findall(r"^cpu MHz\s*:\s*([\d.]+)$", info, re.MULTILINE)]
    most = _text(_CPUS / "cpu0/cpufreq/cpuinfo_max_freq")
    model = _first(r"^(?:model name|Model|Hardware)\s*:\s*(.*)$", info)
    return Cpu(
        model=model or _text(Path("/proc/device-tree/model")) or platform.processor() or None,
        flags=tuple(flag for flag in FLAGS if flag in flags),
        cores=os.cpu_count() or 1,
        allowed=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        quota=_quota(),
        virtual="hypervisor" in flags,
        mhz=round(float(np.median(clocks)), 1) if clocks else None,
        max_mhz=int(most) / 1000 if most else None,
        governor=_text(_CPUS / "cpu0/cpufreq/scaling_governor"),
    )


def _quota() -> float | None:
    """Cores that the control group grants; None: all."""
    text = (_text(Path("/sys/fs/cgroup/cpu.max")) or "max").split()
    return int(text[0]) / int(text[1]) if len(text) == 2 and text[0] != "max" else None


def _memory_bytes() -> int | None:
    kilobytes = _first(r"^MemTotal:\s*(\d+) kB", _text(Path("/proc/meminfo")) or "")
    return 1024 * int(kilobytes) if kilobytes else None


def parse_gpu(answer: str | None) -> dict[str, str] | None:
    """The first GPU of nvidia-smi's answer to `_GPU_FIELDS`; None if there is none."""
    values = [value.strip() for value in (answer or "").split("\n")[0].split(",")]
    return dict(zip(_GPU_FIELDS, values, strict=True)) if len(values) == len(_GPU_FIELDS) else None


def _jetson() -> Jetson | None:
    release = _text(Path("/etc/nv_tegra_release"))
    if release is None:
        return None
    return Jetson(
        model=(_text(Path("/proc/device-tree/model")) or "").rstrip("\0"),
        release=release.split("\n")[0].lstrip("# "),
        power_mode=parse_power_mode(command_output("nvpmodel", "-q") or ""),
    )


def parse_power_mode(answer: str) -> str | None:
    """Such as "MAXN" from `nvpmodel -q`."""
    return _first(r"NV Power Mode:\s*(\S+)", answer)


def _first(pattern: str, text: str) -> str | None:
    match = re.search(pattern, text, re.MULTILINE)
    return match[1].strip() if match else None


def package_versions(names: Iterable[str]) -> dict[str, str]:
    """Those of the packages that are installed."""
    versions = {}
    for name in names:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def _text(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return None


@dataclass(frozen=True)
class Ticks:
    """The system's processor time since it started, in ticks: all, idle, and stolen by other virtual machines."""

    total: int
    idle: int
    stolen: int

    @classmethod
    def now(cls) -> Ticks | None:
        """None if the system does not say."""
        line = (_text(Path("/proc/stat")) or "").split("\n")[0].split()
        if len(line) < 9 or line[0] != "cpu":
            return None
        values = [int(value) for value in line[1:9]]
        return cls(sum(values), values[3] + values[4], values[7])


def machine_warnings(machine: Machine) -> list[str]:
    """What speaks against figures of this machine, before anything is measured."""
    cpu, warnings = machine.cpu, []
    if machine.load > 0.5 * cpu.allowed:
        warnings.append(f"other work runs here: load {machine.load} on {cpu.allowed} cores before the start")
    if machine.threads > cpu.allowed:
        warnings.append(f"{machine.threads} threads on {cpu.allowed} cores wait for each other")
    if cpu.quota is not None and cpu.quota < min(machine.threads, cpu.allowed):
        warnings.append(f"the control group grants {cpu.quota:.1f} cores: calls are halted to keep to that")
    if cpu.governor not in (None, "performance"):
        warnings.append(f"the CPU's governor is {cpu.governor}: its clock follows the load; set performance")
    if cpu.virtual:
        warnings.append("a virtual machine: its host's other guests share cores and caches")
    return warnings


def run_warnings(
    names: Sequence[str], seconds: Sequence[Seconds], before: Ticks | None, after: Ticks | None
) -> list[str]:
    """What the rounds themselves show: time stolen, calls that scatter, a machine that drifts, too few rounds."""
    warnings = []
    if before and after and after.total > before.total:
        stolen = (after.stolen - before.stolen) / (after.total - before.total)
        if stolen > 0.01:
            warnings.append(f"the host took {100 * stolen:.0f} % of the processor time while this ran")
    for name, values in zip(names, map(np.asarray, seconds), strict=True):
        median, p90 = np.percentile(values, (50, 90))
        if p90 > 1.25 * median:
            warnings.append(f"{name}: one call in ten took {p90 / median:.2f} of the median or longer")
        third = len(values) // 3
        if third >= 3:
            drift = float(np.median(values[-third:]) / np.median(values[:third]))
            if not 1 / 1.1 < drift < 1.1:
                warnings.append(f"{name}: the last third of the rounds took {drift:.2f} of the first")
    if seconds and len(seconds[0]) < 10:
        warnings.append(f"{len(seconds[0])} rounds: intervals of fewer than 10 are wide")
    return warnings
