"""The report's sections on the model's parts: their time, the roofline, a device's lower bound, layers that diverge."""

from __future__ import annotations

from collections.abc import Sequence

from ..timing.result import LayerError, PartCost, Result
from . import charts
from .content import Bar, Bars, Block, Drawing, Section, Table, Text
from .format import bytes_text, ms, percent, scaled

_ABOVE = 1.05  # an efficiency that scatter does not explain
_WORST = 20


def parts(result: Result) -> Section | None:
    """Time of each part of the model, a bar for each side; and of the text encoder, which is none of them."""
    sides = result.parts
    if not sides:
        return None
    times = [{part.part: part.seconds for part in side.parts} for side in sides]
    work: dict[str, PartCost] = {part.part: part for side in reversed(sides) for part in side.parts}
    names = list(dict.fromkeys(name for seconds in times for name in seconds))
    most = max(max(seconds.values()) for seconds in times) or 1.0
    totals = [sum(seconds.values()) or 1.0 for seconds in times]
    rows = []
    for name in names:
        values = [
            f"{ms(seconds[name])}, {percent(seconds[name] / total)}"
            for seconds, total in zip(times, totals, strict=True)
            if name in seconds
        ]
        shares = [seconds[name] / most if name in seconds else None for seconds in times]
        rows.append(Bar(name, shares, "\n".join(values), _amounts(work[name].macs, work[name].bytes)))
    blocks: list[Block] = [Bars(rows, ("part", "work", "time"), [side.side for side in sides])]
    for side, total in zip(sides, totals, strict=True):
        amounts = _amounts(sum(part.macs for part in side.parts), sum(part.bytes for part in side.parts))
        blocks.append(Text(f"{side.side}, all parts: {ms(total)}, {amounts}."))
    if (text := result.text) is not None:
        facts = f"{ms(text.seconds)}, {scaled(text.macs, 'MACs')}, {bytes_text(text.weight_bytes)} of weights"
        blocks.append(Text(f"Not in this sum: text encoder, once a sentence: {facts}."))
    note = "From the backend's own profiler, by the graph's node names; with what each part computes and moves."
    return Section("Where the time goes", note, blocks)


def _amounts(macs: int, size: int) -> str:
    return f"{scaled(macs, 'MACs')}, {bytes_text(size)}"


def roofline(result: Result) -> Section | None:
    """Each part's rate against what the machine can do, and its time against its lower bound."""
    if result.roofline is None:
        return None
    ceilings = result.roofline.ceilings
    peak, bandwidth = ceilings.macs_per_second, ceilings.bytes_per_second
    points, rows, above = [], [], []
    for i, part in enumerate((part for part in result.roofline.parts if part.seconds), start=1):
        if part.macs_per_byte:
            points.append((i, part.part, part.macs_per_byte, part.macs / part.seconds))
        share = part.efficiency or 0.0
        if share > _ABOVE:
            above.append(f"{part.part} ({percent(share, 0)})")
        value = f"{percent(share, 0)} of {ms(part.seconds)}"
        rows.append(Bar(f"{i}. {part.part}", [min(share, 1.0)], value, f"bound {ms(part.floor_seconds)}"))
    note = f"Measured ceilings of this machine: {scaled(peak, 'MACs/s')} in {ceilings.precision} and "
    note += f"{scaled(bandwidth, 'B/s')}. The bound of a part is the least time that they allow."
    reading = (
        "A part on the line uses all that the machine has; the numbers name the parts below, where a full bar is a "
        "part at its bound."
    )
    blocks: list[Block] = [Drawing(_roof(points, peak, bandwidth))] if points else []
    if above:
        said = (
            f"Faster than the measured ceiling allows: {', '.join(above)}. The ceiling was measured at another moment, "
            "when the machine gave less; take such a part to be at its bound, and the other shares to be somewhat high."
        )
        blocks.insert(0, Text(said, "caution"))
    return Section("Roofline", note, [*blocks, Bars(rows, ("part", "bound", "share"))], reading)


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


def estimate(result: Result) -> Section | None:
    """The least time on a device by its published rates, by part, and whether its memory holds the graph."""
    data = result.estimate
    if data is None:
        return None
    most = max((part.floor_seconds for part in data.parts), default=0.0) or 1.0
    rows = [
        Bar(part.part, [part.floor_seconds / most], f"{ms(part.floor_seconds)}, {part.bound}") for part in data.parts
    ]
    facts = [f"Image graph in {data.precision}, in all: {ms(data.floor_seconds)}."]
    facts.append(f"Products alone: {ms(data.compute_seconds)}; bytes alone: {ms(data.memory_seconds)}.")
    if data.text_floor_seconds is not None:
        facts.append(f"Text encoder, once a sentence: {ms(data.text_floor_seconds)}, not in this sum.")
    memory = f"{bytes_text(data.needed_bytes)} of {bytes_text(data.memory_bytes)}"
    fits = "it fits" if data.fits else "it does not fit"
    facts.append(f"Weights of both graphs and activations need {memory}: {fits}.")
    marks, height = charts.bars([min(data.needed_bytes / data.memory_bytes, 1.0)])
    drawn = charts.row("weights, activations", marks, memory, height=height)
    host = data.source.split("/")[2] if data.source.startswith("https://") else ""
    note = (
        f"A {data.label}. Beside the time of each part stands what bounds it: its products (compute) or the bytes that "
        "it moves (memory)."
    )
    return Section(
        f"Lower bound on {data.name}",
        note,
        [
            Text(" ".join(facts)),
            Bars(rows, ("part", "", "lower bound")),
            Drawing(f"<h3>Memory</h3>{drawn}"),
            Text(data.note, "note", (data.source, f"Published at {host}") if host else None),
        ],
    )


def kernels(result: Result) -> Section | None:
    """What a GPU runs for the graph: kernels and bytes by part, what only moves, both lower bounds on each device."""
    data = result.kernels
    if data is None:
        return None
    rows = [(row.part, row.kernels, row.moved_bytes, row.constant_bytes, row.macs) for row in data.parts]
    count, moved, constants, macs = (sum(column) for column in list(zip(*rows, strict=True))[1:])
    table = [
        (part, str(kernels), f"{activations / 1e6:.1f}", f"{weights / 1e6:.1f}", f"{products / 1e9:.2f}")
        for part, kernels, activations, weights, products in [*rows, ("all", count, moved, constants, macs)]
    ]
    floors = [(floor.device, ms(floor.memory_seconds), ms(floor.compute_seconds)) for floor in data.floors]
    moves = [(move.part, str(move.kernels), f"{move.moved_bytes / 1e6:.1f}") for move in data.moves]
    note = (
        f"{data.compiler}: {count} kernels, {(moved + constants) / 1e6:.0f} MB moved as if there were no caches, "
        f"{data.fused_attentions} fused attentions. Not measured: no GPU is needed."
    )
    blocks: list[Block] = [
        Table(("part", "kernels", "activations, MB", "constants, MB", "GMACs"), table),
        Table(("device", "bytes alone", "products alone"), floors, "Lower bounds"),
    ]
    if moves:
        blocks.append(Table(("part", "kernels", "MB"), moves, "Kernels over 5 MB that only move numbers"))
    return Section("Kernels on a GPU", note, blocks)


def layers(result: Result) -> Section | None:
    """The first layer whose output diverges from FP32, and the tensors that differ most."""
    rows = result.layers
    if not rows:
        return None
    first = next((row for row in rows if row.first), None)
    if first is None:
        said = "No layer's output diverges from FP32: rounding explains what differs."
    else:
        where = f"{first.node} (tensor {first.tensor}, relative error {_error(first)})"
        said = f"The first layer whose output diverges from FP32 is {where}."
    shown = [*rows[:_WORST], *(row for row in rows[_WORST:] if row.first)]
    most = max((row.relative_error or 0.0 for row in shown), default=0.0) or 1.0
    bars = [
        Bar(
            row.node,
            [1.0 if row.relative_error is None else row.relative_error / most],
            f"{_error(row)}{', first' if row.first else ''}",
            row.tensor,
        )
        for row in shown
    ]
    note = (
        f"Relative error of each tensor that the graph shares with the FP32 one, on one input; the worst "
        f"{min(_WORST, len(rows))} of {len(rows)}, by node and tensor."
    )
    return Section("Layers against FP32", note, [Text(said), Bars(bars, ("node", "tensor", "relative error"))])


def _error(row: LayerError) -> str:
    return "not finite" if row.relative_error is None else f"{row.relative_error:.1e}"
