"""Prompts: encoded sentences, and the bounded cache that encodes each sentence once."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ..errors import InputError

_MAX_KEPT_CHARACTERS = 1000


class TruncationWarning(UserWarning):
    """A sentence has more tokens than the model reads; the rest of it was ignored."""


class UnknownWordsWarning(UserWarning):
    """A sentence has words that the model's vocabulary does not have: the mask may miss the object."""


@dataclass(frozen=True, eq=False)
class Prompt:
    """A sentence as the image graph takes it; valid for every image, with the bundle that made it.

    Attributes:
        sentence: the text.
        prompt: float32 (max_words, prompt_channels), read-only.
        word_mask: float32 (max_words,), 1 for a token and 0 for padding, read-only.
        truncated: whether the sentence was longer than max_words tokens.
        fingerprint: of the bundle (`Bundle.fingerprint`).
        unknown: its words that the model's vocabulary does not have.
    """

    sentence: str
    prompt: npt.NDArray[np.float32]
    word_mask: npt.NDArray[np.float32]
    truncated: bool
    fingerprint: str
    unknown: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.prompt.flags.writeable = False
        self.word_mask.flags.writeable = False


class PromptCache:
    """The `capacity` prompts used last (0: none), by their token ids.

    Thread-safe; if several threads ask for the same prompt, one computes it.
    """

    def __init__(self, capacity: int) -> None:
        if not isinstance(capacity, int) or capacity < 0:
            raise InputError(f"the prompt cache's capacity must be 0 or more, not {capacity!r}")
        self._capacity = capacity
        self._prompts: OrderedDict[bytes, Prompt] = OrderedDict()
        self._lock = threading.Lock()
        self._computing = threading.Lock()

    def __len__(self) -> int:
        return len(self._prompts)

    def get(self, key: bytes, sentence: str, compute: Callable[[], Prompt]) -> Prompt:
        """The prompt with this key, computed if it is not there. A hit does not wait for another's computation."""
        prompt = self._lookup(key, sentence)
        if prompt is None:
            with self._computing:
                prompt = self._lookup(key, sentence) or self._keep(key, compute())
        return prompt

    def clear(self) -> None:
        """Forget all prompts."""
        with self._lock:
            self._prompts.clear()

    def _lookup(self, key: bytes, sentence: str) -> Prompt | None:
        with self._lock:
            prompt = self._prompts.get(key)
            if prompt is None:
                return None
            self._prompts.move_to_end(key)
        return prompt if prompt.sentence == sentence else replace(prompt, sentence=sentence)

    def _keep(self, key: bytes, prompt: Prompt) -> Prompt:
        # Bounded in memory, however long the sentences are.
        short = prompt if len(prompt.sentence) <= _MAX_KEPT_CHARACTERS else replace(prompt, sentence="")
        with self._lock:
            self._prompts[key] = short
            while len(self._prompts) > self._capacity:
                self._prompts.popitem(last=False)
        return prompt
