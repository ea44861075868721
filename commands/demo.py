"""The main job from end to end on the built-in model: `make demo`, or `python -m lavt_edge.commands.demo FOLDER`.

Exports the demo model, segments generated scenes with the torch-free runtime, writes a sheet of overlays and prints
the accuracy row of all that it segmented.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .._base.exits import run_main
from .._base.files import whole_file
from .common import out, progress_bar

ROWS, COLUMNS, SCENES = 4, 2, 60


def segment_scenes(bundle: Path) -> tuple[list[NDArray[np.uint8]], dict[str, float]]:
    """Panels (image, target, prediction) of the first scenes, and the figures over all."""
    from ..data.metrics import ReferringMetrics
    from ..data.shapes import scene_at
    from ..runtime import Segmenter
    from ..runtime.overlay import overlay

    panels: list[NDArray[np.uint8]] = []
    metrics = ReferringMetrics()
    with Segmenter.load(bundle) as segmenter, progress_bar("segmenting generated scenes") as (_, progress):
        for index in range(SCENES):
            progress(index, SCENES)
            scene = scene_at(0, "val", index)
            image, masks, sentences = scene.render(), scene.masks(), scene.sentences()
            results = segmenter.segment(image, [one.text for one in sentences])
            for sentence, result in zip(sentences, results, strict=True):
                metrics.update(result.mask, masks[sentence.object_index])
            if len(panels) < ROWS * COLUMNS:
                # Another kind of sentence in each panel.
                pick = (5 * index) % len(sentences)
                target = masks[sentences[pick].object_index]
                views = [Image.fromarray(image)]
                views += [overlay(image, mask, sentences[pick].text) for mask in (target, results[pick].mask)]
                panels.append(_beside(views))
    return panels, metrics.compute()


def _beside(views: list[Image.Image]) -> NDArray[np.uint8]:
    height, gap = max(view.height for view in views), 4
    sheet = Image.new("RGB", (sum(view.width + gap for view in views), height + gap), "white")
    x = 0
    for view in views:
        sheet.paste(view.convert("RGB"), (x, 0))
        x += view.width + gap
    return np.asarray(sheet)


def write_sheet(panels: list[NDArray[np.uint8]], path: Path) -> None:
    """One PNG of all panels, COLUMNS beside each other."""
    height, width = (max(panel.shape[axis] for panel in panels) for axis in (0, 1))
    sheet = Image.new("RGB", (COLUMNS * (width + 12), -(-len(panels) // COLUMNS) * (height + 12)), "white")
    for i, panel in enumerate(panels):
        sheet.paste(Image.fromarray(panel), (i % COLUMNS * (width + 12), i // COLUMNS * (height + 12)))
    with whole_file(path) as partial:
        sheet.save(partial, format="PNG", optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the bundle and the sheet go")
    run_demo(parser.parse_args().folder)


def run_demo(folder: Path) -> None:
    """Everything that `make demo` does, into `folder`."""
    from ..export.source import export_demo

    bundle = folder / "bundle"
    with progress_bar("exporting") as (report, _):
        manifest = export_demo(bundle, report)
    if manifest is None:
        out.print(f"{bundle} is there already")
    else:
        parity = manifest.parity["segmenter"]
        out.print(
            f"{bundle}: exported and checked against PyTorch, relative error {parity['relative_error']:.1e}, "
            f"pixel agreement {100 * parity['pixel_agreement']:.3f} %"
        )
    panels, figures = segment_scenes(bundle)
    write_sheet(panels, folder / "sheet.png")
    out.print(f"{folder / 'sheet.png'}: image, target and prediction of {len(panels)} generated scenes")
    out.print(
        f"{figures['sentences']} sentences on {SCENES} scenes: mean IoU {figures['mean_iou']:.2f}, "
        f"overall IoU {figures['overall_iou']:.2f}, precision@0.5 {figures['precision@0.5']:.2f}, "
        f"precision@0.9 {figures['precision@0.9']:.2f}"
    )


if __name__ == "__main__":
    run_main(main)
