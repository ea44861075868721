"""docs/benchmarks.md from docs/benchmarks.json: no figure in it is written by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .format import bytes_text, number, percent

Result = Mapping[str, Any]


def markdown(result: Result) -> str:
    """The standing comparison as Markdown, from what `standing.measure_standing` gives."""
    lines = [
        "# Benchmarks",
        "",
        f"Measured by `make bench` on {result['date']} in {number(result.get('minutes'), '.0f')} minutes, from",
        "`docs/benchmarks.json`; no figure here is written by hand. Every side runs the image graph alone, one image",
        "a call, in a process of its own; sides take turns round by round. A ratio is of medians, with its 95 %",
        "interval; below 1 the side is faster. Your machine will give other times: measure with `lavt-bench`.",
        "",
        *_machine(result["machine"]),
    ]
    for model in result["models"]:
        lines += ["", *_model(model)]
    warnings = [*result["warnings"], *(f"{m['name']}: {one}" for m in result["models"] for one in m["warnings"])]
    if warnings:
        lines += ["", "## Warnings", "", *(f"- {_cell(one)}" for one in warnings)]
    return "\n".join(lines) + "\n"


def _machine(machine: Result) -> list[str]:
    cpu = machine["cpu"]
    facts = [
        ("CPU", f"{cpu['model']}, {cpu['allowed']} of {cpu['cores']} cores{', virtual' if cpu['virtual'] else ''}"),
        ("instructions", ", ".join(cpu["flags"]) or "none that matter"),
        ("threads", str(machine["threads"])),
        ("memory", bytes_text(machine["memory_bytes"])),
        ("system", f"{machine['system']}, Python {machine['python']}"),
        ("versions", ", ".join(f"{name} {version}" for name, version in machine["versions"].items())),
    ]
    return _table(("machine", ""), facts, "ll")


def _model(model: Result) -> list[str]:
    height, width = model["size"]
    weights = "random weights" if model["weights"] == "random" else "its own weights"
    chosen = {"full": "every product with a weight in INT8", "auto": "INT8 placed by accuracy control"}
    lines = [
        f"## {model['name'][:1].upper()}{model['name'][1:]}, {height}x{width}",
        "",
        f"With {weights}, {model['rounds']} rounds; INT8 calibrated on {model['calibrated_on']} generated sentences,",
        f"{chosen[model['int8_policy']]}.",
        "",
        *_sides(model),
    ]
    others = [one for one in model["ratios"] if one["against"] != "plain export"]
    if others:
        rows = [(one["name"], one["against"], _ratio(one)) for one in others]
        lines += ["", *_table(("side", "over", "ratio (95 % interval)"), rows, "llr")]
    if model["targets"]:
        lines += ["", *_targets(model)]
    lines += ["", *_parts(model["parts"])]
    if model["accuracy"]:
        lines += ["", *_accuracy(model["accuracy"])]
    if model.get("frames"):
        lines += ["", *_frames(model["frames"])]
    return lines


def _sides(model: Result) -> list[str]:
    over_plain = {one["name"]: _ratio(one) for one in model["ratios"] if one["against"] == "plain export"}
    rows = []
    for side in model["sides"]:
        times = [number(1e3 * side["summary"][key], ".1f") for key in ("median", "p90", "p99")]
        memory = bytes_text((side.get("memory") or {}).get("peak_bytes"))
        rate = number(side["summary"]["throughput"], ".2f")
        rows.append((side["name"], side["runtime"], *times, rate, memory, over_plain.get(side["name"], "1")))
    head = (
        "side",
        "runtime",
        "median ms",
        "p90 ms",
        "p99 ms",
        "1/median, images/s",
        "peak memory",
        "over plain export (95 %)",
    )
    return _table(head, rows, "llrrrrrr")


def _targets(model: Result) -> list[str]:
    found = {(one["name"], one["against"]): one for one in model["ratios"]}
    rows = []
    for name, against, most in model["targets"]:
        one = found.get((name, against))
        if one is None:
            rows.append((f"{name} over {against}", f"{most:.2f}", "–", "not measured"))
            continue
        verdict = "met" if one["ratio"] <= most else "missed"
        if one["low"] <= most <= one["high"]:
            verdict += ", the interval holds the target"
        rows.append((f"{name} over {against}", f"{most:.2f}", _ratio(one), verdict))
    return _table(("target", "at most", "ratio (95 % interval)", ""), rows, "lrrl")


def _parts(parts: Sequence[Result]) -> list[str]:
    """Milliseconds, GMACs and share of each part, for every side that was profiled."""
    names = list(dict.fromkeys(name for row in parts for name in row["sides"]))
    totals = {name: sum(row["sides"].get(name, {}).get("seconds", 0.0) for row in parts) for name in names}
    rows = []
    for row in parts:
        cells = [row["part"]]
        for name in names:
            one = row["sides"].get(name)
            cells += (
                ["–"] * 3
                if one is None
                else [
                    number(1e3 * one["seconds"], ".1f"),
                    percent(one["seconds"] / totals[name], 1),
                    number(one["macs"] / 1e9, ".2f"),
                ]
            )
        rows.append(cells)
    head = ["part", *(f"{name}{what}" for name in names for what in (", ms", ", share", ", GMACs"))]
    whole = ["all"]
    for name in names:
        macs = sum(row["sides"].get(name, {}).get("macs", 0) for row in parts)
        whole += [number(1e3 * totals[name], ".1f"), percent(1.0, 1), number(macs / 1e9, ".2f")]
    return [
        "Where the time goes, by ONNX Runtime's profiler:",
        "",
        *_table(head, [*rows, whole], "l" + "rrr" * len(names)),
    ]


def _accuracy(rows: Sequence[Result]) -> list[str]:
    cells = [
        (
            row["name"],
            number(row["sentences"], "d"),
            number(row["mean_iou"], ".2f"),
            number(row["drop"], "+.2f"),
            number(row["iou_with_reference"], ".2f"),
            percent(row["pixel_agreement"], 3),
            number(row["relative_error"], ".1e"),
        )
        for row in rows
    ]
    against = rows[0]["against"]
    head = ("precision", "sentences", "mean IoU", "lost", f"IoU with {against}", "equal pixels", "logit error")
    return ["Accuracy on generated val:", "", *_table(head, cells, "lrrrrrr")]


def _frames(rows: Sequence[Result]) -> list[str]:
    cells = []
    for row in rows:
        height, width = row["size"]
        times = [number(1e3 * row[part], ".1f") for part in ("preprocess", "postprocess", "image")]
        cells.append((f"{width}x{height}", "yes" if row["opencv"] else "no", *times))
    head = ("frame", "OpenCV", "prepare, ms", "mask, ms", "image graph, ms")
    return [
        "What a camera's frame costs beside the graph, on one thread, only the mask read:",
        "",
        *_table(head, cells, "llrrr"),
    ]


def _ratio(one: Result) -> str:
    return f"{one['ratio']:.3f} ({one['low']:.3f}–{one['high']:.3f})"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], sides: str) -> list[str]:
    """A table; `sides` aligns each column, "l" or "r"."""
    rule = " | ".join("---:" if side == "r" else "---" for side in sides)
    body = [" | ".join(_cell(one) for one in row) for row in rows]
    return [f"| {line} |" for line in (" | ".join(head), rule, *body)]


def _cell(text: str) -> str:
    """Text that ends neither a cell nor a line."""
    return " ".join(str(text).split()).replace("|", "\\|")
