"""RefCOCO on disk: splits, masks and sentences of the golden data set, and one clear line for what is wrong."""

import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lavt_edge.data import RefCOCO, resize_mask
from lavt_edge.errors import DatasetError
from PIL import Image

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools, numpy 2

MINI = Path(__file__).parent / "data" / "refer_mini"
EXPECTED = json.loads((MINI / "expected.json").read_text())


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A copy of the golden data set that a test may damage."""
    return Path(shutil.copytree(MINI, tmp_path / "mini"))


def edit_instances(root: Path, change: Callable[[Any], object]) -> None:
    path = root / "refcoco" / "instances.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def edit_refs(root: Path, change: Callable[[Any], object]) -> None:
    path = root / "refcoco" / "refs(unc).p"
    refs = pickle.loads(path.read_bytes())
    change(refs)
    path.write_bytes(pickle.dumps(refs, protocol=2))


def refusal(action: Callable[[], object]) -> str:
    with pytest.raises(DatasetError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("split", EXPECTED["splits"])
def test_a_split_takes_the_refs_of_the_published_evaluation(split: str) -> None:
    dataset = RefCOCO(MINI, EXPECTED["dataset"], EXPECTED["split_by"], split)
    assert len(dataset) == len(EXPECTED["splits"][split])
    assert [item.ref_id for item in dataset] == EXPECTED["splits"][split]


def test_masks_at_96_by_96_equal_the_published_evaluation() -> None:
    stored = np.load(MINI / "masks_96.npz")
    compared = set()
    for split in EXPECTED["splits"]:
        for item in RefCOCO(MINI, split=split):
            mask = resize_mask(item.mask, 96, 96)
            assert mask.dtype == bool
            np.testing.assert_array_equal(np.packbits(mask), stored[str(item.ref_id)])
            compared.add(item.ref_id)
    assert compared == set(range(20))


def test_an_item_holds_what_the_files_say() -> None:
    item = RefCOCO(MINI, split="testB")[1]
    assert (item.ref_id, item.ann_id, item.image_id, item.sentence_ids) == (3, 1700011, 581007, (3, 4))
    assert item.sentences[1] == ("UPPER TABLE RED UPPER TABLE SMALL THE TABLE THE THING MAN DOG BLUE THING TABLE.")
    assert item.image_path.name == "COCO_train2014_000000581007.jpg"
    assert item.image.mode == "RGB"
    assert item.image.size == (91, 99)
    assert item.mask.shape == (99, 91)
    assert item.mask.dtype == bool


def test_a_greyscale_image_is_read_as_rgb() -> None:
    items = [item for split in EXPECTED["splits"] for item in RefCOCO(MINI, split=split)]
    stored_modes = {Image.open(item.image_path).mode for item in items}
    assert "L" in stored_modes
    assert {item.image.mode for item in items} == {"RGB"}


def test_importing_the_package_imports_neither_torch_nor_pycocotools() -> None:
    code = "import sys, lavt_edge.data; print([m for m in ('torch', 'pycocotools') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (
            ("refcocog", "unc", "val"),
            "refs(unc).p: not found; ROOT/refcocog must hold refs(unc).p and instances.json; ",
        ),
        (("refcocog", "unc", "val"), "published splits are umd, google"),
        (("grefcoco", "unc", "val"), "ROOT/grefcoco must hold grefs(unc).p or grefs(unc).json and instances.json"),
        (("../refcoco", "unc", "val"), "data set '../refcoco': give the name of its folder"),
        (("refcoco", "../unc", "val"), "split_by '../unc': give what stands in the brackets of refs(...).p"),
        (("refcoco", "unc", "dev"), "no refs of split 'dev'; it has "),
        (("refcoco", "unc", "testC"), "no refs of split 'testC'; it has "),
        (("refcoco+", "unc", "val"), "refs(unc).p: not found"),
    ],
)
def test_an_unknown_choice_is_refused_with_the_choices(arguments: tuple[str, str, str], named: str) -> None:
    assert named in refusal(lambda: RefCOCO(MINI, *arguments))


@pytest.mark.parametrize("name", ["refs(unc).p", "instances.json"])
def test_a_missing_file_is_named(root: Path, name: str) -> None:
    (root / "refcoco" / name).unlink()
    assert f"{root / 'refcoco' / name}: not found" in refusal(lambda: RefCOCO(root))


def test_opening_needs_no_images_and_a_missing_one_is_named_with_its_ref(root: Path) -> None:
    shutil.rmtree(root / "images")
    item = RefCOCO(root)[0]
    assert item.mask.any()
    message = refusal(lambda: item.image)
    assert f"{item.image_path}: missing, needed by ref 2 (image 581007)" in message


def test_a_damaged_image_is_named_with_its_ref(root: Path) -> None:
    item = RefCOCO(root)[0]
    item.image_path.write_bytes(item.image_path.read_bytes()[:900])
    assert f"{item.image_path}: cannot be read for ref 2" in refusal(lambda: item.image)
    item.image_path.write_bytes(b"not an image")
    assert f"{item.image_path}: cannot be read for ref 2" in refusal(lambda: item.image)


def test_an_image_of_another_size_is_refused(root: Path) -> None:
    item = RefCOCO(root)[0]
    Image.new("RGB", (10, 20)).save(item.image_path)
    assert "10x20, but image 581007 is annotated at 91x99" in refusal(lambda: item.image)


def test_a_missing_annotation_or_image_record_is_named_with_its_ref(root: Path) -> None:
    edit_instances(root, lambda content: content["annotations"].pop(2))
    message = refusal(lambda: RefCOCO(root))
    assert "instances.json: no annotation 1700010, which ref 2 needs" in message
    shutil.copy(MINI / "refcoco" / "instances.json", root / "refcoco")
    edit_instances(root, lambda content: content["images"].pop(1))
    assert "instances.json: no image 581007, which ref 2 needs" in refusal(lambda: RefCOCO(root))


@pytest.mark.parametrize(
    "name",
    [
        *("../../secret.jpg", "/etc/passwd", "..", "", "a\\b.jpg", "C:x.jpg", "a\nb.jpg", 7),
        *(pytest.param(name, id=f"{len(name)} long") for name in ("é" * 130, "a" * 252 + ".jpg", "a/" * 5000 + "b")),
    ],
)
def test_a_file_name_that_is_none_in_the_images_folder_is_refused(root: Path, name: object) -> None:
    edit_instances(root, lambda content: content["images"][1].update(file_name=name))
    assert "instances.json: image 581007 has file_name" in refusal(lambda: RefCOCO(root))


def test_truncated_json_is_refused_wherever_it_is_cut(root: Path) -> None:
    path = root / "refcoco" / "instances.json"
    whole = path.read_bytes().rstrip()
    for length in range(0, len(whole), 97):
        path.write_bytes(whole[:length])
        assert f"{path}: truncated or damaged JSON" in refusal(lambda: RefCOCO(root))


@pytest.mark.parametrize(
    "text",
    ["[]", "7", '{"images": {}}', "[" * 200_000, '{"x": ' + "[" * 200_000, '{"annotations": [7]}', "{[]: 1}", "\xff"],
)
def test_json_of_another_kind_is_refused(root: Path, text: str) -> None:
    path = root / "refcoco" / "instances.json"
    path.write_bytes(text.encode("latin-1"))
    assert str(path) in refusal(lambda: RefCOCO(root))


def test_empty_lists_of_records_are_read(root: Path) -> None:
    (root / "refcoco" / "instances.json").write_text(' { "annotations" : [ ] , "images":[]}')
    assert "no annotation 1700010" in refusal(lambda: RefCOCO(root))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"height": "99"}, "image 581007 has no height and width"),
        ({"width": 0}, "image 581007 has no height and width"),
        ({"id": None}, "a record in images has no id"),
    ],
)
def test_a_malformed_image_record_is_named(root: Path, change: dict[str, object], named: str) -> None:
    edit_instances(root, lambda content: content["images"][1].update(change))
    assert named in refusal(lambda: RefCOCO(root))


def test_malformed_refs_are_named(root: Path) -> None:
    def after(change: Callable[[Any], object]) -> str:
        shutil.copy(MINI / "refcoco" / "refs(unc).p", root / "refcoco")
        edit_refs(root, change)
        return refusal(lambda: RefCOCO(root))

    assert "refs(unc).p: ref 2 has no whole number as ann_id" in after(lambda refs: refs[2].pop("ann_id"))
    assert "refs(unc).p: entry 2 has no whole number as ref_id" in after(lambda refs: refs[2].update(ref_id="2"))
    assert "refs(unc).p: entry 5 is not a ref with a split" in after(lambda refs: refs[5].pop("split"))
    assert "ref 2 has no list of sentences" in after(lambda refs: refs[2].update(sentences="dog"))
    assert "ref 2 has a sentence without its raw text" in after(lambda refs: refs[2]["sentences"][0].pop("raw"))
    assert "ref 2 has no whole number as sent_id" in after(lambda refs: refs[2]["sentences"][0].pop("sent_id"))
