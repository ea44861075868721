"""The words and numbers of the report: what is said of a run, and how a figure is written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ..._base.timing import Ratio
from ..timing.result import Result, SideParts

NOTHING = "–"


def number(value: float | None, form: str) -> str:
    """A number by a format of Python, such as ".2f" or "d"; a dash for None."""
    return NOTHING if value is None else format(value, form)


def ms(seconds: float | None) -> str:
    """Seconds in milliseconds, with three digits or so."""
    if seconds is None:
        return NOTHING
    value = 1e3 * seconds
    return f"{value:.0f} ms" if value >= 1000 else f"{value:.1f} ms" if value >= 10 else f"{value:.3g} ms"


def rate(value: float) -> str:
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def scaled(value: float, unit: str) -> str:
    """A count with a decimal prefix: 3.2e9 MACs as 3.20 GMACs."""
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}"


def bytes_text(value: float | None) -> str:
    return NOTHING if value is None else scaled(value, "B")


def percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f} %"


def ratio_text(ratio: Ratio) -> str:
    """A ratio with its interval: 0.780 (0.771–0.792)."""
    return f"{ratio.ratio:.3f} ({ratio.low:.3f}–{ratio.high:.3f})"


def headline(result: Result) -> str:
    """The measured side and its median time."""
    engine = result.sides[0]
    what = "an image" if engine.batch == 1 else f"a batch of {engine.batch}"
    return f"{engine.name}{f', {engine.precision}' if engine.precision else ''}: {ms(engine.summary.median)} {what}"


def verdicts(result: Result) -> Iterator[tuple[str, str, str]]:
    """What the run says, each as (tone, word, rest); tone is "good", "bad" or "soft"."""
    for ratio in result.ratios:
        pair = f"{ratio.name} takes {ratio_text(ratio)} of the time of {ratio.against}"
        if ratio.high < 1:
            yield "good", "Faster:", pair
        elif ratio.low > 1:
            yield "bad", "Slower:", pair
        else:
            yield "soft", "No difference shown:", f"{pair}; the interval holds 1"
    rows = result.fidelity or ()
    if len(rows) > 1:
        worst = max(rows, key=lambda row: row.drop)
        yield (
            "bad" if worst.drop > 1 else "good",
            "Accuracy:",
            f"{worst.name} loses most, {worst.drop:+.2f} points of mean IoU; "
            f"{percent(worst.pixel_agreement, 2)} of its pixels are as those of {rows[0].against}",
        )
    if result.parts:
        yield "soft", "Where the time goes:", _heaviest(result.parts[0])
    if result.warnings:
        count = len(result.warnings)
        yield "bad", f"{count} warning{'s' if count > 1 else ''}:", "the figures are less certain than they look"


def _heaviest(side: SideParts) -> str:
    """The three parts that take most time."""
    total = sum(part.seconds for part in side.parts) or 1.0
    most = sorted(side.parts, key=lambda part: part.seconds, reverse=True)[:3]
    return ", ".join(f"{part.part} {percent(part.seconds / total, 0)}" for part in most)


def machine_rows(facts: object, prefix: str = "") -> list[tuple[str, str]]:
    """Nested plain JSON as lines of name and text; what is None is left out."""
    if isinstance(facts, Mapping):
        return [line for key, value in facts.items() for line in machine_rows(value, f"{prefix} {key}".strip())]
    if facts is None:
        return []
    if isinstance(facts, list):
        return [(prefix, ", ".join(map(str, facts)) or NOTHING)]
    if isinstance(facts, bool):
        return [(prefix, "yes" if facts else "no")]
    if prefix.endswith("bytes") and isinstance(facts, int):
        return [(prefix.removesuffix("bytes").strip("_ "), bytes_text(facts))]
    return [(prefix, str(facts))]
