"""Rows in batches, and the inputs made of them; warnings that point to the line that called in."""

from __future__ import annotations

import types
import warnings

import numpy as np
import pytest
from lavt_edge._base.callers import warn_caller
from lavt_edge.runtime.batches import image_feeds, in_batches, stack_prompts, text_feeds
from lavt_edge.runtime.prompt import Prompt


@pytest.mark.parametrize(
    ("rows", "size", "filled", "cut"),
    [
        ([], 3, [], []),
        ([1], 3, [[1, 1, 1]], [[1]]),
        ([1, 2, 3], 3, [[1, 2, 3]], [[1, 2, 3]]),
        ([1, 2, 3, 4], 3, [[1, 2, 3], [4, 4, 4]], [[1, 2, 3], [4]]),
        ([1, 2], 1, [[1], [2]], [[1], [2]]),
    ],
)
def test_the_last_batch_is_filled_with_its_last_row(
    rows: list[int], size: int, filled: list[list[int]], cut: list[list[int]]
) -> None:
    assert list(in_batches(rows, size)) == filled
    assert list(in_batches(rows, size, fill=False)) == cut


def test_the_inputs_of_both_graphs() -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (4, 5, 3), dtype=np.uint8) for _ in range(2)]
    prompts = [rng.standard_normal((3, 7), dtype=np.float32) for _ in range(2)]
    ids, masks = [np.array([1, 2, 0]), np.array([3, 0, 0])], [np.array([1, 1, 0]), np.array([1, 0, 0])]
    text, image = text_feeds(ids, masks), image_feeds(images, prompts, masks)
    assert {name: (array.shape, array.dtype.name) for name, array in {**text, **image}.items()} == {
        "input_ids": ((2, 3), "int64"),
        "attention_mask": ((2, 3), "int64"),
        "image": ((2, 4, 5, 3), "uint8"),
        "prompt": ((2, 3, 7), "float32"),
        "word_mask": ((2, 3), "float32"),
    }
    for row in range(2):
        np.testing.assert_array_equal(image["image"][row], images[row])
        np.testing.assert_array_equal(image["prompt"][row], prompts[row])
        np.testing.assert_array_equal(image["word_mask"][row], masks[row])


@pytest.mark.parametrize("rows", [1, 3])
def test_prompts_on_one_image(rows: int) -> None:
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    prompts = [Prompt("a", rng.standard_normal((3, 7), np.float32), np.ones(3, np.float32), False, "") for _ in "abc"]
    batch = stack_prompts(prompts[:rows])
    assert stack_prompts(prompts[:rows], batch) is batch
    assert stack_prompts(prompts[::-1][:rows], batch) is not batch
    wanted = image_feeds([image] * rows, [one.prompt for one in prompts[:rows]], [np.ones(3)] * rows)
    feeds = batch.feeds(image)
    assert feeds.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_array_equal(feeds[name], array)
        assert feeds[name].dtype == array.dtype


def test_a_warning_points_to_the_first_line_outside_the_package() -> None:
    """However deep the call is inside it; a package whose name begins alike is outside."""

    def module(name: str, source: str, **names: object) -> types.ModuleType:
        made = types.ModuleType(name)
        made.__dict__.update(names)
        exec(compile(source, f"{name}.py", "exec"), made.__dict__)
        return made

    deep = module("inner.deep", "def warn(): warn_caller('careful', UserWarning, 'inner')", warn_caller=warn_caller)
    top = module("inner", "def warn():\n    return [f() for f in [deep.warn]]", deep=deep)
    other = module("inner_too", "\n\ndef call(): top.warn()", top=top)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        other.call()
        deep.warn()
    assert (caught[0].filename, caught[0].lineno) == ("inner_too.py", 3)
    assert caught[1].filename == __file__
