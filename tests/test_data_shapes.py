"""Generated scenes: every sentence is read back by a grammar of its own and judged from the pixels."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from lavt_edge.data import RefCOCO
from lavt_edge.data.shapes import (
    HELD_OUT,
    KINDS,
    SPLITS,
    VOCABULARY,
    Scene,
    generate_scene,
    sample,
    scene_at,
    scene_rng,
    sentence_kind,
    swapped,
)
from lavt_edge.data.shapes import queries as shapes_queries
from lavt_edge.data.shapes import write as shapes_write
from lavt_edge.data.shapes.objects import COLOURS, SHAPES
from lavt_edge.data.shapes.write import write_refcoco
from lavt_edge.errors import DatasetError
from lavt_edge.tests.shapes_reader import GRAMMAR, KIND, Picture, holds_for, parse
from pycocotools import mask as coco_mask
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

SIZES = ((240, 240), (240, 200), (200, 240), (320, 240))
COUNTS = {"train": 6, "val": 4, "testA": 3, "testB": 5}


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [scene_at(7, split, index, sizes=SIZES) for split in SPLITS for index in range(60)]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_refcoco(tmp_path_factory.mktemp("data") / "shapes", seed=3, scenes=COUNTS, sizes=SIZES)


# --- Sentences


def test_every_sentence_holds_for_its_object_and_could_mean_no_other(scenes: list[Scene]) -> None:
    rules: Counter[str] = Counter()
    for scene in scenes:
        picture = Picture(scene)
        for one in scene.sentences():
            surely, perhaps = holds_for(one.text, picture)
            rule = parse(one.text)[0]
            assert surely == perhaps == {one.object_index}, f"{one.text!r} in {scene.objects}: {surely}, {perhaps}"
            assert KIND.get(rule, "relation") == one.kind
            rules[rule] += 1
    assert set(rules) == {rule for rule, _ in GRAMMAR}
    assert min(rules.values()) >= 8, rules


def test_every_form_of_every_relation_and_position_is_used(scenes: list[Scene]) -> None:
    texts = " . ".join(one.text for scene in scenes for one in scene.sentences())
    for words in ("in front of", "partly covering", "behind", "partly hidden by", "above", "below", "to the left of"):
        assert f" {words} the " in texts, words
    for words in ("corner", "in the middle", "in the center", "on the left side", "near the top", "leftmost", "fourth"):
        assert words in texts, words


def test_kinds_are_balanced_and_nearly_every_object_is_spoken_of(scenes: list[Scene]) -> None:
    kinds = Counter(one.kind for scene in scenes for one in scene.sentences())
    assert set(kinds) == set(KINDS)
    assert min(kinds.values()) > 0.18 * kinds.total()
    plain = [scene for scene in scenes if scene.split != "testB"]
    spoken = sum(len({one.object_index for one in scene.sentences()}) for scene in plain)
    assert spoken > 0.9 * sum(len(scene.objects) for scene in plain)


def test_most_sentences_need_more_than_the_words_for_the_object(scenes: list[Scene]) -> None:
    needed = total = 0
    for scene in scenes:
        picture = Picture(scene)
        for one in scene.sentences():
            if one.kind != "attribute":
                needed += len(picture.called(parse(one.text)[1]["x"])) > 1
                total += 1
    assert needed > 0.85 * total


def test_vocabulary_spells_every_sentence_within_20_tokens(scenes: list[Scene]) -> None:
    assert len(set(VOCABULARY)) == len(VOCABULARY)
    numbers = {token: number for number, token in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(WordPiece(numbers, unk_token="[UNK]"))
    tokenizer.normalizer = BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    for scene in scenes:
        for one in scene.sentences():
            tokens = tokenizer.encode(one.text).tokens
            assert tokens == one.text.split(), one.text  # one token a word
            assert len(tokens) + 2 <= 20
    assert "[UNK]" not in tokenizer.encode("zebra crossing, 42!").tokens


def test_a_query_with_any_doubt_has_no_referent() -> None:
    scene = scene_at(0, "train", 0)
    view = shapes_queries.View(scene.objects, scene.size)
    anything = shapes_queries.Descriptor()
    assert shapes_queries.referent(shapes_queries.Attribute(anything), view) is None
    for direction in shapes_queries.DIRECTIONS:
        depths = sorted(view.along(index, direction) for index in range(len(scene.objects)))
        found = shapes_queries.referent(shapes_queries.Extreme(anything, direction), view)
        assert (found is not None) == (depths[1] - depths[0] >= shapes_queries.EXTREME_MARGIN)


# --- Scenes


def test_objects_are_large_enough_visible_and_disjoint(scenes: list[Scene]) -> None:
    for scene in scenes:
        masks = scene.masks()
        assert 3 <= len(masks) <= 6
        assert masks.shape[1:] == scene.size[::-1] == scene.render().shape[:2]
        assert masks.sum(axis=0).max() == 1
        for one, mask in zip(scene.objects, masks, strict=True):
            assert mask.sum() >= 0.015 * mask.size
            assert abs(int(mask.sum()) - one.area) <= 0.03 * one.area
            assert one.visible >= 0.62
            assert mask[1:-1, 1:-1].sum() == mask.sum()  # inside the image


def test_sizes_have_a_gap() -> None:
    whole: dict[tuple[str, str], list[int]] = {}
    for index in range(200):
        for one in scene_at(1, "train", index).objects:
            whole.setdefault((one.shape, one.size), []).append(round(one.area / one.visible))
    for shape in SHAPES:
        assert min(whole[shape, "large"]) > 1.6 * max(whole[shape, "small"]), shape
    assert min(min(v) for (_, size), v in whole.items() if size == "large") > 1.3 * max(
        max(v) for (_, size), v in whole.items() if size == "small"
    )


def test_pictures_show_the_colours_where_the_masks_are(scenes: list[Scene]) -> None:
    hits = total = 0
    names = list(COLOURS)
    table = np.array(list(COLOURS.values()), float)
    table /= np.linalg.norm(table, axis=1, keepdims=True)
    for scene in scenes[:60]:
        image = scene.render().astype(float)
        for one, mask in zip(scene.objects, scene.masks(), strict=True):
            if one.texture == "plain":
                mean = image[mask].mean(axis=0)
                hits += names[int(np.argmax(table @ (mean / np.linalg.norm(mean))))] == one.colour
                total += 1
    assert hits == total


def test_same_colour_objects_never_touch(scenes: list[Scene]) -> None:
    for scene in scenes:
        picture = Picture(scene)
        for a, one in enumerate(scene.objects):
            for b in range(a):
                if scene.objects[b].colour == one.colour:
                    assert picture.touch(a, b) == 0


def test_held_out_pairs_appear_in_test_b_alone_and_all_its_sentences_are_about_them(scenes: list[Scene]) -> None:
    seen: set[tuple[str, str]] = set()
    for index in range(300):
        for split in ("train", "val", "testA"):
            pairs = {(one.colour, one.shape) for one in scene_at(2, split, index).objects}
            assert not pairs & HELD_OUT
            seen |= pairs
    assert seen == {(colour, shape) for colour in COLOURS for shape in SHAPES} - HELD_OUT
    shown: set[tuple[str, str]] = set()
    for index in range(100):
        scene = scene_at(2, "testB", index)
        held = {i for i, one in enumerate(scene.objects) if (one.colour, one.shape) in HELD_OUT}
        assert len(held) >= 2
        assert {one.object_index for one in scene.sentences()} <= held
        shown |= {(scene.objects[i].colour, scene.objects[i].shape) for i in held}
    assert shown == HELD_OUT


def test_splits_share_no_scene() -> None:
    objects = [scene_at(0, split, index).objects for split in SPLITS for index in range(150)]
    assert len(set(objects)) == len(objects)


def test_a_seed_decides_everything_and_a_scene_does_not_depend_on_others() -> None:
    one, again = scene_at(5, "val", 3), scene_at(5, "val", 3)
    assert one == again
    assert one.sentences() == again.sentences()
    assert np.array_equal(one.render(), again.render())
    assert scene_at(6, "val", 3) != one
    assert generate_scene(scene_rng(5, "val", 3), split="val") == one


@pytest.mark.parametrize(("split", "size"), [("testC", (240, 240)), ("train", (64, 64)), ("train", (300, 100))])
def test_impossible_scenes_are_refused(split: str, size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"unknown split|cannot draw"):
        generate_scene(np.random.default_rng(0), split=split, size=size)


def test_samples_are_single_examples_of_all_kinds() -> None:
    rng = np.random.default_rng(0)
    samples = [sample(rng, "train", size=(200, 240)) for _ in range(60)]
    for image, mask, sentence, _ in samples:
        assert image.shape == (240, 200, 3)
        assert image.dtype == np.uint8
        assert mask.shape == (240, 200)
        assert mask.dtype == bool
        assert parse(sentence)
    kinds = Counter(kind for *_, kind in samples)
    assert set(kinds) == set(KINDS)
    assert min(kinds.values()) >= 6


def test_swapping_gives_every_sentence_one_of_another_object() -> None:
    sentences = [(index, one) for index in range(40) for one in scene_at(0, "testB", index).sentences()]
    owners = [(index, one.object_index) for index, one in sentences]
    kinds = [one.kind for _, one in sentences]
    partners = swapped(owners, kinds)
    paired = [(owners[i], owners[p]) for i, p in enumerate(partners) if p is not None]
    assert len(paired) > 0.9 * len(owners)
    assert all(a[0] == b[0] and a[1] != b[1] for a, b in paired)
    same_kind = sum(p is not None and kinds[p] == kinds[i] for i, p in enumerate(partners))
    assert same_kind > 0.8 * len(paired)
    assert swapped([(0, 0), (0, 0), (1, 0)]) == [None, None, None]


# --- Written in RefCOCO's layout


def test_written_masks_are_the_scenes_masks_to_the_pixel(written: Path) -> None:
    instances = json.loads((written / "refcoco" / "instances.json").read_text())
    annotations = {one["id"]: one for one in instances["annotations"]}
    images = {one["id"]: one for one in instances["images"]}
    for split, count in COUNTS.items():
        for index in range(count):
            scene = scene_at(3, split, index, sizes=SIZES)
            image_id = SPLITS.index(split) * 10_000_000 + index + 1
            image = images[image_id]
            assert (image["width"], image["height"]) == scene.size
            for k, mask in enumerate(scene.masks()):
                one = annotations[image_id * 16 + k]
                rle = coco_mask.frPyObjects(one["segmentation"], image["height"], image["width"])
                assert np.array_equal(coco_mask.decode(rle), mask)
                assert coco_mask.area(rle) == one["area"]
                assert coco_mask.toBbox(rle).tolist() == one["bbox"]
                category = next(c for c in instances["categories"] if c["id"] == one["category_id"])
                assert category["name"] == scene.objects[k].shape


@pytest.mark.parametrize("split", SPLITS)
def test_refcoco_reads_what_was_written(written: Path, split: str) -> None:
    data = RefCOCO(written, dataset="refcoco", split_by="unc", split=split)
    assert len(data) > 0
    by_image = {
        SPLITS.index(split) * 10_000_000 + i + 1: scene_at(3, split, i, sizes=SIZES) for i in range(COUNTS[split])
    }
    told = 0
    for item in data:
        scene = by_image[item.ref_id // 16]
        assert np.array_equal(item.mask, scene.masks()[item.ref_id % 16])
        picture = np.asarray(item.image, dtype=int)
        assert abs(picture - scene.render()).mean() < 6  # JPEG
        told += len(item.sentences)
    assert told == sum(len(scene.sentences()) for scene in by_image.values())


def test_sentences_name_their_kind_and_so_do_their_numbers(written: Path) -> None:
    refs = pickle.loads((written / "refcoco" / "refs(unc).p").read_bytes())
    numbers = set()
    for ref in refs:
        assert ref["sent_ids"] == [one["sent_id"] for one in ref["sentences"]]
        for one in ref["sentences"]:
            assert sentence_kind(one) == sentence_kind(one["sent_id"]) == one["kind"]
            rule, _ = parse(one["raw"])
            assert KIND.get(rule, "relation") == one["kind"]
            assert one["tokens"] == one["sent"].split()
            numbers.add(one["sent_id"])
    assert len(numbers) == sum(len(ref["sentences"]) for ref in refs)


def test_same_seed_same_bytes_whatever_the_number_of_scenes(written: Path, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    again = write_refcoco(
        tmp_path / "again", seed=3, scenes=COUNTS, sizes=SIZES, progress=lambda done, total: calls.append((done, total))
    )
    files = sorted(path.relative_to(written) for path in written.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
    assert all((written / path).read_bytes() == (again / path).read_bytes() for path in files)
    assert calls == [(done, sum(COUNTS.values())) for done in range(1, sum(COUNTS.values()) + 1)]
    fewer = write_refcoco(
        tmp_path / "fewer", seed=3, scenes={"val": 2}, sizes=SIZES, dataset="refcoco+", split_by="unc"
    )
    for path in fewer.rglob("*.jpg"):
        assert path.read_bytes() == (written / path.relative_to(fewer)).read_bytes()
    assert (fewer / "refcoco+" / "refs(unc).p").is_file()


def test_a_target_in_use_is_refused_and_untouched(tmp_path: Path) -> None:
    (tmp_path / "keep.txt").write_text("mine")
    with pytest.raises(DatasetError, match="not an empty folder"):
        write_refcoco(tmp_path, scenes={"val": 1})
    assert [path.name for path in tmp_path.iterdir()] == ["keep.txt"]


def test_an_interrupted_write_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_refcoco(tmp_path / "data", scenes={"val": 3}, progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_target_is_used(tmp_path: Path) -> None:
    assert write_refcoco(tmp_path, scenes={"val": 1}) == tmp_path
    assert (tmp_path / "refcoco" / "instances.json").is_file()


@pytest.mark.parametrize(
    "arguments",
    [
        {"scenes": {"dev": 1}},
        {"scenes": {"val": -1}},
        {"dataset": "../x"},
        {"split_by": "a/b"},
        {"sizes": ()},
        {"sizes": ((20, 20),), "scenes": {"val": 1}},
    ],
)
def test_wrong_arguments_are_one_line(tmp_path: Path, arguments: dict[str, object]) -> None:
    with pytest.raises(DatasetError) as caught:
        write_refcoco(tmp_path / "data", **arguments)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_mask_that_starts_at_the_corner_has_a_leading_zero_run() -> None:
    mask = np.eye(3, 4, dtype=bool)
    rle = coco_mask.frPyObjects(shapes_write.uncompressed_rle(mask), 3, 4)
    assert np.array_equal(coco_mask.decode(rle), mask)
