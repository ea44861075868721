"""lavt-run: images and sentences in, pictures, masks and COCO's JSON out; one line each for what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from lavt_edge.runtime import Segmenter
from lavt_edge.runtime.images import result_of
from lavt_edge.runtime.images.coco import coco_entry
from lavt_edge.tests.command_runs import Run, refused
from lavt_edge.tests.photos import oriented
from lavt_edge.tests.runtime_bundle import write_bundle
from PIL import Image
from pycocotools import mask as theirs
from pycocotools.coco import COCO


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "bundle")


def test_run_writes_an_overlay_or_the_bare_mask(command: Run, bundle: Path, photo: Path, tmp_path: Path) -> None:
    code, shown, _ = command("lavt-run", bundle, photo, "the red thing", "-o", tmp_path / "x[bold].png")
    assert (code, "x[bold].png" in shown) == (0, True)
    assert Image.open(tmp_path / "x[bold].png").width >= 70
    assert command("lavt-run", bundle, photo, "the red thing", "--mask", "-o", tmp_path / "mask.png")[0] == 0
    mask = np.asarray(Image.open(tmp_path / "mask.png"))
    assert mask.shape == (50, 70)
    assert set(np.unique(mask)) <= {0, 255}


def test_a_long_sentence_is_cut_with_a_warning_whatever_it_holds(
    command: Run, bundle: Path, photo: Path, tmp_path: Path
) -> None:
    sentence = "[/red] " + "very " * 40 + "red"
    code, _, stderr = command("lavt-run", bundle, photo, sentence, "-o", tmp_path / "o.png")
    assert code == 0
    assert "warning: " in stderr
    assert "[/red]" in stderr


def test_run_refuses_what_it_cannot_read_or_write(command: Run, bundle: Path, photo: Path, tmp_path: Path) -> None:
    before = photo.read_bytes()
    output = tmp_path / "out.png"
    assert "no such bundle" in refused(command("lavt-run", tmp_path / "none", photo, "x", "-o", output))
    assert "nothing.jpg" in refused(command("lavt-run", bundle, tmp_path / "nothing.jpg", "x", "-o", output))
    assert "sentence" in refused(command("lavt-run", bundle, photo, "  ", "-o", output))
    assert "ends in .png" in refused(command("lavt-run", bundle, photo, "x", "-o", tmp_path / "out.jpg"))
    assert "the image itself" in refused(command("lavt-run", bundle, photo, "x", "-o", photo))
    os.mkfifo(tmp_path / "pipe.png")
    assert "not a regular file" in refused(command("lavt-run", bundle, photo, "x", "-o", tmp_path / "pipe.png"))
    assert (tmp_path / "pipe.png").is_fifo()
    assert photo.read_bytes() == before
    assert not output.exists()


def test_names_that_the_terminal_cannot_show_do_not_fail(bundle: Path, photo: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [Path(sys.executable).parent / "lavt-run", bundle, photo, "é", "-o", tmp_path / "é.png"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "é.png").exists()


SENTENCES = ("the red thing", "a dog", "left zebra")


def masks_of(bundle: Path, image: Path, sentences: tuple[str, ...] = SENTENCES) -> list[np.ndarray]:
    with Segmenter.load(bundle, device="cpu") as segmenter:
        return [result.mask for result in segmenter.segment(image, sentences)]


def test_several_sentences_are_one_overlay_with_a_legend_or_a_mask_each(
    command: Run, bundle: Path, photo: Path, tmp_path: Path
) -> None:
    assert command("lavt-run", bundle, photo, SENTENCES[0], "-o", tmp_path / "one.png")[0] == 0
    code, shown, _ = command("lavt-run", bundle, photo, *SENTENCES, "-o", tmp_path / "out.png")
    assert code == 0
    assert [line.split(": ")[1] for line in shown.splitlines()] == [repr(sentence) for sentence in SENTENCES]
    assert Image.open(tmp_path / "out.png").height > Image.open(tmp_path / "one.png").height
    assert command("lavt-run", bundle, photo, *SENTENCES, "--mask", "-o", tmp_path / "m.png")[0] == 0
    for number, mask in enumerate(masks_of(bundle, photo), start=1):
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / f"m.{number}.png")), mask * np.uint8(255))
    assert not (tmp_path / "m.png").exists()


def test_a_folder_and_more_images_become_a_folder_and_what_cannot_be_read_is_named(
    command: Run, bundle: Path, photo: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for index, name in enumerate(("b.png", "a.jpg")):
        Image.fromarray(np.random.default_rng(index).integers(0, 256, (40, 30, 3), np.uint8)).save(folder / name)
    (folder / "notes.txt").write_text("not looked at")
    output, data = tmp_path / "out", tmp_path / "masks.json"
    arguments = ("--image", photo, "--mask", "-o", output, "--json", data)
    assert command("lavt-run", bundle, folder, *SENTENCES, *arguments)[0] == 0
    names = ["a.jpg", "b.png", "photo.png"]
    assert sorted(path.name for path in output.iterdir()) == [f"{name}.{n}.png" for name in names for n in (1, 2, 3)]
    coco = COCO(str(data))
    assert [entry["file_name"] for entry in coco.imgs.values()] == names
    assert [entry["name"] for entry in coco.cats.values()] == list(SENTENCES)
    for index, path in enumerate((folder / "a.jpg", folder / "b.png", photo)):
        for number, mask in enumerate(masks_of(bundle, path)):
            annotation = coco.anns[3 * index + number + 1]
            assert (annotation["image_id"], annotation["category_id"]) == (index + 1, number + 1)
            np.testing.assert_array_equal(coco.annToMask(annotation), mask)
            written = np.asarray(Image.open(output / f"{path.name}.{number + 1}.png"))
            np.testing.assert_array_equal(written, mask * np.uint8(255))

    (folder / "c.png").write_bytes(b"not an image")
    code, shown, stderr = command("lavt-run", bundle, folder, "the red thing", "-o", tmp_path / "again")
    assert (code, shown.count("'the red thing': ")) == (1, 2)
    warned, error = stderr.splitlines()
    assert warned == f"warning: {folder / 'c.png'} cannot be read: it is not an image that Pillow knows"
    assert error == "error: 1 of 3 images could not be read; the others are done"
    assert sorted(path.name for path in (tmp_path / "again").iterdir()) == ["a.jpg.png", "b.png.png"]


def test_json_alone_writes_no_picture_and_says_when_nothing_was_found(
    command: Run, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (20, 10)).save("black.png")  # both logits are 0: background
    code, shown, _ = command("lavt-run", "bundle", "black.png", "a dog", "--json", "found.json")
    assert code == 0
    assert shown == "black.png: 'a dog': nothing was found, on cpu\nfound.json: images: 1, sentences: 1\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["black.png", "bundle", "found.json"]
    (annotation,) = json.loads(Path("found.json").read_text())["annotations"]
    assert annotation == {
        "id": 1,
        "image_id": 1,
        "category_id": 1,
        "iscrowd": 0,
        "area": 0,
        "score": 0.0,
        "bbox": [0, 0, 0, 0],
        "segmentation": {"size": [10, 20], "counts": "X6"},
    }


def test_outputs_that_would_overwrite_each_other_are_refused_before_any_work(
    command: Run, bundle: Path, photo: Path, tmp_path: Path
) -> None:
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    run = ("lavt-run", bundle, photo, "a dog")
    assert "into a folder" in refused(command(*run, "--image", photo, "-o", tmp_path / "out.png"))
    assert "is written twice" in refused(command(*run, "--image", photo, "-o", tmp_path / "out"))
    assert "is the image itself" in refused(command(*run, "--json", photo))
    assert "has no images" in refused(command("lavt-run", bundle, bundle, "a dog", "-o", tmp_path / "out"))
    (tmp_path / "file").write_bytes(b"")
    before[tmp_path / "file"] = b""
    said = refused(command(*run, "-o", tmp_path / "file" / "out.png"))
    assert "cannot be written" in said
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_that_lies_on_a_side_gives_the_upright_files(
    command: Run, bundle: Path, photo: Path, tmp_path: Path, orientation: int
) -> None:
    (tmp_path / "lying.png").write_bytes(oriented(np.asarray(Image.open(photo)), orientation))
    for option in ((), ("--mask",)):
        for name in ("photo", "lying"):
            path = tmp_path / f"{name}.png"
            assert command("lavt-run", bundle, path, "a dog", *option, "-o", tmp_path / f"{name}-out.png")[0] == 0
        assert (tmp_path / "lying-out.png").read_bytes() == (tmp_path / "photo-out.png").read_bytes()


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.98, 1.0])
def test_annotations_are_those_of_pycocotools(share: float) -> None:
    rng = np.random.default_rng(0)
    for size in ((1, 1), (1, 40), (40, 1), (33, 57), (200, 300)):
        for block in (1, 16):
            coarse = rng.random((size[0] // block + 1, size[1] // block + 1)) < share
            mask = coarse.repeat(block, 0).repeat(block, 1)[: size[0], : size[1]]
            (annotation,) = coco_entry("a.png", [result_of(np.stack([~mask, mask]).astype(np.float32), "a dog")])[
                "masks"
            ]
            rle = theirs.encode(np.asfortranarray(mask, np.uint8))
            assert annotation["segmentation"] == {"size": list(size), "counts": rle["counts"].decode()}
            assert annotation["bbox"] == theirs.toBbox(rle).tolist()
            assert annotation["area"] == theirs.area(rle)
            assert annotation["score"] == pytest.approx(mask.any() / (1 + np.exp(-1)), abs=1e-4)
