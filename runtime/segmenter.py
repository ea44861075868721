"""The object a robot programmer holds: a sentence and an image in, a mask out."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any, TypeAlias, overload

import numpy as np
import numpy.typing as npt

from .._base.callers import warn_caller
from ..errors import BackendError, PromptError
from .backend import Backend, Placement
from .batches import PromptBatch, in_batches, stack_prompts, text_feeds
from .bundle import Bundle, open_bundle
from .graphs import Graphs, open_graphs
from .images import ImageLike, PreparedImage, foreground, prepare
from .manifest import Manifest
from .prompt import Prompt, PromptCache, TruncationWarning
from .streaming import prepared_ahead

PromptLike: TypeAlias = str | Prompt
PromptLikes: TypeAlias = list[PromptLike] | list[str] | list[Prompt] | tuple[PromptLike, ...]

_MAX_DYNAMIC_BATCH = 8


@dataclass(frozen=True, eq=False)
class Result:
    """What a sentence refers to in an image, at the image's own size.

    Attributes:
        mask: bool (H, W), where probability > 0.5.
        probability: float32 (H, W), of the object, from 0 to 1.
        sentence: the text.
    """

    mask: npt.NDArray[np.bool_]
    probability: npt.NDArray[np.float32]
    sentence: str


class Segmenter:
    """Segments the object that a sentence refers to. Make one with `Segmenter.load`; safe to share between threads.

        from lavt_edge.runtime import Segmenter

        with Segmenter.load("bundle") as segmenter:
            prompt = segmenter.encode("the man in red")
            result = segmenter.segment("photo.jpg", prompt)

    Attributes:
        manifest: what the bundle says about itself.
        precision: of the image graph, such as "fp32".
        device: where the image graph runs: "cpu" or "cuda".
        runtime: what runs it, such as "TensorRT 10.3.0".
        files: the bundle's files that run, of the text and the image graph.
    """

    def __init__(self, bundle: Bundle, graphs: Graphs, prompt_cache: int) -> None:
        self.files = graphs.files
        self.manifest: Manifest = bundle.manifest
        self.precision = graphs.precision
        self._spec = bundle.manifest.input
        self._fingerprint = bundle.fingerprint
        self._tokenizer = bundle.tokenizer()
        self._cache = PromptCache(prompt_cache)
        self._backends: tuple[Backend, Backend] | None = (graphs.text, graphs.image)
        self._stacked: PromptBatch | None = None
        self.device = graphs.image.device
        self.runtime = graphs.image.name

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        device: str = "auto",
        threads: int | None = None,
        precision: str | None = None,
        prompt_cache: int = 256,
        spinning: bool = False,
    ) -> Segmenter:
        """Load a bundle; its files are verified first.

        Of a folder the best engine that fits this machine is taken: verified ones before unverified ones, then fp16,
        bf16, int8, fp32. It must be for this TensorRT, version and GPU. If none fits, or on the CPU, it is the ONNX
        graph.

        Args:
            path: the bundle's folder, or one of the image graphs (.engine, .onnx) inside it.
            device: "cpu", "cuda", or "auto": CUDA if it can be used, else the CPU; `device` says which.
            threads: threads within an operator on the CPU (None: one per core).
            precision: of the image graph (None: that of the given file or the best engine, else fp32). The text encoder
                has the same if the bundle has one, else fp32.
            prompt_cache: how many encoded sentences are kept (80 bytes per prompt channel each; 0: none).
            spinning: whether ONNX Runtime's threads spin when they have no work. On cores that nothing else needs they
                may start sooner; on shared ones, or right after `encode`, they are in each other's way.

        Warns of an engine that was never compared with its graph (UnverifiedEngineWarning), of one that was built in
        another power mode (PowerModeWarning), and of each that is there and not used (UnusedEngineWarning).

        Raises:
            BundleError: not a bundle, or one that is damaged, incomplete or of another format version.
            BackendError: the backend or the device is not available, or the engine is for another.
        """
        bundle = open_bundle(path)
        graphs = open_graphs(bundle, Placement(device, threads, spinning), precision)
        return cls(bundle, graphs, prompt_cache)

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width that images are resized to."""
        return self._spec.height, self._spec.width

    def encode(self, sentence: str) -> Prompt:
        """Encode a sentence, for any number of images. The prompts used last are cached.

        A sentence of more tokens than the model reads is cut, with a TruncationWarning.
        Raises PromptError if it has no word.
        """
        return self._encode(sentence, self._open_backends()[0])

    @overload
    def segment(self, image: ImageLike, prompt: PromptLike) -> Result: ...

    @overload
    def segment(self, image: ImageLike, prompt: PromptLikes) -> list[Result]: ...

    def segment(self, image: ImageLike, prompt: PromptLike | PromptLikes) -> Result | list[Result]:
        """What a sentence, or each of several, refers to in an image.

        Args:
            image: a PIL image, a uint8 RGB array (H, W, 3), or the path of an image file.
            prompt: a sentence or what `encode` made of it; or a list or tuple of these.

        Returns:
            A Result; for a list or tuple a list of Results in the same order.

        Raises:
            ImageError: the image cannot be read or has no pixels.
            PromptError: a sentence has no word, a prompt comes from another bundle, or the list is empty.
        """
        text, graph = self._open_backends()  # held to the end of this call, whatever is closed meanwhile
        prompts = self._prompts(prompt, text)
        results = self._results(self._prepare(image), prompts, graph)
        return results if isinstance(prompt, (list, tuple)) else results[0]

    @overload
    def stream(self, frames: Iterable[ImageLike], prompt: PromptLike) -> Generator[Result, None, None]: ...

    @overload
    def stream(self, frames: Iterable[ImageLike], prompt: PromptLikes) -> Generator[list[Result], None, None]: ...

    def stream(self, frames: Iterable[ImageLike], prompt: PromptLike | PromptLikes) -> Generator[Any, None, None]:
        """`segment` on one frame after another; a thread reads and resizes the next frames meanwhile.

        At most two frames are taken ahead, each is read before the next is taken. What a frame, or `frames`, raises is
        raised in that frame's place and ends the stream. Close the generator to stop taking frames.

        Raises PromptError at once, ImageError at a frame.
        """
        prompts = self._prompts(prompt, self._open_backends()[0])
        return self._stream(frames, prompts, isinstance(prompt, (list, tuple)))

    def _stream(self, frames: Iterable[ImageLike], prompts: list[Prompt], several: bool) -> Generator[Any, None, None]:
        with closing(prepared_ahead(frames, self._prepare)) as images:
            for image in images:
                results = self._results(image, prompts, self._open_backends()[1])
                yield results if several else results[0]

    def encode_graph(
        self, input_ids: npt.NDArray[np.int64], attention_mask: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float32]:
        """The bare text graph: (B, max_words) twice to the prompt (B, max_words, prompt_channels); B as exported."""
        (prompt,) = self._open_backends()[0].run({"input_ids": input_ids, "attention_mask": attention_mask}, ["prompt"])
        return prompt

    def run_graph(
        self, image: npt.NDArray[np.uint8], prompt: npt.NDArray[np.float32], word_mask: npt.NDArray[np.float32]
    ) -> npt.NDArray[np.float32]:
        """The bare image graph: image (B, H, W, 3), prompt and mask to logits (B, 2, H, W); B and size as exported."""
        feeds: dict[str, npt.NDArray[Any]] = {"image": image, "prompt": prompt, "word_mask": word_mask}
        (logits,) = self._open_backends()[1].run(feeds, ["logits"])
        return logits

    def close(self) -> None:
        """Let go of the graphs, the device's memory and the cached prompts; calls in other threads still finish first.

        May be called twice.
        """
        self._backends = None
        self._stacked = None
        self._cache.clear()

    def __enter__(self) -> Segmenter:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        model, spec = self.manifest.model, self._spec
        state = self.device if self._backends else "closed"
        batch = "dynamic" if spec.batch is None else spec.batch
        name = f"{model.get('variant', 'lavt')} {model.get('swin', '')}".strip()
        return f"<Segmenter {name}, {spec.height}x{spec.width}, batch {batch}, {self.precision}, {state}>"

    def _open_backends(self) -> tuple[Backend, Backend]:
        if self._backends is None:
            raise BackendError("the segmenter is closed: load it again with Segmenter.load")
        return self._backends

    def _prompts(self, prompt: PromptLike | PromptLikes, text: Backend) -> list[Prompt]:
        given = prompt if isinstance(prompt, (list, tuple)) else (prompt,)
        if not given:
            raise PromptError("no sentence was given: give at least one")
        prompts = [item if isinstance(item, Prompt) else self._encode(item, text) for item in given]
        for item in prompts:
            if item.fingerprint != self._fingerprint:
                raise PromptError(
                    f"the prompt {item.sentence[:60]!r} comes from another bundle: encode it with this one"
                )
        return prompts

    def _encode(self, sentence: str, text: Backend) -> Prompt:
        input_ids, attention_mask, truncated = self._tokenizer.encode(sentence)
        if truncated:
            warn_caller(
                f"the sentence {sentence[:60]!r} is longer than {self._spec.max_words} tokens: the rest is ignored",
                TruncationWarning,
                __package__,
            )

        def compute() -> Prompt:
            # Alone, also if the graph takes several: a prompt does not depend on what is encoded beside it.
            rows = self._spec.batch or 1
            (prompts,) = text.run(text_feeds([input_ids] * rows, [attention_mask] * rows), ["prompt"])
            word_mask = attention_mask.astype(np.float32)
            return Prompt(sentence, prompts[0].copy(), word_mask, truncated, self._fingerprint)

        return self._cache.get(input_ids.tobytes() + attention_mask.tobytes() + bytes([truncated]), sentence, compute)

    def _prepare(self, image: ImageLike) -> PreparedImage:
        return prepare(image, *self.input_size)

    def _results(self, image: PreparedImage, prompts: list[Prompt], graph: Backend) -> list[Result]:
        logits = self._logits(image.pixels, prompts, graph)
        return [
            Result(*foreground(values, image.height, image.width), sentence=prompt.sentence)
            for prompt, values in zip(prompts, logits, strict=False)
        ]

    def _logits(
        self, image: npt.NDArray[np.uint8], prompts: list[Prompt], graph: Backend
    ) -> Iterator[npt.NDArray[np.float32]]:
        """Logits (2, H, W) of each prompt on one image, then those of the rows that fill a fixed batch."""
        fixed = self._spec.batch
        size = fixed or min(graph.max_batch or _MAX_DYNAMIC_BATCH, _MAX_DYNAMIC_BATCH)
        for rows in in_batches(prompts, size, fill=fixed is not None):
            batch = self._stacked = stack_prompts(rows, self._stacked)
            (logits,) = graph.run(batch.feeds(image), ["logits"])
            yield from logits
