"""Configurations of LAVT as data (Yang et al., CVPR 2022, arXiv 2112.02244)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from .._base.records import from_plain, to_plain
from ..errors import InputError

DEMO_WEIGHTS: Final = Path(__file__).with_name("demo.safetensors")
Variant = Literal["lavt", "lavt_one"]
Heads = tuple[int, int, int, int]

# Of RGB scaled to 0..1; what every LAVT image is normalised with.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class SwinConfig:
    """Width, blocks per stage and attention heads per stage of a Swin backbone."""

    embed_dim: int
    depths: tuple[int, int, int, int]
    num_heads: tuple[int, int, int, int]


SWIN: dict[str, SwinConfig] = {
    "tiny": SwinConfig(96, (2, 2, 6, 2), (3, 6, 12, 24)),
    "small": SwinConfig(96, (2, 2, 18, 2), (3, 6, 12, 24)),
    "base": SwinConfig(128, (2, 2, 18, 2), (4, 8, 16, 32)),
    "large": SwinConfig(192, (2, 2, 18, 2), (6, 12, 24, 48)),
    # The built-in demo model's backbone; not of the paper.
    "demo": SwinConfig(24, (2, 4, 4, 2), (1, 3, 6, 12)),
}


MAX_WINDOW = 32  # a block's index grows with its fourth power; published models have 7 or 12
_MOST_TEXT = {"vocab_size": 1_000_000, "num_layers": 48}


@dataclass(frozen=True)
class TextConfig:
    """Sizes of the BERT encoder; the defaults are bert-base-uncased."""

    vocab_size: int = 30522
    hidden_size: int = 768
    num_layers: int = 12
    num_heads: int = 12
    intermediate_size: int = 3072
    max_positions: int = 512

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            most = _MOST_TEXT.get(name, 65_536)
            if not isinstance(value, int) or not 1 <= value <= most:
                raise InputError(f"text.{name} is {value!r}; expected 1 to {most}")


@dataclass(frozen=True)
class LAVTConfig:
    """What determines a LAVT's parameters and function.

    `variant` is "lavt" (BERT saved beside the model) or "lavt_one" (BERT saved inside it); both compute the same.
    `fusion_heads` are the PWAM attention heads of the four stages. `max_words` counts BERT's word pieces.
    """

    swin: str = "base"
    window: int = 12
    fusion_heads: Heads = (1, 1, 1, 1)
    variant: Variant = "lavt"
    text: TextConfig = field(default_factory=TextConfig)
    max_words: int = 20

    def __post_init__(self) -> None:
        if self.swin not in SWIN:
            raise InputError(f"swin is {self.swin!r}; expected one of {', '.join(SWIN)}")
        if not 2 <= self.window <= MAX_WINDOW:
            raise InputError(f"window is {self.window}; expected 2 to {MAX_WINDOW}")
        if not 3 <= self.max_words <= 512:
            raise InputError(f"max_words is {self.max_words}; expected 3 to 512")
        if len(self.fusion_heads) != 4 or any(
            h < 1 or c % h for h, c in zip(self.fusion_heads, self.channels, strict=False)
        ):
            raise InputError(
                f"fusion_heads is {self.fusion_heads}; expected four numbers that divide the channels {self.channels}"
            )
        if self.variant not in ("lavt", "lavt_one"):
            raise InputError(f"variant is {self.variant!r}; expected 'lavt' or 'lavt_one'")

    @property
    def backbone(self) -> SwinConfig:
        """The sizes of the Swin backbone."""
        return SWIN[self.swin]

    @property
    def channels(self) -> tuple[int, int, int, int]:
        """Channels of the four stages."""
        e = self.backbone.embed_dim
        return (e, 2 * e, 4 * e, 8 * e)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, for manifests and file metadata."""
        plain: dict[str, Any] = to_plain(self)
        return plain

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> LAVTConfig:
        """Inverse of `to_dict`; other keys are ignored. Raises ValueError for values of another type or range."""
        return from_plain(cls, data)
