"""The report's sections on the model's parts: their time, the roofline, a device's floor, and layers that differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from . import charts as charts
from .format import bytes_text, finite, ms, number, percent, scaled, section, source_link

Result = Mapping[str, Any]
_ABOVE = 1.05  # an efficiency that scatter does not explain
_WORST = 20
_NOT_FINITE = "not finite"


def parts(result: Result) -> str:
    """Time of each part of the model, a bar for each side; and of the text encoder, which is none of them."""
    sides = [one for one in result.get("parts") or [] if one.get("parts")]
    if not sides:
        return ""
    times = [{str(p.get("part", "")): finite(p.get("seconds")) or 0.0 for p in one["parts"]} for one in sides]
    work = {str(part.get("part", "")): part for one in reversed(sides) for part in one["parts"]}
    names = list(dict.fromkeys(name for one in times for name in one))
    most = max((value for one in times for value in one.values()), default=0.0) or 1.0
    totals = [sum(one.values()) or 1.0 for one in times]
    blocks = [charts.legend([str(one.get("side", "")) for one in sides])]
    for name in names:
        marks, height = charts.bars([one[name] / most if name in one else None for one in times])
        values = [
            f"{ms(one[name])}, {percent(one[name] / total)}"
            for one, total in zip(times, totals, strict=True)
            if name in one
        ]
        blocks.append(charts.row(name, marks, "\n".join(values), note=_amounts(work[name]), height=height))
    for one, total in zip(sides, totals, strict=True):
        sums = {key: sum(finite(part.get(key)) or 0 for part in one["parts"]) for key in ("macs", "bytes")}
        said = f"{one.get('side', '')}, all parts: {ms(total)}, {_amounts(sums)}."
        blocks.append(f"<p>{escape(said)}</p>")
    blocks.append(_text_encoder(result.get("text") or {}))
    note = "From the backend's own profiler, by the graph's node names; with what each part computes and moves."
    return section("Where the time goes", note, *blocks)


def _amounts(row: Result) -> str:
    """MACs and bytes, those that are known."""
    amounts = (scaled(row.get("macs"), "MACs"), bytes_text(row.get("bytes")))
    return ", ".join(one for one in amounts if one != "–")


def _text_encoder(text: Result) -> str:
    """The other graph, whose time is no part of an image's."""
    if not text:
        return ""
    facts = [
        ms(text.get("seconds")),
        scaled(text.get("macs"), "MACs"),
        f"{bytes_text(text.get('weight_bytes'))} of weights",
    ]
    known = ", ".join(one for one in facts if not one.startswith("–"))
    return f"<p>Not in this sum: text encoder, once a sentence: {escape(known)}.</p>"


def roofline(result: Result) -> str:
    """Each part's rate against what the machine can do, and its time against its floor."""
    data = result.get("roofline") or {}
    ceilings = data.get("ceilings") or {}
    peak, bandwidth = finite(ceilings.get("macs_per_second")), finite(ceilings.get("bytes_per_second"))
    found = [one for one in data.get("parts") or [] if finite(one.get("seconds"))]
    if not found or not peak or not bandwidth:
        return ""
    points, rows, above = [], [], []
    for i, one in enumerate(found, start=1):
        name = str(one.get("part", ""))
        macs, size, seconds = (finite(one.get(key)) or 0.0 for key in ("macs", "bytes", "seconds"))
        if macs > 0 and size > 0:
            points.append((i, name, macs / size, macs / seconds))
        floor = finite(one.get("floor_seconds"))
        share = finite(one.get("efficiency"))
        if share is None:
            share = floor / seconds if floor is not None else 0.0
        if share > _ABOVE:
            above.append(f"{name} ({percent(share, 0)})")
        marks, height = charts.bars([min(max(share, 0.0), 1.0)])
        value = f"{percent(share, 0)} of {ms(seconds)}"
        rows.append(charts.row(f"{i}. {name}", marks, value, note=f"floor {ms(floor)}", height=height))
    chart = _roof(points, peak, bandwidth) if points else ""
    note = (
        f"Measured ceilings of this machine: {scaled(peak, 'MACs/s')} and {scaled(bandwidth, 'B/s')}. A part on the "
        "line uses all that the machine has; the numbers name the parts below, where a full bar is a part at its floor."
    )
    return section("Roofline", note, _above_the_ceiling(above), chart, *rows)


def _above_the_ceiling(parts: Sequence[str]) -> str:
    if not parts:
        return ""
    text = (
        f"Faster than the measured ceiling allows: {', '.join(parts)}. The ceiling was measured at another moment, "
        "when the machine gave less; take such a part to be at its floor, and the other shares to be somewhat high."
    )
    return f'<p class="caution">{escape(text)}</p>'


def _roof(points: Sequence[tuple[int, str, float, float]], peak: float, bandwidth: float) -> str:
    """Rate over intensity, both logarithmic, below the roof min(peak, bandwidth * intensity)."""
    knee = peak / bandwidth
    xs, ys = [point[2] for point in points], [point[3] for point in points]
    x = charts.Axis("MACs for each byte moved", min(*xs, knee) / 1.5, max(*xs, knee) * 1.5, log=True)
    low = min(*ys, peak / 30) / 1.5
    y = charts.Axis("MACs a second", low, max(*ys, peak) * 1.8, log=True)
    start = max(x.low, y.low / bandwidth)
    corners = [(start, bandwidth * start), (knee, peak), (x.high, peak)]
    marks = charts.lines([charts.place(x, y, *corner) for corner in corners], 'class="roof"')
    for rank, name, intensity, speed in points:
        marks += charts.numbered(charts.place(x, y, intensity, speed), rank, charts.colour(0), name=name)
    return charts.plot(x, y, marks, "roofline: rate of each part over its intensity", kind="wide")


def floor(result: Result) -> str:
    """The least time on a device by its published rates, by part, and whether its memory holds the graph."""
    data = result.get("estimate") or {}
    found = data.get("parts") or []
    if not found:
        return ""
    most = max((finite(one.get("floor_seconds")) or 0.0 for one in found), default=0.0) or 1.0
    rows = []
    for one in found:
        seconds = finite(one.get("floor_seconds")) or 0.0
        marks, height = charts.bars([seconds / most])
        value = f"{ms(seconds)}, {one.get('bound', '')}"
        rows.append(charts.row(str(one.get("part", "")), marks, value, height=height))
    needed, memory = finite(data.get("needed_bytes")), finite(data.get("memory_bytes"))
    facts = [f"Image graph in {data.get('precision', '')}, in all: {ms(data.get('floor_seconds'))}."]
    if finite(data.get("text_floor_seconds")) is not None:
        facts.append(f"Text encoder, once a sentence: {ms(data['text_floor_seconds'])}, not in this sum.")
    memory_row = ""
    if needed is not None and memory:
        fits = "it fits" if data.get("fits") else "it does not fit"
        facts.append(
            f"Weights of both graphs and activations need {bytes_text(needed)} of {bytes_text(memory)}: {fits}."
        )
        marks, height = charts.bars([min(needed / memory, 1.0)])
        value = f"{bytes_text(needed)} of {bytes_text(memory)}"
        memory_row = "<h3>Memory</h3>" + charts.row("weights, activations", marks, value, height=height)
    basis = f"{escape(str(data.get('note') or ''))} {source_link(data.get('source'))}".strip()
    note = (
        f"A {data.get('label') or 'floor, not a promise'}. Beside the time of each part stands what bounds it: its "
        "products (compute) or the bytes that it moves (memory)."
    )
    blocks = (f"<p>{escape(' '.join(facts))}</p>", *rows, memory_row, f'<p class="note">{basis}</p>')
    return section(f"Floor on {data.get('name', 'the device')}", note, *blocks)


def layers(result: Result) -> str:
    """Where a graph of low precision and its FP32 original part company, and the tensors that differ most."""
    found = result.get("layers") or []
    if not found:
        return ""
    first = next((one for one in found if one.get("first")), None)
    if first is None:
        said = "No tensor parts company with the FP32 graph: rounding explains what differs."
    else:
        where = f"{first.get('node')} (tensor {first.get('tensor')}, relative error {_error(first)})"
        said = f"The graphs part company at {where}."
    shown = [*found[:_WORST], *(one for one in found[_WORST:] if one.get("first"))]
    errors = [finite(one.get("relative_error")) for one in shown]
    most = max((error for error in errors if error is not None), default=0.0) or 1.0
    rows = []
    for one, error in zip(shown, errors, strict=True):
        marks, height = charts.bars([1.0 if error is None else error / most])
        value = f"{_error(one)}{', first' if one.get('first') else ''}"
        rows.append(charts.row(str(one.get("node", "")), marks, value, note=str(one.get("tensor", "")), height=height))
    note = (
        f"Relative error of each tensor that the graph shares with the FP32 one, on one input; the worst "
        f"{min(_WORST, len(found))} of {len(found)}, by node and tensor."
    )
    return section("Layers against FP32", note, f"<p>{escape(said)}</p>", *rows)


def _error(row: Result) -> str:
    return number(row.get("relative_error"), ".1e").replace("–", _NOT_FINITE)
