"""The report's sections on time and accuracy: each takes the whole run and is None if the run did not measure it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

from ..._base.timing import Ratio
from ..timing.latency import PER_CALL
from ..timing.result import FidelityFigures, FidelityRow, Overlay, Result, SweepPoint
from . import charts
from .content import Block, Drawing, Section, Table, Text
from .format import NOTHING, bytes_text, ms, number, percent, rate, ratio_text

_SWEPT = {"threads": "threads", "batch": "images in a call"}
_APART = {
    "decode": "JPEG to pixels, once a file",
    "text_cold": "text, once a new sentence",
    "text_cached": "text, a sentence met before",
}
_BASE64 = re.compile(r"[A-Za-z0-9+/]+={0,2}")


def latencies(result: Result) -> Section:
    """Each side's rounds as a strip on one scale, and as shares of its own median."""
    scale = (0.0, 1.02 * max(max(side.seconds) for side in result.sides))
    shares = [[value / side.summary.median for value in side.seconds] for side in result.sides]
    share_scale = charts.spread([1.0, *(value for values in shares for value in values)])
    rows, scatter = [], ["<h3>Scatter about the median</h3>"]
    for i, (side, values) in enumerate(zip(result.sides, shares, strict=True)):
        median, fill = ms(side.summary.median), charts.colour(i)
        label = f"{side.name}: median {median}, from {ms(min(side.seconds))} to {ms(max(side.seconds))}"
        note = ", ".join(filter(None, (side.kind, side.precision)))
        rows.append(charts.row(side.name, charts.strip(side.seconds, scale, fill), median, note=note, label=label))
        value = f"{100 * (min(values) - 1):+.1f} … {100 * (max(values) - 1):+.1f} %"
        scatter.append(charts.row(side.name, charts.strip(values, share_scale, fill), value))
    note = (
        f"Time of the image graph, each round a tick, from 0 to {ms(scale[1])}. The box holds the middle half of the "
        "rounds, the thick line is the median. Sides were measured in turn, round by round."
    )
    return Section("Latency", note, [Drawing("".join([*rows, *scatter]))])


def ratios(result: Result) -> Section | None:
    """Each ratio of medians with its interval, beside 1."""
    if not result.ratios:
        return None
    names = [side.name for side in result.sides]
    scale = charts.spread([1.0, *(value for ratio in result.ratios for value in (ratio.ratio, ratio.low, ratio.high))])
    rows = []
    for ratio in result.ratios:
        marks = charts.interval(ratio.ratio, ratio.low, ratio.high, scale, charts.colour(names.index(ratio.name)))
        rows.append(charts.row(ratio.name, marks, ratio_text(ratio), note=f"over {ratio.against}"))
    note = (
        "Ratio of median times: below 1 the first is faster. The bar is the 95 % interval; the dashed line is 1, and "
        "if the bar crosses it no difference was shown."
    )
    return Section("Ratios", note, [Drawing("".join(rows))])


def figures(result: Result) -> Section:
    """All figures as tables: what a chart shows can be read and copied."""
    rows = [
        [
            side.name,
            side.precision or NOTHING,
            "×".join(map(str, side.size)),
            str(side.batch),
            str(len(side.seconds)),
            *(ms(value) for value in (side.summary.median, side.summary.p90, side.summary.p99)),
            f"{side.summary.throughput:.2f}",
            bytes_text(side.memory.peak_bytes),
        ]
        for side in result.sides
    ]
    columns = ["side", "precision", "input", "batch", "rounds", "median", "p90", "p99", "images/s", "peak memory"]
    blocks: list[Block] = [Table(columns, rows)]
    if result.ratios:
        compared = [
            [f"{ratio.name} over {ratio.against}", *(f"{value:.4f}" for value in (ratio.ratio, ratio.low, ratio.high))]
            for ratio in result.ratios
        ]
        blocks.append(Table(["side over side", "ratio", "low", "high"], compared, "Ratios of medians"))
    return Section("All figures", "", blocks)


def splits(result: Result) -> Section | None:
    """The steps of a call for each side that was split, and what is not in a call."""
    sides = [side for side in result.sides if side.split]
    if not sides:
        return None
    steps = [dict(side.split or {}) for side in sides]
    sums = [sum(times[step] for step in PER_CALL) for times in steps]
    most = max(*sums, *(side.call or 0.0 for side in sides))
    rows = []
    for side, times, whole in zip(sides, steps, sums, strict=True):
        bar = charts.stacked([times[step] / most for step in PER_CALL])
        rows.append(charts.row(side.name, bar, ms(side.call), note=f"steps add up to {ms(whole)}"))
    cells = [
        [
            step,
            *(f"{ms(times[step])}, {percent(times[step] / whole)}" for times, whole in zip(steps, sums, strict=True)),
        ]
        for step in PER_CALL
    ]
    around = [
        f"{ms(side.overhead.seconds)}, {percent(side.overhead.share)}" if side.overhead else NOTHING for side in sides
    ]
    cells += [["all steps", *map(ms, sums)], ["a call, measured whole", *(ms(side.call) for side in sides)]]
    cells.append(["all but the image graph, median of rounds", *around])
    apart = [[words, *(ms(times[step]) for times in steps)] for step, words in _APART.items()]
    names = [side.name for side in sides]
    return Section(
        "What a call consists of",
        "Image in memory, sentence encoded before: median of each step, and of whole calls, measured beside their "
        "steps. Shares are of the steps' sum.",
        [
            Drawing(charts.legend(PER_CALL) + "".join(rows)),
            Table(["step", *names], cells),
            Table(["once a sentence, or a file", *names], apart, "Not in a call"),
        ],
        reading="Steps are in the colours of the legend, the value beside a bar is that of whole calls.",
    )


def fidelity(result: Result) -> Section | None:
    """Figures of each precision, accuracy over latency, and pictures of where precisions disagree."""
    rows = result.fidelity
    if not rows:
        return None
    reference = rows[0].against
    note = (
        f"What each precision keeps of {reference} over {rows[0].sentences} sentences: logits, pixels and masks are "
        "compared with its. IoU in percent, what is lost of it in points."
    )
    drawing = _accuracy_plot(result, rows) + _overlays(rows, reference)
    return Section("Precision and accuracy", note, [fidelity_table(rows), Drawing(drawing)])


def fidelity_table(rows: Sequence[FidelityFigures]) -> Table:
    cells = [
        [
            row.name,
            f"{row.mean_iou:.2f}",
            f"{row.drop:+.2f}",
            f"{row.iou_with_reference:.2f}",
            percent(row.pixel_agreement, 3),
            number(row.relative_error, ".1e"),
        ]
        for row in rows
    ]
    columns = ["precision", "mean IoU", "lost", f"IoU with {rows[0].against}", "equal pixels", "logit error"]
    return Table(columns, cells)


def _accuracy_plot(result: Result, rows: Sequence[FidelityRow]) -> str:
    """Mean IoU over median time, for precisions that were timed as well."""
    points = []
    for row in rows:
        for i, side in enumerate(result.sides):
            if row.name in (side.name, side.precision) and side.kind in ("bundle", "onnx"):
                points.append((row.name, i, 1e3 * side.summary.median, row.mean_iou))
                break
    if len(points) < 2:
        return ""
    x = charts.Axis("median time of the image graph, ms", 0.0, 1.15 * max(point[2] for point in points))
    y = charts.Axis("mean IoU, percent", *charts.spread([point[3] for point in points], 0.25))
    marks = "".join(
        charts.dot(charts.place(x, y, time, accuracy), charts.colour(i), text=name, name=f"{name}: {time:.1f} ms")
        for name, i, time, accuracy in points
    )
    return "<h3>Accuracy over time</h3>" + charts.plot(x, y, marks, "mean IoU of each precision over its median time")


def _overlays(rows: Sequence[FidelityRow], reference: str) -> str:
    """The cases side by side: one case a line, one precision a picture."""
    cases: dict[int, list[tuple[str, Overlay]]] = {}
    for row in rows:
        for overlay in row.overlays:
            if _BASE64.fullmatch(overlay.image_png_base64):
                cases.setdefault(overlay.case, []).append((row.name, overlay))
    if not cases:
        return ""
    blocks = ["<h3>Where precisions disagree most</h3>"]
    for pictures in cases.values():
        drawn = "".join(
            f'<figure><img alt="mask by {escape(name)}" src="data:image/png;base64,{overlay.image_png_base64}">'
            f"<figcaption><b>{escape(name)}</b> {percent(overlay.pixel_agreement, 2)} of pixels as {escape(reference)}"
            "</figcaption></figure>"
            for name, overlay in pictures
        )
        sentence = escape(pictures[0][1].sentence)
        blocks.append(f'<div class="case"><p>“{sentence}”</p><div class="masks">{drawn}</div></div>')
    return "".join(blocks)


def sweeps(result: Result) -> Section | None:
    """Images a second by threads and by batch, a line for each side; the figures; and what was left out."""
    if not result.sweeps:
        return None
    names = [side.name for side in result.sides]
    plots = "".join(
        _sweep_plot([point for point in result.sweeps if point.sweep == kind], kind, names) for kind in _SWEPT
    )
    rows, skipped = [], []
    for point in result.sweeps:
        if point.summary is None:
            value = point.threads if point.sweep == "threads" else point.batch
            skipped.append(Text(f"Left out: {point.name} with {point.sweep} {value}: {point.skipped}"))
            continue
        times = [ms(point.summary.median), ms(point.summary.p90), rate(point.summary.throughput)]
        rows.append([point.name, number(point.threads, "d"), str(point.batch), *times, _compared(point)])
    columns = ["side", *_SWEPT.values(), "median", "p90", "images/s", f"{names[0]} over it (95 %)"]
    drawing = Drawing(charts.legend(names) + f'<div class="plots">{plots}</div>')
    note = "The same sides with other threads or batches, measured in turn; a dash is what the run chose."
    return Section("Sweeps", note, [drawing, Table(columns, rows), *skipped])


def _compared(point: SweepPoint) -> str:
    if point.ratio is None or point.low is None or point.high is None:
        return ""
    return ratio_text(Ratio(point.ratio, point.low, point.high))


def _sweep_plot(entries: Sequence[SweepPoint], kind: str, names: Sequence[str]) -> str:
    """Images a second over the number of threads or images a call."""
    points: dict[str, list[tuple[float, float]]] = {}
    for point in entries:
        value = point.threads if kind == "threads" else point.batch
        if value is not None and point.summary is not None:
            points.setdefault(point.name, []).append((value, point.summary.throughput))
    every = [point for measured in points.values() for point in measured]
    if not every:
        return ""
    at = tuple(sorted({value for value, _ in every}))
    x = charts.Axis(_SWEPT[kind], at[0] / 1.15, at[-1] * 1.15, log=True, at=at)
    y = charts.Axis("images a second", 0.0, 1.1 * max(speed for _, speed in every))
    marks = ""
    for name, measured in points.items():
        fill, places = charts.colour(names.index(name)), [charts.place(x, y, *point) for point in sorted(measured)]
        marks += charts.lines(places, f'stroke="{fill}" stroke-width="2"')
        for place, (at_value, speed) in zip(places, sorted(measured), strict=True):
            marks += charts.dot(place, fill, name=f"{name}, {kind} {at_value:g}: {rate(speed)} images a second")
    return charts.plot(x, y, marks, f"images a second by {kind}")
