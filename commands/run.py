"""The command lavt-run: one image, one sentence, a PNG."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from ..errors import LavtError
from .common import Device, out, warnings_as_lines, without_library_output

run_app = typer.Typer(add_completion=False)


@run_app.command()
def run(
    bundle: Annotated[Path, typer.Argument(help="A bundle, or a segmenter .onnx inside one.")],
    image: Annotated[Path, typer.Argument(help="The image, in any format that Pillow reads.")],
    text: Annotated[str, typer.Argument(help="What to segment, such as 'the man in red'.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The PNG to write.")] = Path("lavt.png"),
    mask: Annotated[
        bool, typer.Option("--mask", help="Write the mask alone: 255 for the object, 0 elsewhere.")
    ] = False,
    device: Device = "auto",
) -> None:
    """Segment what TEXT refers to in IMAGE and write it as a PNG: an overlay, or the mask alone."""
    from PIL import Image

    from .._base.files import whole_file
    from ..runtime import Segmenter
    from ..runtime.images import to_rgb_array
    from ..runtime.overlay import overlay

    if output.suffix.lower() != ".png":
        raise LavtError(f"{output}: the output is a PNG; give a name that ends in .png")
    with warnings_as_lines():
        with without_library_output():
            pixels = to_rgb_array(image)
        if os.path.realpath(output) == os.path.realpath(image):
            raise LavtError(f"{output} is the image itself; name another output")
        with Segmenter.load(bundle, device=device) as segmenter:
            result = segmenter.segment(pixels, text)
    picture = Image.fromarray(result.mask.astype("uint8") * 255) if mask else overlay(pixels, result.mask, text)
    try:
        with whole_file(output) as partial:
            picture.save(partial, format="PNG")
    except OSError as error:
        raise LavtError(f"{output}: cannot be written ({error.strerror or error})") from error
    share = 100 * result.mask.mean()
    out.print(f"{output}: {share:.1f} % of the pixels, on {segmenter.device}")
