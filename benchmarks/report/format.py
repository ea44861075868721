"""The words and numbers of the report: what is said of a run, and how a figure is written."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

NOTHING = "–"
Result = Mapping[str, Any]


def finite(value: Any) -> float | None:
    """A number as float; None for what is none or not finite."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def number(value: Any, form: str) -> str:
    """A number by a format of Python, such as ".2f" or "d"; a dash where there is none."""
    found = finite(value)
    if found is None:
        return NOTHING
    return format(int(found) if form == "d" else found, form)


def ms(seconds: Any) -> str:
    """Seconds in milliseconds, with three digits or so."""
    found = finite(seconds)
    if found is None:
        return NOTHING
    value = 1e3 * found
    return f"{value:.0f} ms" if value >= 1000 else f"{value:.1f} ms" if value >= 10 else f"{value:.3g} ms"


def rate(value: Any) -> str:
    found = finite(value)
    return NOTHING if found is None else f"{found:.1f}" if found >= 10 else f"{found:.2f}"


def scaled(value: Any, unit: str) -> str:
    """A count with a decimal prefix: 3.2e9 MACs as 3.20 GMACs."""
    found = finite(value)
    if found is None:
        return NOTHING
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(found) >= factor:
            return f"{found / factor:.3g} {prefix}{unit}"
    return f"{found:.3g} {unit}"


def bytes_text(value: Any) -> str:
    return scaled(value, "B")


def percent(share: Any, digits: int = 1) -> str:
    found = finite(share)
    return NOTHING if found is None else f"{100 * found:.{digits}f} %"


def ratio_text(one: Result) -> str:
    """A ratio with its interval: 0.780 (0.771–0.792)."""
    low, high = finite(one.get("low")), finite(one.get("high"))
    interval = f" ({low:.3f}–{high:.3f})" if low is not None and high is not None else ""
    return number(one.get("ratio"), ".3f") + interval


def headline(result: Result) -> str:
    """The measured side and its median time."""
    sides = result.get("sides") or []
    if not sides:
        return "lavt-bench: nothing was measured"
    first = sides[0]
    median = ms((first.get("summary") or {}).get("median"))
    precision = first.get("precision")
    batch = finite(first.get("batch")) or 1
    what = "an image" if batch == 1 else f"a batch of {batch:.0f}"
    return f"{first.get('name', 'engine')}{f', {precision}' if precision else ''}: {median} {what}"


def verdicts(result: Result) -> Iterator[tuple[str, str, str]]:
    """What the run says, each as (tone, word, rest); tone is "good", "bad" or "soft"."""
    for one in result.get("ratios") or []:
        ratio, low, high = (finite(one.get(key)) for key in ("ratio", "low", "high"))
        if ratio is None or low is None or high is None:
            continue
        pair = f"{one.get('name', '')} takes {ratio_text(one)} of the time of {one.get('against', '')}"
        if high < 1:
            yield "good", "Faster:", pair
        elif low > 1:
            yield "bad", "Slower:", pair
        else:
            yield "soft", "No difference shown:", f"{pair}; the interval holds 1"
    rows = [row for row in result.get("fidelity") or [] if finite(row.get("drop")) is not None]
    if len(rows) > 1:
        worst = max(rows, key=lambda row: float(row["drop"]))
        tone = "bad" if worst["drop"] > 1 else "good"
        yield (
            tone,
            "Accuracy:",
            (
                f"{worst.get('name', '')} loses most, {worst['drop']:+.2f} points of mean IoU; "
                f"{percent(worst.get('pixel_agreement'), 2)} of its pixels are as those of {reference_of(rows)}"
            ),
        )
    heaviest = _heaviest(result)
    if heaviest:
        yield "soft", "Where the time goes:", heaviest
    count = len(result.get("warnings") or [])
    if count:
        yield "bad", f"{count} warning{'s' if count > 1 else ''}:", "the figures are less certain than they look"


def _heaviest(result: Result) -> str:
    """The three parts that take most time on the first side that has parts."""
    for one in result.get("parts") or []:
        timed = [(finite(part.get("seconds")) or 0.0, str(part.get("part", ""))) for part in one.get("parts") or []]
        total = sum(seconds for seconds, _ in timed)
        if total > 0:
            most = sorted(timed, reverse=True)[:3]
            return ", ".join(f"{name} {percent(seconds / total, 0)}" for seconds, name in most)
    return ""


def machine_rows(facts: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Nested plain JSON as lines of name and text; what is None is left out."""
    if isinstance(facts, Mapping):
        return [line for key, value in facts.items() for line in machine_rows(value, f"{prefix} {key}".strip())]
    if facts is None:
        return []
    if isinstance(facts, Sequence) and not isinstance(facts, str):
        return [(prefix, ", ".join(str(one) for one in facts) or NOTHING)]
    if isinstance(facts, bool):
        return [(prefix, "yes" if facts else "no")]
    if prefix.endswith("bytes") and finite(facts) is not None:
        return [(prefix.removesuffix("bytes").strip("_ "), bytes_text(facts))]
    return [(prefix, str(facts))]


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table that scrolls by itself where it is wider than the page. All text is escaped."""
    top = "".join(f"<th>{escape(str(one))}</th>" for one in head)
    body = "".join(f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="scroll" tabindex="0"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def section(title: str, note: str, *blocks: str) -> str:
    """A section of the page; title and note are escaped, blocks are HTML."""
    return f'<section><h2>{escape(title)}</h2><p class="note">{escape(note)}</p>{"".join(blocks)}</section>'


def reference_of(rows: Sequence[Result]) -> str:
    """What the rows of fidelity were compared with: "PyTorch" or "the FP32 graph"."""
    return next((str(row["against"]) for row in rows if row.get("against")), "the FP32 graph")


def source_link(address: Any) -> str:
    """A link to where a figure was published; nothing where the address is none of the web."""
    if not str(address or "").startswith("https://"):
        return ""
    host = str(address).split("/")[2]
    return f'<a href="{escape(str(address))}" rel="noreferrer">Published at {escape(host)}</a>'
