"""A result of `measure` as tables for the terminal: titles, headers and rows of text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Table = tuple[str, tuple[str, ...], Sequence[tuple[str, ...]]]


def tables(result: Mapping[str, Any], most_layers: int = 10) -> Iterator[Table]:
    """The tables of what was measured: sides and ratios, splits, sweeps, parts, a device's floor, layers, fidelity."""
    yield _sides(result)
    for side in result["sides"]:
        if side["split"]:
            yield _split(side)
    if result["sweeps"]:
        yield _sweeps(result)
    if result["roofline"]:
        yield _parts(result["roofline"])
    elif result["parts"]:
        yield _times(result["parts"][0])
    if result.get("text"):
        yield _text(result["text"])
    if result.get("estimate"):
        yield _estimate(result["estimate"])
    if result.get("layers"):
        yield _layers(result["layers"], most_layers)
    if result["fidelity"]:
        yield _fidelity(result["fidelity"])


def _sides(result: Mapping[str, Any]) -> Table:
    found = {row["against"]: row for row in result["ratios"]}
    header = ("milliseconds", "precision", "median", "p90", "p99", "images/s", "peak MB", "engine over it", "95 %")
    rows = []
    for side in result["sides"]:
        summary, ratio = side["summary"], found.get(side["name"])
        times = (_ms(summary[key]) for key in ("median", "p90", "p99"))
        peak = side["memory"]["peak_bytes"]
        compared = ("", "") if ratio is None else (f"{ratio['ratio']:.3f}", _interval(ratio))
        rows.append((side["name"], side["precision"], *times, f"{summary['throughput']:.1f}", _mb(peak), *compared))
    engine = result["sides"][0]
    height, width = engine["size"]
    machine = result["machine"]
    title = (
        f"image graph, {width}x{height}, batch {engine['batch']}, {len(engine['seconds'])} rounds on {engine['device']}"
        f" ({machine['cpu']['model']}, {machine['threads']} threads)"
    )
    return title, header, rows


def _split(side: Mapping[str, Any]) -> Table:
    overhead = side["overhead"]
    title = (
        f"{side['name']}: a call takes {_ms(side['call'])} ms, of which {_ms(overhead['seconds'])} ms "
        f"({100 * overhead['share']:.1f} %) are not the image graph"
    )
    return title, ("milliseconds", "median"), [(part.replace("_", ", "), _ms(s)) for part, s in side["split"].items()]


def _sweeps(result: Mapping[str, Any]) -> Table:
    rows = []
    for one in result["sweeps"]:
        threads = "" if one["threads"] is None else str(one["threads"])
        if "skipped" in one:
            rows.append((one["name"], threads, str(one["batch"]), "", "", "", one["skipped"]))
            continue
        summary = one["summary"]
        compared = ("", "") if "ratio" not in one else (f"{one['ratio']:.3f}", _interval(one))
        figures = (_ms(summary["median"]), f"{summary['throughput']:.1f}")
        rows.append((one["name"], threads, str(one["batch"]), *figures, *compared))
    return "sweeps", ("", "threads", "batch", "median ms", "images/s", "engine over it", "95 %"), rows


def _parts(roofline: Mapping[str, Any]) -> Table:
    rows = [
        (
            row["part"],
            _ms(row["seconds"]),
            f"{row['macs'] / 1e9:.2f}",
            _mb(row["bytes"]),
            _ms(row["floor_seconds"]),
            "" if row["efficiency"] is None else f"{100 * row['efficiency']:.0f} %",
            row["bound"],
        )
        for row in roofline["parts"]
    ]
    total = sum(row["seconds"] for row in roofline["parts"])
    rows.append(("all", _ms(total), f"{sum(row['macs'] for row in roofline['parts']) / 1e9:.2f}", "", "", "", ""))
    ceilings = roofline["ceilings"]
    title = (
        f"where the time goes; this machine's ceilings: {ceilings['macs_per_second'] / 1e9:.1f} GMACs/s "
        f"in {ceilings['precision']}, {ceilings['bytes_per_second'] / 1e9:.1f} GB/s"
    )
    return title, ("part", "ms", "GMACs", "MB", "floor ms", "of floor", "bound by"), rows


def _times(profiled: Mapping[str, Any]) -> Table:
    rows = [(row["part"], _ms(row["seconds"]), f"{row['macs'] / 1e9:.2f}") for row in profiled["parts"]]
    return f"where the time of {profiled['side']} goes", ("part", "ms", "GMACs"), rows


def _text(text: Mapping[str, Any]) -> Table:
    row = (_ms(text["seconds"]), f"{text['macs'] / 1e9:.2f}", _mb(text["bytes"]))
    return "the text encoder, once a sentence", ("ms", "GMACs", "MB"), [row]


def _estimate(estimate: Mapping[str, Any]) -> Table:
    memory = f"{_mb(estimate['needed_bytes'])} of {_mb(estimate['memory_bytes'])} MB"
    title = (
        f"{estimate['name']} in {estimate['precision']}: {estimate['label']}; "
        f"needs {memory}{'' if estimate['fits'] else ': does not fit'}"
    )
    rows = [(row["part"], _ms(row["floor_seconds"]), row["bound"]) for row in estimate["parts"]]
    rows.append(("all", _ms(estimate["floor_seconds"]), ""))
    if "text_floor_seconds" in estimate:
        rows.append(("text encoder, once a sentence", _ms(estimate["text_floor_seconds"]), ""))
    return title, ("part", "floor ms", "bound by"), rows


def _layers(layers: list[Mapping[str, Any]], most: int) -> Table:
    first = next((row["node"] for row in layers if row["first"]), None)
    title = "no tensor parts company with FP32" if first is None else f"parts company with FP32 at {first}"
    shown = layers[:most] + [row for row in layers[most:] if row["first"]]
    rows = [(row["node"], row["tensor"], _error(row["relative_error"]), "first" * row["first"]) for row in shown]
    return title, ("node", "tensor", "relative error", ""), rows


def _fidelity(fidelity: list[Mapping[str, Any]]) -> Table:
    rows = [
        (
            row["name"],
            f"{row['mean_iou']:.2f}",
            f"{row['drop']:+.2f}",
            f"{100 * row['pixel_agreement']:.3f} %",
            f"{row['iou_with_reference']:.2f}",
            f"{row['relative_error']:.1e}",
        )
        for row in fidelity
    ]
    title = f"what each precision keeps of {fidelity[0]['against']}, {fidelity[0]['sentences']} sentences"
    return title, ("", "mIoU", "lost", "equal pixels", "IoU of masks", "logit error"), rows


def _error(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.1e}"


def _ms(seconds: float | None) -> str:
    return "" if seconds is None else f"{1e3 * seconds:.2f}"


def _mb(count: int | None) -> str:
    return "" if count is None else f"{count / 1e6:.0f}"


def _interval(row: Mapping[str, Any]) -> str:
    return f"{row['low']:.3f} to {row['high']:.3f}"
