"""The command lavt-run: images and sentences to pictures, masks and COCO's JSON."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ImageError, LavtError, one_line
from .common import Device, out, warn, warnings_as_lines, without_library_output, writing

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

    from ..runtime import Result

run_app = typer.Typer(add_completion=False)


@run_app.command()
def run(
    bundle: Annotated[Path, typer.Argument(help="A bundle, or one of its image graphs (.engine, .onnx).")],
    image: Annotated[Path, typer.Argument(help="The image, in any format that Pillow reads, or a folder of images.")],
    text: Annotated[list[str], typer.Argument(help="What to segment, such as 'the man in red'; or several sentences.")],
    more: Annotated[list[Path] | None, typer.Option("--image", help="Another image; may be repeated.")] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="The PNG to write; for several images, the folder.", show_default="lavt.png"
        ),
    ] = None,
    mask: Annotated[
        bool,
        typer.Option("--mask", help="Write only the masks, one for each sentence: 255 for the object, 0 elsewhere."),
    ] = False,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", help="Write COCO's JSON: RLE, area, box, score. No PNG without --output or --mask."),
    ] = None,
    device: Device = "auto",
) -> None:
    """Segment what each TEXT refers to in IMAGE, and write an overlay (PNG), only the masks, or COCO's JSON.

    With several sentences the overlay shows each in its own colour, and the masks for out.png are out.1.png, out.2.png
    and so on. With several images the PNGs go into a folder, under the images' names; images that cannot be read are
    reported on stderr, and the rest are still done.
    """
    from .._base.files import write_whole
    from ..runtime import Segmenter, coco_dataset, coco_entry, image_files

    several = bool(more) or image.is_dir()
    images = [path for given in (image, *(more or ())) for path in (image_files(given) if given.is_dir() else [given])]
    wanted = output or (Path("lavt" if several else "lavt.png") if mask or json_file is None else None)
    files = _files(images, wanted, several, len(text) if mask else 0)
    _check_outputs(images, [*(name for names in files for name in names), *([json_file] if json_file else [])])
    entries: list[dict[str, Any]] = []
    with warnings_as_lines():
        segmenter = Segmenter.load(bundle, device=device)
        prompts = [segmenter.encode(sentence) for sentence in text]
    with segmenter, warnings_as_lines():
        for path, names in zip(images, files, strict=True):
            pixels = _read(path, alone=not several)
            if pixels is None:
                continue
            results = segmenter.segment(pixels, prompts)
            if names:
                for name, picture in zip(names, _pictures(pixels, results, mask), strict=True):
                    _save(name, picture)
            for index, result in enumerate(results):
                _say((names or [path])[index if mask and names else 0], result, segmenter.device)
            entries.append(coco_entry(path.name, results) if json_file else {})
    if json_file:
        with writing(json_file):
            write_whole(json_file, json.dumps(coco_dataset(entries, text)).encode())
        out.print(one_line(f"{json_file}: images: {len(entries)}, sentences: {len(text)}"))
    if len(entries) < len(images):
        raise LavtError(f"{len(images) - len(entries)} of {len(images)} images could not be read; the others are done")


def _files(images: list[Path], output: Path | None, several: bool, masks: int) -> list[list[Path]]:
    """The PNGs of each image: one, or of more than one mask as many. Raises LavtError for names that cannot be."""
    if output is None:
        return [[] for _ in images]
    if several == (output.suffix.lower() == ".png"):
        wrong = "PNGs of several images go into a folder; give a name that does not end in .png"
        raise LavtError(f"{output}: {wrong if several else 'the output is a PNG; give a name that ends in .png'}")
    pictures = [output / f"{path.name}.png" for path in images] if several else [output]
    if masks < 2:
        return [[picture] for picture in pictures]
    return [[picture.with_suffix(f".{n}.png") for n in range(1, masks + 1)] for picture in pictures]


def _check_outputs(images: list[Path], outputs: list[Path]) -> None:
    taken = {os.path.realpath(path): "the image itself" for path in images}
    for output in outputs:
        real = os.path.realpath(output)
        if real in taken:
            raise LavtError(f"{output} is {taken[real]}; name another output")
        taken[real] = "written twice, of inputs with equal names or as two kinds"


def _read(path: Path, *, alone: bool) -> NDArray[np.uint8] | None:
    """An image's pixels; None, and a line on stderr, for one of several that cannot be read."""
    from ..runtime.images import to_rgb_array

    try:
        with without_library_output():
            return to_rgb_array(path)
    except ImageError as error:
        if alone:
            raise
        warn(str(error))
        return None


def _pictures(pixels: NDArray[np.uint8], results: list[Result], masks: bool) -> list[Image.Image]:
    from PIL import Image

    from ..runtime.overlay import overlay_of

    if masks:
        return [Image.fromarray(result.mask.astype("uint8") * 255) for result in results]
    return [overlay_of(pixels, [(result.mask, result.sentence) for result in results])]


def _save(path: Path, picture: Image.Image) -> None:
    from .._base.files import whole_file

    with writing(path), whole_file(path) as partial:
        picture.save(partial, format="PNG")


def _say(name: Path, result: Result, device: str) -> None:
    found = f"{100 * result.mask.mean():.1f} % of the pixels, score {result.score:.2f}"
    out.print(one_line(f"{name}: {result.sentence!r}: {found if result.score else 'nothing was found'}, on {device}"))
