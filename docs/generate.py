"""Writes what in the documentation is not written by hand: `python docs/generate.py`.

docs/api.md, and between the markers `<!-- NAME: generated -->` and `<!-- NAME: end -->` the measured table of README.md
(from docs/benchmarks.json) and the costs in docs/rewrites.md. `--check` writes nothing, and fails if a page is old.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

import api_reference
from lavt_edge._base.files import write_whole

DOCS = Path(__file__).parent
README = DOCS.parent / "README.md"
BENCHMARKS = DOCS / "benchmarks.json"
# Sides of the standing comparison that README shows.
SHOWN = ("rewritten, INT8", "rewritten, Winograd", "rewritten", "plain export")
# Part of the model with the rewrites at work in it, the published modules, and the rewritten ones by their layer group,
# else their part, of export/rewrites/names.py: the first match counts.
PARTS = (
    ("patch embedding", r"patch_embed", r"patch embedding"),
    ("Swin: qkv, output projection (4)", r"attn\.(qkv|proj)$", r"attn\.(qkv|proj)$"),
    ("Swin: scores, values", r"attn$", r"attn\.(scores|values)$"),
    ("Swin: MLP, merging; gate", r"mlp|downsample|gate", r"mlp|merge|gate"),
    ("PWAM: keys and values of words (3)", r"f_key|f_value", r"words"),
    ("PWAM: the rest (1, 2)", r"fusion", r"pwam"),
    ("decoder: first convolutions (5)", r"conv1_[234]$", r"(skip|taps)$|decoder\.level\d$"),
    ("decoder: second convolutions", r"conv2_[234]$", r"\.conv$"),
    ("classifier, last upsampling", r"conv1_1$", r"classifier$"),
)


def benchmarks_table(result: dict[str, Any]) -> str:
    """The image graph's time and, for the demo model, what INT8 costs."""
    cpu = result["machine"]["cpu"]
    lines = [
        f"Image graph, one image per call, {result['machine']['threads']} threads of {cpu['model']}, {result['date']}:",
        "",
        "| | " + " | ".join(f"{_title(model)} ms | over plain export" for model in result["models"]) + " |",
        "| --- |" + " ---: | ---: |" * len(result["models"]),
    ]
    for name in SHOWN:
        cells = [_cells(model, name) for model in result["models"]]
        if any(cells):
            lines.append(f"| {name} | " + " | ".join(cell or "– | –" for cell in cells) + " |")
    base = result["models"][0]
    counts = [
        f"{graph['kernels']} and {(graph['moved_bytes'] + graph['constant_bytes']) / 1e6:.0f} MB ({graph['name']})"
        for graph in base.get("gpu", ())
    ]
    if counts:
        lines += [
            "",
            f"Kernels that a GPU runs for {_title(base)[:-1]}, and bytes",
            f"that they move: {', '.join(counts)}.",
        ]
    for model in result["models"]:
        judged = {row["name"]: row for row in model["accuracy"] or ()}
        if judged:
            means = [f"{name} {row['mean_iou']:.2f}" for name, row in judged.items()]
            sentences = judged["fp32"]["sentences"]
            lines += ["", f"Mean IoU of the {model['name']} over {sentences} generated sentences: {', '.join(means)}."]
    return "\n".join(lines)


def _title(model: dict[str, Any]) -> str:
    height, width = model["size"]
    return f"{model['name']}, {height}x{width}:"


def _cells(model: dict[str, Any], name: str) -> str | None:
    sides = {one["name"]: one["summary"]["median"] for one in model["sides"]}
    ratios = {one["name"]: one["ratio"] for one in model["ratios"] if one["against"] == "plain export"}
    if name not in sides:
        return None
    return f"{1e3 * sides[name]:.1f} | {ratios.get(name, 1):.2f}"


def costs_table() -> str:
    """GMACs of Swin-base, window 12, one 480x480 image and 20 words: the published modules' and the rewritten ones'."""
    counted = _published_and_rewritten()
    lines = ["| part | published | rewritten |", "| --- | ---: | ---: |"]
    sums = [_by_part(counts, [part[1 + side] for part in PARTS]) for side, counts in enumerate(counted)]
    lines += [f"| {part[0]} | {sums[0][i]:.2f} | {sums[1][i]:.2f} |" for i, part in enumerate(PARTS)]
    lines.append(f"| **all** | **{sum(sums[0]):.2f}** | **{sum(sums[1]):.2f}** |")
    return "\n".join(lines)


def _by_part(counts: dict[str, float], patterns: list[str]) -> list[float]:
    """GMACs of the names that each pattern is the first to match. Raises StopIteration if none matches."""
    sums = [0.0] * len(patterns)
    for name, macs in counts.items():
        sums[next(i for i, pattern in enumerate(patterns) if re.search(pattern, name))] += macs / 1e9
    return sums


def _published_and_rewritten() -> tuple[dict[str, float], dict[str, float]]:
    """MACs by module of the published model, and by layer group, or part, of the rewritten one."""
    import torch
    from lavt_edge.export.rewrites.image_model import ImageModel
    from lavt_edge.export.rewrites.names import place_of
    from lavt_edge.export.rewrites.words import prompt_channels
    from lavt_edge.reference import LAVT, LAVTConfig, TextConfig

    words = 20
    config = LAVTConfig(text=TextConfig(vocab_size=2, num_layers=1))
    with torch.device("meta"):
        model = LAVT(config).eval()
        inputs = torch.zeros(1, 3, 480, 480), torch.zeros(1, 768, words), torch.ones(1, words, 1)
    published = _count(model.segment, *inputs)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.zero_()  # shapes alone matter, but an index must be one
    rewritten_model = ImageModel(model, 480, 480).to("meta")
    with torch.device("meta"):
        image = torch.zeros(1, 480, 480, 3, dtype=torch.uint8)
        prompt = torch.zeros(1, words, prompt_channels(config)), torch.ones(1, words)
    rewritten: dict[str, float] = {}
    for name, macs in _count(rewritten_model, image, *prompt).items():
        place = place_of(name.removeprefix("ImageModel."))
        key = place.group or place.part
        rewritten[key] = rewritten.get(key, 0) + macs
    return published, rewritten


def _count(call: Any, *inputs: Any) -> dict[str, float]:
    """MACs by module, without those of its submodules."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        call(*inputs)
    counts = {name: sum(one.values()) / 2 for name, one in counter.get_flop_counts().items() if name != "Global"}
    own = dict(counts)
    for name, macs in counts.items():
        parents = [other for other in counts if name.startswith(f"{other}.")]
        if parents:
            own[max(parents, key=len)] -= macs
    return {name: macs for name, macs in own.items() if macs}


def filled(text: str, name: str, content: str) -> str:
    """A page with `content` between its markers of this name."""
    begin, end = f"<!-- {name}: generated -->", f"<!-- {name}: end -->"
    before, rest = text.split(begin)
    return f"{before}{begin}\n{content}\n{end}{rest.split(end)[1]}"


def pages() -> dict[Path, str]:
    """What each page should hold."""
    rewrites = DOCS / "rewrites.md"
    found = {
        DOCS / "api.md": api_reference.reference(),
        rewrites: filled(rewrites.read_text(encoding="utf-8"), "costs", costs_table()),
    }
    if BENCHMARKS.is_file():
        table = benchmarks_table(json.loads(BENCHMARKS.read_bytes()))
        found[README] = filled(README.read_text(encoding="utf-8"), "benchmarks", table)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a page is old")
    check = parser.parse_args().check
    old = {path: text for path, text in pages().items() if not path.is_file() or path.read_text("utf-8") != text}
    if check and old:
        sys.exit(f"old: {', '.join(path.name for path in old)}; run python docs/generate.py")
    for path, text in old.items():
        write_whole(path, text.encode())
        print(f"written: {path.name}")


if __name__ == "__main__":
    main()
