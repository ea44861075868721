"""The main job from end to end on the built-in model: `make demo`, or `python -m lavt_edge.commands.demo FOLDER`.

Exports the demo model, segments generated scenes with the torch-free runtime, writes a sheet of overlays, and prints
the accuracy on all that it segmented.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from .._base.exits import run_main
from .._base.files import whole_file
from .common import out, progress_bar

ROWS, COLUMNS, SCENES = 4, 2, 60


def segment_scenes(bundle: Path) -> tuple[list[Image.Image], dict[str, float]]:
    """Panels (image, target, prediction) of the first scenes, and the figures over all."""
    from ..data.metrics import ReferringMetrics
    from ..data.shapes import scene_at
    from ..runtime import Segmenter
    from ..runtime.overlay import overlay

    panels: list[Image.Image] = []
    metrics = ReferringMetrics()
    with Segmenter.load(bundle) as segmenter, progress_bar("segmenting generated scenes") as (_, progress):
        for index in range(SCENES):
            progress(index, SCENES)
            scene = scene_at(0, "val", index)
            image, masks, sentences = scene.render(), scene.masks(), scene.sentences()
            results = segmenter.segment(image, [sentence.text for sentence in sentences])
            for sentence, result in zip(sentences, results, strict=True):
                metrics.update(result.mask, masks[sentence.object_index])
            if len(panels) < ROWS * COLUMNS:
                # Another kind of sentence in each panel.
                pick = (5 * index) % len(sentences)
                target, text = masks[sentences[pick].object_index], sentences[pick].text
                views = [overlay(image, mask, text) for mask in (target, results[pick].mask)]
                panels.append(grid([Image.fromarray(image), *views], 3, gap=4))
    return panels, metrics.compute()


def grid(images: Sequence[Image.Image], columns: int, gap: int) -> Image.Image:
    """The images on white, `columns` beside each other."""
    widths = [max(image.width for image in images[column::columns]) + gap for column in range(columns)]
    height = max(image.height for image in images) + gap
    sheet = Image.new("RGB", (sum(widths), -(-len(images) // columns) * height), "white")
    for i, image in enumerate(images):
        sheet.paste(image.convert("RGB"), (sum(widths[: i % columns]), i // columns * height))
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the bundle and the sheet go")
    folder = parser.parse_args().folder
    from ..export.source import export_demo

    bundle = folder / "bundle"
    with progress_bar("exporting") as (report, _):
        manifest = export_demo(bundle, report)
    if manifest is None:
        out.print(f"{bundle} exists already")
    else:
        parity = manifest.parity["segmenter"]
        out.print(
            f"{bundle}: exported and checked against PyTorch, relative error {parity['relative_error']:.1e}, "
            f"pixel agreement {100 * parity['pixel_agreement']:.3f} %"
        )
    panels, figures = segment_scenes(bundle)
    with whole_file(folder / "sheet.png") as partial:
        grid(panels, COLUMNS, gap=12).save(partial, format="PNG", optimize=True)
    out.print(f"{folder / 'sheet.png'}: image, target and prediction of {len(panels)} generated scenes")
    out.print(
        f"{figures['sentences']} sentences on {SCENES} scenes: mean IoU {figures['mean_iou']:.2f}, "
        f"overall IoU {figures['overall_iou']:.2f}, precision@0.5 {figures['precision@0.5']:.2f}, "
        f"precision@0.9 {figures['precision@0.9']:.2f}"
    )
    command = os.path.relpath(Path(sys.executable).with_name("lavt-serve"))
    out.print(f"try sentences of your own, in a browser: {command} {bundle}")


if __name__ == "__main__":
    run_main(main)
