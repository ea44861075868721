"""The training run of the demo model: schedule, averaged weights, checkpoint, log."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from torch import nn
from torch.utils.data import DataLoader

from ..._base.files import whole_file, write_whole
from ...data.shapes import KINDS
from ...errors import CheckpointError
from ..demo import DEMO_CONFIG, demo_bytes
from ..lavt import LAVT, normalise
from .batches import Batch, Example, demo_tokenizer, examples, make_batch
from .curve import draw_loss_curve
from .step import Crew, Phase, Trainee

_LOG_EVERY, _EVALUATE_EVERY, _SAVE_EVERY = 25, 100, 50
_GROUP = 8  # images that are segmented at once
_EVALUATED, _EVALUATION_SEED = 120, 1  # seed 0 is the data set that figures are published for


@dataclass(frozen=True)
class Options:
    """What a run's result depends on."""

    steps: int = 3000
    rate: float = 1.5e-3
    threads: int = 2
    seed: int = 1
    half: bool = True
    warmup: int = 100
    coarse_from: int = 700
    fine_from: float = 0.75  # part of the run, as is decay_from
    decay_from: float = 0.7
    phases: tuple[Phase, Phase, Phase] = (Phase(12, 2, 4), Phase(8, 3, 3), Phase(8, 3, 2))

    def phase(self, step: int) -> Phase:
        """What a step trains."""
        return self.phases[(step >= self.coarse_from) + (step >= self.fine_from * self.steps)]

    def batch(self, step: int) -> Batch:
        """What a step trains on."""
        phase = self.phase(step)
        return make_batch(self.seed, step, phase.scenes, phase.sentences)

    def learning_rate(self, step: int) -> float:
        """Linear warm-up, constant, then a fall with the square root's shape to a hundredth."""
        begin = self.decay_from * self.steps
        fall = max(0.0, (step - begin) / (self.steps - begin))
        return self.rate * min(1.0, (step + 1) / self.warmup) * max(0.01, 1 - fall**0.5)


class Run:
    """All state of a training run."""

    def __init__(self, options: Options) -> None:
        torch.manual_seed(options.seed)
        self.options, self.step, self.seconds = options, 0, 0.0
        self.trainee = Trainee(LAVT(DEMO_CONFIG)).train()
        for module in self.trainee.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0  # the data never ends, so there is nothing to overfit
        self.trainee.model.classifier.to(memory_format=torch.channels_last)
        self.average = LAVT(DEMO_CONFIG).eval().requires_grad_(False)
        self.average.load_state_dict(self.trainee.model.state_dict())
        named = list(self.trainee.named_parameters())
        tables = [p for name, p in named if name.endswith("relative_position_bias_table")]
        text = [p for name, p in named if name.startswith("model.text_encoder.")]
        rest = [(name, p) for name, p in named if not name.startswith("model.text_encoder.")]
        plain = [p for name, p in rest if p.ndim < 2]
        decayed = [p for name, p in rest if p.ndim >= 2 and not name.endswith("relative_position_bias_table")]
        # Position biases are logits and must go far: at the others' rate they would take the whole run.
        groups: list[dict[str, Any]] = [
            {"params": decayed, "weight_decay": 0.02, "factor": 1.0},
            {"params": plain, "weight_decay": 0, "factor": 1.0},
            {"params": text, "weight_decay": 0.01, "factor": 0.5},
            {"params": tables, "weight_decay": 0, "factor": 10.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=options.rate, betas=(0.9, 0.98))
        self.crew = Crew(self.trainee, options.threads)

    def advance(self, batch: Batch) -> float:
        """One step; returns the loss of the last answer (see Trainee)."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["factor"] * self.options.learning_rate(self.step)
        loss = self.crew.gradients(batch, level=self.options.phase(self.step).level, half=self.options.half)
        nn.utils.clip_grad_norm_(self.crew.parameters, 1.0)
        self.optimizer.step()
        self.step += 1
        keep = min(0.998, self.step / (self.step + 10))
        state = self.trainee.model.state_dict()
        for name, mean in self.average.state_dict().items():
            if mean.is_floating_point():
                mean.lerp_(state[name], 1 - keep)
            else:
                mean.copy_(state[name])
        return loss

    def state(self) -> dict[str, Any]:
        """Everything that the steps to come depend on."""
        return {
            "options": asdict(self.options),
            "step": self.step,
            "seconds": self.seconds,
            "trainee": self.trainee.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }


def save(run: Run, path: Path) -> None:
    """Write a checkpoint, whole or not at all."""
    with whole_file(path) as partial:
        torch.save(run.state(), partial)


def load(run: Run, path: Path) -> None:
    """Read a checkpoint. Raises CheckpointError if there is none, or it is another run's."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; there is nothing to resume")
    try:
        state = torch.load(path, weights_only=True)
        for name, value in asdict(run.options).items():
            # The length may change: what is done stays done, the rate falls sooner or later.
            if name != "steps" and state["options"][name] != value:
                raise CheckpointError(f"{path}: trained with {name} {state['options'][name]}, not {value}")
        run.step, run.seconds = state["step"], state["seconds"]
        for part in ("trainee", "average", "optimizer"):
            getattr(run, part).load_state_dict(state[part])
    except CheckpointError:
        raise
    except Exception as error:  # a damaged archive surfaces as almost any type
        raise CheckpointError(
            f"{path}: not a checkpoint of a training run, or damaged; begin in another folder"
        ) from error


@torch.no_grad()
def predict(model: LAVT, chosen: list[Example], texts: list[str] | None = None) -> list[float]:
    """IoU of each example's mask, segmented for its own sentence or for those given."""
    ious: list[float] = []
    texts = [example.text for example in chosen] if texts is None else texts
    for start in range(0, len(chosen), _GROUP):
        part = chosen[start : start + _GROUP]
        tokens = [demo_tokenizer().encode(text)[:2] for text in texts[start : start + _GROUP]]
        ids, attention = (torch.from_numpy(np.stack(column)) for column in zip(*tokens, strict=True))
        images = torch.from_numpy(np.stack([example.image for example in part]))
        masks = model(normalise(images), ids, attention).argmax(1).bool().numpy()
        for example, mask in zip(part, masks, strict=True):
            union = int((mask | example.mask).sum())
            ious.append(float((mask & example.mask).sum()) / union if union else 0.0)
    return ious


def evaluate(model: LAVT, chosen: list[Example]) -> dict[str, float]:
    """Mean IoU in percent, of all examples and of each kind of sentence."""
    ious = np.array(predict(model, chosen))
    kinds = np.array([example.kind for example in chosen])
    figures = {"all": float(ious.mean()) * 100}
    return {**figures, **{kind: float(ious[kinds == kind].mean()) * 100 for kind in KINDS if (kinds == kind).any()}}


def _open_log(path: Path, step: int) -> list[str]:
    """The lines up to a step; a run that was killed may have written more."""
    lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
    try:
        return [line for line in lines if json.loads(line)["step"] <= step]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise CheckpointError(f"{path}: a line is damaged; remove that line, or the file") from error


def train(output: Path, options: Options, *, minutes: float, resume: bool, console: Console) -> None:
    """Train until all steps are done or the time is up.

    Raises CheckpointError if `output` holds a run and `resume` is not given, or the other way round.
    """
    torch.set_num_threads(1)
    output.mkdir(parents=True, exist_ok=True)
    checkpoint, log = output / "checkpoint.pt", output / "log.jsonl"
    run = Run(options)
    if resume:
        load(run, checkpoint)
    elif checkpoint.exists():
        raise CheckpointError(f"{checkpoint} exists; add --resume to go on, or name another folder")
    lines = _open_log(log, run.step) if resume else []
    write_whole(log, "".join(line + "\n" for line in lines).encode())
    held = examples(_EVALUATION_SEED, "val", _EVALUATED)
    begun, before = time.monotonic(), run.seconds
    losses: list[float] = []
    steps = range(run.step, options.steps)
    data: DataLoader[Batch] = DataLoader(steps, batch_size=None, num_workers=1, collate_fn=options.batch)  # type: ignore[arg-type]
    with Progress(console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("step", total=options.steps, completed=run.step)
        for batch in data:
            losses.append(run.advance(batch))
            run.seconds = before + time.monotonic() - begun
            last = run.step == options.steps
            out_of_time = run.seconds - before > 60 * minutes
            if run.step % _LOG_EVERY == 0 or last:
                line: dict[str, Any] = {
                    "step": run.step,
                    "seconds": round(run.seconds),
                    "loss": round(np.mean(losses), 4),
                }
                losses.clear()
                fine = options.phase(run.step - 1).level == 2  # before, there is no mask to evaluate
                if (run.step % _EVALUATE_EVERY == 0 and fine) or last:
                    line["mean_iou"] = {name: round(value, 1) for name, value in evaluate(run.average, held).items()}
                with log.open("a") as file:
                    file.write(json.dumps(line) + "\n")
                console.print(json.dumps(line), soft_wrap=True, highlight=False)
            if run.step % _SAVE_EVERY == 0 or last or out_of_time:
                save(run, checkpoint)
            progress.update(task, completed=run.step)
            if out_of_time and not last:
                console.print(f"time is up at step {run.step} of {options.steps}: --resume goes on from {checkpoint}")
                return
    draw_loss_curve(log, output / "loss.png")
    write_whole(output / "demo.safetensors", demo_bytes(run.average))
    console.print(f"wrote {output / 'demo.safetensors'}")
