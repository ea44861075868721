"""Wording of the generated sentences, and the WordPiece vocabulary that covers it."""

from __future__ import annotations

import random
import re
import string
from collections.abc import Sequence
from typing import Final

from .objects import COLOURS
from .queries import Attribute, Descriptor, Extreme, Ordinal, Query, Region

# The first word of each is the usual one.
SHAPE_WORDS: Final[dict[str, tuple[str, ...]]] = {
    "circle": ("circle", "disc"),
    "square": ("square", "box"),
    "triangle": ("triangle",),
    "bar": ("bar", "rectangle"),
    "star": ("star",),
    "ring": ("ring", "hoop"),
    "cross": ("cross", "plus"),
    "oval": ("oval", "ellipse"),
}
SIZE_WORDS: Final = {"small": ("small", "little"), "large": ("large", "big")}
TEXTURE_WORDS: Final = {"plain": ("plain", "solid"), "striped": ("striped",), "dotted": ("dotted", "spotted")}
TEXTURE_TAILS: Final = {"striped": ("with stripes",), "dotted": ("with dots", "with spots")}
NOUNS: Final = ("object", "thing", "shape")
ORDINALS: Final = ("first", "second", "third", "fourth")

EXTREME_FORMS: Final[dict[str, tuple[str, ...]]] = {
    "left": ("the leftmost {}", "leftmost {}", "the {} farthest to the left", "the {} furthest left"),
    "right": ("the rightmost {}", "rightmost {}", "the {} farthest to the right", "the {} furthest right"),
    "top": ("the topmost {}", "topmost {}", "the highest {}", "the uppermost {}"),
    "bottom": ("the bottommost {}", "bottommost {}", "the lowest {}", "the lowermost {}"),
}
# Only if exactly two objects match.
PAIR_FORMS: Final[dict[str, tuple[str, ...]]] = {
    "left": ("the left {}", "left {}"),
    "right": ("the right {}", "right {}"),
    "top": ("the top {}", "the upper {}"),
    "bottom": ("the bottom {}", "the lower {}"),
}
REGION_FORMS: Final[dict[str, tuple[str, ...]]] = {
    "left": ("the {} on the left", "{} on the left side", "the {} on the left side"),
    "right": ("the {} on the right", "{} on the right side", "the {} on the right side"),
    "top": ("the {} at the top", "{} at the top", "the {} near the top"),
    "bottom": ("the {} at the bottom", "{} at the bottom", "the {} near the bottom"),
    "top left": ("the {} in the top left corner", "{} in the upper left", "the {} at the top left"),
    "top right": ("the {} in the top right corner", "{} in the upper right", "the {} at the top right"),
    "bottom left": ("the {} in the bottom left corner", "{} in the lower left", "the {} at the bottom left"),
    "bottom right": ("the {} in the bottom right corner", "{} in the lower right", "the {} at the bottom right"),
    "middle": ("the {} in the middle", "the {} in the center", "{} in the middle"),
}
RELATION_FORMS: Final[dict[str, tuple[str, ...]]] = {
    "left": ("the {} left of the {}", "the {} to the left of the {}", "{} left of the {}"),
    "right": ("the {} right of the {}", "the {} to the right of the {}", "{} right of the {}"),
    "above": ("the {} above the {}", "{} above the {}", "the {} that is above the {}"),
    "below": ("the {} below the {}", "{} below the {}", "the {} that is below the {}"),
    "nearest": ("the {} nearest to the {}", "the {} closest to the {}", "{} closest to the {}"),
    "front": ("the {} in front of the {}", "{} in front of the {}", "the {} partly covering the {}"),
    "behind": ("the {} behind the {}", "{} behind the {}", "the {} partly hidden by the {}"),
}
ORDINAL_FORMS: Final = ("the {1} {0} from the {2}", "{1} {0} from the {2}", "the {0} that is {1} from the {2}")
ATTRIBUTE_FORMS: Final = ("the {}", "the {}", "{}")

_SYNONYM_CHANCE: Final = 0.2
_TAIL_CHANCE: Final = 0.2


def _word(words: Sequence[str], dice: random.Random) -> str:
    return words[0] if len(words) == 1 or dice.random() >= _SYNONYM_CHANCE else dice.choice(words[1:])


def phrase(descriptor: Descriptor, dice: random.Random, *, tail: bool = False) -> str:
    """A noun phrase without its article, such as "small striped red circle"; `tail` allows "… with stripes"."""
    size = [_word(SIZE_WORDS[descriptor.size], dice)] if descriptor.size else []
    colour = [descriptor.colour] if descriptor.colour else []
    texture, end = [], []
    if descriptor.texture:
        if tail and descriptor.texture in TEXTURE_TAILS and dice.random() < _TAIL_CHANCE:
            end = [_word(TEXTURE_TAILS[descriptor.texture], dice)]
        else:
            texture = [_word(TEXTURE_WORDS[descriptor.texture], dice)]
    noun = _word(SHAPE_WORDS[descriptor.shape], dice) if descriptor.shape else ""
    if not noun:
        noun = "one" if size + colour + texture and dice.random() < 0.3 else dice.choice(NOUNS)
    middle = colour + texture if dice.random() < 0.3 else texture + colour
    return " ".join(size + middle + [noun] + end)


def wording(query: Query, dice: random.Random, *, matches: int) -> str:
    """One of the sentences that say a query; `matches` is how many objects its target descriptor fits."""
    if isinstance(query, Attribute):
        return dice.choice(ATTRIBUTE_FORMS).format(phrase(query.target, dice, tail=True))
    target = phrase(query.target, dice)
    if isinstance(query, Extreme):
        forms = EXTREME_FORMS[query.direction]
        if matches == 2 and dice.random() < 0.4:
            forms = PAIR_FORMS[query.direction]
        return dice.choice(forms).format(target)
    if isinstance(query, Region):
        return dice.choice(REGION_FORMS[query.region]).format(target)
    if isinstance(query, Ordinal):
        return dice.choice(ORDINAL_FORMS).format(target, ORDINALS[query.rank - 1], query.direction)
    return dice.choice(RELATION_FORMS[query.relation]).format(target, phrase(query.anchor, dice))


SPECIAL_TOKENS: Final = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_TABLES: Final = (
    *(SHAPE_WORDS, SIZE_WORDS, TEXTURE_WORDS, TEXTURE_TAILS, NOUNS, ORDINALS, tuple(COLOURS), "one"),
    *(EXTREME_FORMS, PAIR_FORMS, REGION_FORMS, RELATION_FORMS, ORDINAL_FORMS),
)
WORDS: Final = tuple(sorted(set(re.findall("[a-z]+", str(_TABLES)))))
_CHARACTERS: Final = string.ascii_lowercase + string.digits
# WordPiece, lower case: special tokens, the sentences' words, then characters (and punctuation) to spell others with.
VOCABULARY: Final[tuple[str, ...]] = (
    *SPECIAL_TOKENS,
    *WORDS,
    *(character for character in _CHARACTERS if character not in WORDS),
    *("##" + character for character in _CHARACTERS),
    *"!'(),-.?",
)
