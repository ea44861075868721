"""Figures for Prometheus, in its text format (https://prometheus.io/docs/instrumenting/exposition_formats/)."""

from __future__ import annotations

from collections import Counter
from itertools import accumulate

_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, float("inf"))  # seconds


class Metrics:
    """Counters of one server; the event loop alone writes them."""

    def __init__(self, paths: frozenset[str]) -> None:
        self._paths = paths  # others are counted together: a label must not grow with what is asked
        self._answers: Counter[tuple[str, int]] = Counter()
        self._seconds = [0] * len(_BUCKETS)
        self._sum = 0.0
        self.values: dict[str, float] = {"frames_total": 0, "frames_dropped_total": 0, "watchers": 0}

    def count_answer(self, path: str, status: int) -> None:
        self._answers[path if path in self._paths else "other", status] += 1

    def time_answer(self, seconds: float) -> None:
        self._seconds[next(i for i, most in enumerate(_BUCKETS) if seconds <= most)] += 1
        self._sum += seconds

    def text(self) -> str:
        lines = ["# TYPE lavt_answers_total counter"]
        lines += [
            f'lavt_answers_total{{path="{path}",status="{status}"}} {count}'
            for (path, status), count in sorted(self._answers.items())
        ]
        lines += ["# TYPE lavt_segment_seconds histogram"]
        for most, count in zip(_BUCKETS, accumulate(self._seconds), strict=True):
            shown = "+Inf" if most == float("inf") else f"{most:g}"
            lines.append(f'lavt_segment_seconds_bucket{{le="{shown}"}} {count}')
        lines += [f"lavt_segment_seconds_sum {self._sum:g}", f"lavt_segment_seconds_count {sum(self._seconds)}"]
        for name, value in self.values.items():
            kind = "counter" if name.endswith("_total") else "gauge"
            lines += [f"# TYPE lavt_{name} {kind}", f"lavt_{name} {value:g}"]
        return "\n".join(lines) + "\n"
