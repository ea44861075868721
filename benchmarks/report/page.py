"""`lavt-bench --report`: what a run measured as one HTML file that needs nothing else, not even a script."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from ..._base.files import write_whole
from .format import bytes_text, finite, headline, machine_rows, ms, number, rate, table, verdicts
from .parts import floor, layers, parts, roofline
from .sections import fidelity, latencies, ratios, splits, sweeps
from .style import STYLE

Result = Mapping[str, Any]


def write_report(result: Result, path: Path) -> None:
    """Writes the report of a run (the JSON of `lavt-bench --json`), whole or not at all. Raises OSError."""
    write_whole(path, page(result).encode("utf-8"))


def page(result: Result) -> str:
    """The report as HTML. Sections that the run did not measure are left out; all text from outside is escaped."""
    sections = (
        _verdict(result),
        _warnings(result),
        latencies(result),
        ratios(result),
        splits(result),
        parts(result),
        roofline(result),
        floor(result),
        fidelity(result),
        layers(result),
        sweeps(result),
        _sides(result),
        _environment(result),
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{escape(headline(result))}</title><link rel="icon" href="data:,"><style>{STYLE}</style></head>\n'
        f"<body><main>{''.join(sections)}</main></body></html>\n"
    )


def _verdict(result: Result) -> str:
    items = "".join(
        f'<li><span class="{tone}">{escape(word)}</span> {escape(text)}</li>' for tone, word, text in verdicts(result)
    )
    sides = result.get("sides") or []
    tiles = ""
    if sides:
        first = sides[0]
        summary, memory = first.get("summary") or {}, first.get("memory") or {}
        facts = [
            (ms(summary.get("median")), "median of the image graph"),
            (ms(summary.get("p99")), "99th percentile"),
            (rate(summary.get("throughput")), "images a second"),
            (bytes_text(memory.get("peak_bytes")), "peak memory"),
        ]
        tiles = "".join(
            f'<div class="tile"><b>{escape(value)}</b><span>{escape(label)}</span></div>'
            for value, label in facts
            if value != "–"
        )
    cpu = (result.get("machine") or {}).get("cpu")
    model = cpu.get("model") if isinstance(cpu, Mapping) else cpu
    where = f'<p class="soft">on {escape(str(model))}</p>' if model else ""
    return (
        f'<section class="verdict"><h1>{escape(headline(result))}</h1>{where}'
        f'<div class="tiles">{tiles}</div><ul>{items}</ul></section>'
    )


def _warnings(result: Result) -> str:
    found = result.get("warnings") or []
    if not found:
        return ""
    items = "".join(f"<li>{escape(str(one))}</li>" for one in found)
    note = '<p class="note">What makes these figures less certain.</p>'
    return f'<section class="warnings"><h2>Warnings</h2>{note}<ul>{items}</ul></section>'


def _sides(result: Result) -> str:
    """All figures as a table: what a chart shows can be read and copied."""
    sides = result.get("sides") or []
    if not sides:
        return ""
    rows = []
    for side in sides:
        summary, memory = side.get("summary") or {}, side.get("memory") or {}
        size = side.get("size") or []
        rows.append(
            [
                side.get("name", ""),
                side.get("precision") or "–",
                "×".join(str(one) for one in size) or "–",
                number(side.get("batch"), "d"),
                number(len(side.get("seconds") or []), "d"),
                *(ms(summary.get(key)) for key in ("median", "p90", "p99")),
                number(summary.get("throughput"), ".2f"),
                bytes_text(memory.get("peak_bytes")),
            ]
        )
    head = ["side", "precision", "input", "batch", "rounds", "median", "p90", "p99", "images/s", "peak memory"]
    body = table(head, rows)
    ratios_found = [
        [
            f"{one.get('name', '')} over {one.get('against', '')}",
            *(number(one.get(key), ".4f") for key in ("ratio", "low", "high")),
        ]
        for one in result.get("ratios") or []
        if finite(one.get("ratio")) is not None
    ]
    if ratios_found:
        body += "<h3>Ratios of medians</h3>" + table(["side over side", "ratio", "low", "high"], ratios_found)
    return f"<section><h2>All figures</h2>{body}</section>"


def _environment(result: Result) -> str:
    blocks = []
    for title, key in (("Machine", "machine"), ("Options", "options")):
        rows = machine_rows(result.get(key) or {})
        if rows:
            lines = "".join(f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in rows)
            blocks.append(f'<h3>{title}</h3><table class="facts"><tbody>{lines}</tbody></table>')
    return f"<section><h2>Environment</h2>{''.join(blocks)}</section>" if blocks else ""
