"""The curve of a training run, drawn from its `log.jsonl`."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 900, 420, 60, 60, 40, 50
_LOSS, _IOU, _INK, _GRID = (46, 112, 180), (214, 118, 44), (40, 40, 40), (225, 225, 225)


def draw_loss_curve(log: Path, path: Path) -> None:
    """Writes a PNG: the loss of each line (left axis) and, if it was measured, mean IoU in percent (right axis).

    The loss jumps where a phase of training ends and the next asks for more (see step.Phase).
    """
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    image = Image.new("RGB", (_WIDTH, _HEIGHT), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(13)
    last = lines[-1]["step"]
    top = max(line["loss"] for line in lines)

    def place(step: float, share: float) -> tuple[float, float]:
        x = _LEFT + (_WIDTH - _LEFT - _RIGHT) * step / last
        return x, _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * share

    for i in range(5):
        draw.line([place(0, i / 4), place(last, i / 4)], _GRID)
        draw.text((8, place(0, i / 4)[1] - 8), f"{top * i / 4:.2f}", _LOSS, font)
        draw.text((_WIDTH - _RIGHT + 10, place(0, i / 4)[1] - 8), f"{25 * i} %", _IOU, font)
        draw.text((place(last * i / 4, 0)[0] - 12, _HEIGHT - _BOTTOM + 8), str(round(last * i / 4)), _INK, font)
    draw.line([place(line["step"], line["loss"] / top) for line in lines], _LOSS, 2)
    measured = [place(line["step"], line["mean_iou"]["all"] / 100) for line in lines if "mean_iou" in line]
    if len(measured) > 1:
        draw.line(measured, _IOU, 2)
    for x, y in measured:
        draw.ellipse([x - 3, y - 3, x + 3, y + 3], _IOU)
    draw.text((_LEFT, 10), "loss of the phase's last answer", _LOSS, font)
    draw.text((_LEFT + 260, 10), "mean IoU on held-out scenes", _IOU, font)
    draw.text((_WIDTH // 2 - 20, _HEIGHT - 22), "step", _INK, font)
    image.save(path, format="PNG")
