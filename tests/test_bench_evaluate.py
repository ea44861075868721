"""`lavt-bench --dataset`: the figures of a bundle, its results file, and runs that were stopped half-way."""

from __future__ import annotations

import pickle
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from lavt_edge.benchmarks.evaluation.evaluate import HEADER, evaluate
from lavt_edge.benchmarks.evaluation.predictors import BundlePredictor, load_bundle, object_masks
from lavt_edge.data import RefCOCO
from lavt_edge.data.metrics import ReferringMetrics
from lavt_edge.data.sentences import Split, open_split
from lavt_edge.data.shapes import KINDS
from lavt_edge.data.shapes.write import write_refcoco
from lavt_edge.errors import BackendError, DatasetError
from lavt_edge.runtime import Segmenter
from lavt_edge.tests.bench_results import MINI, counts_in, expected_counts, lines, mini, nearest, refusal, stop_after
from lavt_edge.tests.runtime_bundle import HEIGHT, VOCAB, WIDTH, WORDS, expected_logits, expected_prompt, write_bundle
from PIL import Image

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools, numpy 2


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundles") / "small")


@pytest.fixture(scope="module")
def predictor(bundle: Path) -> BundlePredictor:
    return load_bundle(bundle, device="cpu", threads=1)


@pytest.fixture(scope="module")
def shapes_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_refcoco(tmp_path_factory.mktemp("data") / "shapes", seed=3, scenes={"val": 4})


@pytest.mark.parametrize("split", ["val", "test", "testB"])
def test_figures_equal_an_independent_computation(predictor: BundlePredictor, split: str, tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    evaluation = evaluate(predictor, mini(split), path)
    expected = expected_counts(MINI, split)
    assert counts_in(path) == expected
    ious = np.array([a / b if b else 0 for a, b in expected.values()])
    total = [sum(column) for column in zip(*expected.values(), strict=True)]
    assert evaluation.figures["sentences"] == len(ious)
    assert evaluation.figures["mean_iou"] == pytest.approx(100 * ious.mean())
    assert evaluation.figures["overall_iou"] == pytest.approx(100 * total[0] / total[1])
    for threshold in (0.5, 0.6, 0.7, 0.8, 0.9):
        assert evaluation.figures[f"precision@{threshold}"] == pytest.approx(100 * (ious >= threshold).mean())
    assert len(set(expected.values())) > 2, "a model that says the same of everything shows nothing"


def test_the_results_file_says_what_was_run_and_what_came_out(predictor: BundlePredictor, tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    evaluate(predictor, mini("val"), path)
    header, first, *rest = lines(path)
    assert header["dataset"] == "refcoco"
    assert (header["split_by"], header["split"], header["swap"], header["sentences"]) == ("unc", "val", False, 5)
    assert (header["input"], header["batch"]) == ([HEIGHT, WIDTH], 1)
    assert header["model"]["precision"] == "fp32"
    assert set(header["model"]["files"]) == {"segmenter.onnx", "text_encoder.onnx", "tokenizer.json"}
    assert set(header["files"]) == {"refs(unc).p", "instances.json"}
    assert list(first) == ["sentence_id", "ref_id", "intersection", "union", "iou"]
    assert first["iou"] == first["intersection"] / first["union"]
    assert [line["sentence_id"] for line in (first, *rest)] == [2, 22, 29, 31, 32]


@pytest.mark.parametrize(("batch", "batch_size"), [(3, None), (None, None), (None, 1), (None, 7)])
def test_batches_of_any_size_give_the_same_figures(
    batch: int | None, batch_size: int | None, predictor: BundlePredictor, shapes_root: Path, tmp_path: Path
) -> None:
    split = open_split("shapes", "val", data_root=shapes_root)
    alone = evaluate(predictor, split, tmp_path / "alone.jsonl", limit=20)
    batched = load_bundle(write_bundle(tmp_path / "batched", batch=batch), batch_size=batch_size, threads=1)
    together = evaluate(batched, split, tmp_path / "together.jsonl", limit=20)
    assert counts_in(tmp_path / "together.jsonl") == counts_in(tmp_path / "alone.jsonl")
    assert (together.figures, together.kinds) == (alone.figures, alone.kinds)


def test_a_batch_size_that_the_bundle_does_not_take_is_refused(bundle: Path) -> None:
    assert "exported for batches of 1, not 2" in refusal(lambda: load_bundle(bundle, batch_size=2))


@pytest.mark.parametrize("batch", [1, 4, None])
def test_a_run_that_is_interrupted_and_continued_ends_alike(batch: int | None, tmp_path: Path) -> None:
    model = load_bundle(write_bundle(tmp_path / "bundle", batch=batch), threads=1)
    through, stopped = tmp_path / "through.jsonl", tmp_path / "stopped.jsonl"
    whole = evaluate(model, mini(), through)
    count = len(lines(through)) - 1
    assert count > 8
    for sentences in (1, 2, 6, count - 1):
        with pytest.raises(KeyboardInterrupt):
            evaluate(model, mini(), stopped, progress=stop_after(sentences))
        assert len(lines(stopped)) == 1 + sentences
    assert evaluate(model, mini(), stopped).figures == whole.figures
    assert stopped.read_bytes() == through.read_bytes()


def test_a_killed_process_is_continued_wherever_its_last_line_was_cut(
    bundle: Path, predictor: BundlePredictor, tmp_path: Path
) -> None:
    through, killed = tmp_path / "through.jsonl", tmp_path / "killed.jsonl"
    whole = evaluate(predictor, mini(), through)
    code = (
        "import os, signal, sys\nfrom pathlib import Path\n"
        "from lavt_edge.benchmarks.evaluation.evaluate import evaluate\n"
        "from lavt_edge.benchmarks.evaluation.predictors import load_bundle\n"
        "from lavt_edge.data.sentences import open_split\n"
        "bundle, root, results = map(Path, sys.argv[1:])\n"
        "def progress(done, total):\n    if done == 5:\n        os.kill(os.getpid(), signal.SIGKILL)\n"
        "evaluate(load_bundle(bundle, device='cpu'), open_split('refcoco', 'test', data_root=root), results,"
        " progress=progress)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, bundle, MINI, killed])
    assert done.returncode == -signal.SIGKILL
    left = killed.read_bytes()
    assert len(left.splitlines()) == 6
    assert through.read_bytes().startswith(left)
    last = left.rindex(b"\n", 0, -1) + 1
    for end in (0, 1, 40, left.index(b"\n"), *range(last, len(left), 7), len(left) - 1, len(left)):
        killed.write_bytes(left[:end])
        assert evaluate(predictor, mini(), killed).figures == whole.figures
        assert killed.read_bytes() == through.read_bytes()


def test_a_finished_run_is_read_and_not_run_again(predictor: BundlePredictor, tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    whole = evaluate(predictor, mini(), path)
    broken = BundlePredictor(predictor._segmenter, name="small")
    broken.masks = None  # type: ignore[method-assign, assignment]
    assert evaluate(broken, mini(), path) == whole


def test_a_limit_takes_the_first_sentences_and_can_be_raised_later(tmp_path: Path) -> None:
    model = load_bundle(write_bundle(tmp_path / "bundle", batch=4), threads=1)
    through, path = tmp_path / "through.jsonl", tmp_path / "results.jsonl"
    evaluate(model, mini(), through)
    few = evaluate(model, mini(), path, limit=6)
    assert few.figures["sentences"] == 6
    assert path.read_bytes().splitlines() == through.read_bytes().splitlines()[:7]
    evaluate(model, mini(), path, limit=10_000)
    assert path.read_bytes() == through.read_bytes()
    again = evaluate(model, mini(), path, limit=6)
    assert again == few


def test_results_of_another_run_are_refused_and_kept(
    bundle: Path, predictor: BundlePredictor, shapes_root: Path, tmp_path: Path
) -> None:
    path = tmp_path / "results.jsonl"
    evaluate(predictor, mini("val"), path)
    kept = path.read_bytes()
    other = load_bundle(write_bundle(tmp_path / "other", seed=1), device="cpu")
    assert "model.checkpoint is" in refusal(lambda: evaluate(other, mini("val"), path))
    assert 'split is "val" there and "testA" here' in refusal(lambda: evaluate(predictor, mini("testA"), path))
    assert "begin it again with --restart" in refusal(lambda: evaluate(predictor, mini("testA"), path))
    changed = Path(shutil.copytree(MINI, tmp_path / "changed"))
    with (changed / "refcoco" / "instances.json").open("a") as file:
        file.write("\n")
    split = open_split("refcoco", "val", data_root=changed)
    assert "files.instances.json is" in refusal(lambda: evaluate(predictor, split, path))
    assert path.read_bytes() == kept
    evaluate(predictor, mini("testA"), path, restart=True)
    assert counts_in(path) == expected_counts(MINI, "testA")


def test_a_damaged_line_is_named(predictor: BundlePredictor, tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    evaluate(predictor, mini("val"), path)
    good = path.read_bytes().splitlines(keepends=True)
    damages = [
        good[2][:30] + b"\n",
        good[3],
        good[2].replace(b'"union": ', b'"union": -'),
        b"\xff\n",
        b"[" * 60_000 + b"\n",
        b"x" * 70_000 + b"\n",
    ]
    for damage in damages:
        path.write_bytes(good[0] + good[1] + damage + b"".join(good[3:]))
        assert "line 3 is damaged" in refusal(lambda: evaluate(predictor, mini("val"), path))
    path.write_bytes(b"".join(good) + good[-1])
    assert f"line {len(good) + 1} is damaged" in refusal(lambda: evaluate(predictor, mini("val"), path))


@pytest.mark.parametrize("content", [b"my notes\n", b"\x80\x02]q\x00.", b"{}", b'{"lavt": 1}\n'])
def test_a_file_that_is_no_results_is_never_overwritten(
    content: bytes, predictor: BundlePredictor, tmp_path: Path
) -> None:
    path = tmp_path / "other"
    path.write_bytes(content)
    for restart in (False, True):
        assert "not a results file" in refusal(lambda: evaluate(predictor, mini(), path, restart=restart))  # noqa: B023
    assert path.read_bytes() == content


def test_places_that_cannot_be_written_are_named(predictor: BundlePredictor, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file" / "results.jsonl", tmp_path / ("x" * 300)):
        assert "cannot be written" in refusal(lambda: evaluate(predictor, mini(), path))  # noqa: B023


def test_two_runs_do_not_write_one_file(predictor: BundlePredictor, tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    messages = []

    def progress(done: int, total: int) -> None:
        if not messages:
            messages.append(refusal(lambda: evaluate(predictor, mini("val"), path)))

    evaluate(predictor, mini("val"), path, progress=progress)
    assert "another run is writing it" in messages[0]
    assert counts_in(path) == expected_counts(MINI, "val")


def test_published_rows_stand_beside_their_own_split_only(
    bundle: Path, predictor: BundlePredictor, shapes_root: Path, tmp_path: Path
) -> None:
    model = predictor

    def published(split: Split, name: str, limit: int | None = None) -> list[tuple[str, ...]]:
        table = evaluate(model, split, tmp_path / name, limit=limit).table()
        assert {len(row) for row in table} == {len(HEADER)}
        return [row[:4] for row in table if row[0].startswith("paper")]

    rows = [("paper, lavt base", "", "74.46", "72.73"), ("paper, lavt_one base", "", "75.41", "73.50")]
    assert published(mini("val"), "val") == rows
    assert published(mini("val"), "part", limit=4) == []
    assert published(mini("testA"), "testA") == [("paper, lavt base", "", "76.89", "75.82")]
    assert published(mini("testA", swap=True), "swap") == []
    assert published(open_split("refcoco", "val", data_root=shapes_root), "generated") == []
    segmenter = Segmenter.load(bundle, device="cpu", threads=1)
    segmenter.manifest = replace(segmenter.manifest, model={**segmenter.manifest.model, "swin": "demo"})
    model = BundlePredictor(segmenter)
    assert published(mini("val"), "demo") == []


def test_generated_data_has_a_row_for_each_kind(predictor: BundlePredictor, shapes_root: Path, tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    evaluation = evaluate(predictor, open_split("shapes", "val", data_root=shapes_root), path)
    refs = pickle.loads((shapes_root / "refcoco" / "refs(unc).p").read_bytes())
    kind_of = {sentence["sent_id"]: sentence["kind"] for ref in refs for sentence in ref["sentences"]}
    assert {line["sentence_id"]: line["kind"] for line in lines(path)[1:]} == kind_of
    assert list(evaluation.kinds) == list(KINDS)
    for kind in KINDS:
        metrics = ReferringMetrics()
        for line in lines(path)[1:]:
            if line["kind"] == kind:
                metrics.add(line["intersection"], line["union"])
        assert evaluation.kinds[kind] == metrics.compute()
    assert [row[0] for row in evaluation.table()] == ["all", *KINDS]
    assert counts_in(path) == expected_counts(shapes_root, "val")


def test_real_data_has_no_kinds(predictor: BundlePredictor, tmp_path: Path) -> None:
    assert evaluate(predictor, mini(), tmp_path / "results.jsonl").kinds == {}


def test_swapped_sentences_are_of_another_object_in_the_image(
    predictor: BundlePredictor, shapes_root: Path, tmp_path: Path
) -> None:
    plain = open_split("shapes", "val", data_root=shapes_root)
    swapped = open_split("shapes", "val", data_root=shapes_root, swap=True)
    said = {(one.target.image_id, one.text, one.target.ref_id) for one in plain.sentences}
    own = {one.sentence_id: one for one in plain.sentences}
    assert len(swapped.sentences) > 0.9 * len(plain.sentences)
    for one in swapped.sentences:
        assert one.target is not None
        assert one.target.ref_id == own[one.sentence_id].target.ref_id
        speakers = {ref for image, text, ref in said if (image, text) == (one.target.image_id, one.text)}
        assert speakers - {one.target.ref_id}
    path = tmp_path / "results.jsonl"
    evaluate(predictor, plain, path)
    assert "swap is false there and true here" in refusal(lambda: evaluate(predictor, swapped, path))
    evaluate(predictor, swapped, tmp_path / "swapped.jsonl")
    assert counts_in(path) != counts_in(tmp_path / "swapped.jsonl")
    assert swapped.name == "shapes.val.swapped"


def test_logits_that_are_not_finite_are_no_result() -> None:
    logits = np.zeros((2, 2, 3, 3), np.float32)
    logits[0, 1] = 1
    assert object_masks(logits).tolist() == [np.ones((3, 3)).tolist(), np.zeros((3, 3)).tolist()]
    logits[1, 0, 2, 2] = np.nan
    with pytest.raises(BackendError, match="not finite"):
        object_masks(logits)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (
            ("refcoc", "val"),
            "'refcoc'; choose one of shapes, refcoco, refcoco+, refcocog, refclef, rrsisd, grefcoco, or ",
        ),
        (("refcoco", "val"), "refcoco needs --data-root"),
        (("shapes", "dev"), "unknown split 'dev' of the generated data"),
        (("shapes", "testC"), "unknown split 'testC' of the generated data"),
    ],
)
def test_an_unknown_choice_is_refused(arguments: tuple[str, str], named: str) -> None:
    assert named in refusal(lambda: open_split(*arguments))


@pytest.mark.parametrize("batch", [1, 3])
def test_a_sentence_without_words_is_scored_as_cls_and_sep(batch: int, tmp_path: Path) -> None:
    root = Path(shutil.copytree(MINI, tmp_path / "mini"))
    path = root / "refcoco" / "refs(unc).p"
    refs = pickle.loads(path.read_bytes())
    for ref in refs:
        ref["sentences"][0]["raw"] = "  "
    path.write_bytes(pickle.dumps(refs, protocol=2))
    model = load_bundle(write_bundle(tmp_path / "bundle", batch=batch), device="cpu", threads=1)
    evaluate(model, open_split("refcoco", "val", data_root=root), tmp_path / "results.jsonl")
    vocabulary = VOCAB.read_text().split("\n")
    ids, words = np.zeros(WORDS, np.int64), np.zeros(WORDS, np.int64)
    ids[:2], words[:2] = [vocabulary.index("[CLS]"), vocabulary.index("[SEP]")], 1
    counts = counts_in(tmp_path / "results.jsonl")
    blanks = 0
    for ref in RefCOCO(root, split="val"):
        image = np.asarray(ref.image.resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR))
        mask = expected_logits(image, expected_prompt(ids, words), words.astype(np.float32)).argmax(0) == 1
        target = nearest(ref.mask, HEIGHT, WIDTH)
        assert counts[ref.sentence_ids[0]] == (int((mask & target).sum()), int((mask | target).sum()))
        blanks += 1
    assert blanks > 1


def test_a_sentence_that_is_not_unicode_is_named(predictor: BundlePredictor, tmp_path: Path) -> None:
    split = mini("val")
    first = replace(split.sentences[0], text="\ud800")
    message = refusal(lambda: evaluate(predictor, replace(split, sentences=[first]), tmp_path / "results.jsonl"))
    assert f"sentence {first.sentence_id} of ref {first.target.ref_id}: the sentence is not valid Unicode" in message


def test_a_missing_image_is_named_and_what_was_done_is_kept(predictor: BundlePredictor, tmp_path: Path) -> None:
    root = Path(shutil.copytree(MINI, tmp_path / "mini"))
    split = open_split("refcoco", "val", data_root=root)
    missing = split.sentences[3].target.image_path
    missing.rename(missing.with_suffix(".away"))
    path = tmp_path / "results.jsonl"
    with pytest.raises(DatasetError, match=f"{missing.name}: missing, needed by ref 18"):
        evaluate(predictor, split, path)
    missing.with_suffix(".away").rename(missing)
    assert len(lines(path)) == 4
    evaluate(predictor, split, path)
    assert counts_in(path) == expected_counts(MINI, "val")
