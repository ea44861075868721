"""`lavt-bench --dataset`: the paper's row of a bundle and of the reference, and runs that were stopped half-way."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lavt_edge.benchmarks import generated
from lavt_edge.benchmarks.accuracy import ReferringMetrics
from lavt_edge.benchmarks.evaluate import HEADER, Evaluation, evaluate
from lavt_edge.benchmarks.predictors import BundlePredictor, load_bundle, object_masks
from lavt_edge.benchmarks.reference_predictor import ReferencePredictor, load_reference
from lavt_edge.benchmarks.sentences import Split, open_split
from lavt_edge.data import RefCOCO
from lavt_edge.data.shapes import KINDS, VOCABULARY
from lavt_edge.data.shapes_write import write_refcoco
from lavt_edge.errors import BackendError, DatasetError, LavtError
from lavt_edge.reference import LAVT, LAVTConfig, TextConfig
from lavt_edge.runtime.tokenizer import SentenceTokenizer, build_tokenizer
from lavt_edge.tests.runtime_bundle import HEIGHT, VOCAB, WIDTH, WORDS, expected_logits, expected_prompt, write_bundle
from PIL import Image

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools, numpy 2

MINI = Path(__file__).parent / "data" / "refer_mini"
Progress = Callable[[int, int], None]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundles") / "small")


@pytest.fixture(scope="module")
def predictor(bundle: Path) -> BundlePredictor:
    return load_bundle(bundle, device="cpu", threads=1)


@pytest.fixture(scope="module")
def shapes_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_refcoco(tmp_path_factory.mktemp("data") / "shapes", seed=3, scenes={"val": 4})


def mini(split: str = "test", **options: Any) -> Split:
    return open_split("refcoco", split, data_root=MINI, **options)


def nearest(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    return np.asarray(Image.fromarray(np.uint8(255) * mask).resize((width, height), Image.Resampling.NEAREST)) == 255


def expected_counts(root: Path, split: str) -> dict[int, tuple[int, int]]:
    """(intersection, union) by sentence, from the fake model's arithmetic in numpy."""
    tokenizer = SentenceTokenizer(build_tokenizer(VOCAB), WORDS)
    counts = {}
    for ref in RefCOCO(root, split=split):
        image = np.asarray(ref.image.resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR))
        target = nearest(ref.mask, HEIGHT, WIDTH)
        for sentence_id, text in zip(ref.sentence_ids, ref.sentences, strict=True):
            ids, words, _ = tokenizer.encode(text)
            mask = expected_logits(image, expected_prompt(ids, words), words.astype(np.float32)).argmax(0) == 1
            counts[sentence_id] = (int((mask & target).sum()), int((mask | target).sum()))
    return counts


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def counts_in(path: Path) -> dict[int, tuple[int, int]]:
    return {line["sentence_id"]: (line["intersection"], line["union"]) for line in lines(path)[1:]}


def refusal(action: Callable[[], object]) -> str:
    with pytest.raises(LavtError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    return message


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


def stop_after(count: int) -> Progress:
    def progress(done: int, total: int) -> None:
        if done == count:
            raise KeyboardInterrupt

    return progress


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
        "from lavt_edge.benchmarks.evaluate import evaluate\n"
        "from lavt_edge.benchmarks.predictors import load_bundle\n"
        "from lavt_edge.benchmarks.sentences import open_split\n"
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
    broken = BundlePredictor(predictor._segmenter)
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
    predictor: BundlePredictor, shapes_root: Path, tmp_path: Path
) -> None:
    def published(split: Split, name: str) -> list[tuple[str, ...]]:
        table = evaluate(predictor, split, tmp_path / name, limit=2).table()
        assert {len(row) for row in table} == {len(HEADER)}
        return [row[:4] for row in table if row[0].startswith("paper")]

    rows = [("paper, lavt base", "", "74.46", "72.73"), ("paper, lavt_one base", "", "75.41", "73.50")]
    assert published(mini("val"), "val") == rows
    assert published(mini("testA"), "testA") == []
    assert published(mini("testA", swap=True), "swap") == []
    assert published(open_split("refcoco", "val", data_root=shapes_root), "generated") == []


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
        (("refclef", "val"), "'refclef'; choose one of shapes, refcoco, refcoco+, refcocog"),
        (("refcoco", "val"), "refcoco needs --data-root"),
        (("shapes", "dev"), "unknown split 'dev' of the generated data"),
        (("shapes", "testC"), "unknown split 'testC' of the generated data"),
    ],
)
def test_an_unknown_choice_is_refused(arguments: tuple[str, str], named: str) -> None:
    assert named in refusal(lambda: open_split(*arguments))


def test_a_sentence_without_words_is_named(predictor: BundlePredictor, tmp_path: Path) -> None:
    root = Path(shutil.copytree(MINI, tmp_path / "mini"))
    path = root / "refcoco" / "refs(unc).p"
    refs = pickle.loads(path.read_bytes())
    for ref in refs:
        ref["sentences"][0]["raw"] = "  "
    path.write_bytes(pickle.dumps(refs, protocol=2))
    split = open_split("refcoco", "val", data_root=root)
    message = refusal(lambda: evaluate(predictor, split, tmp_path / "results.jsonl"))
    assert "sentence 2 of ref 2: the sentence is empty" in message


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


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(generated, "DEFAULT_SCENES", {"train": 3, "val": 2, "testA": 1, "testB": 1})
    return tmp_path / "cache" / "lavt-edge"


def test_generated_data_is_written_once_and_reused(cache: Path) -> None:
    written: list[tuple[int, int]] = []
    first = open_split("shapes", "val", progress=lambda done, total: written.append((done, total)))
    assert written == [(1, 2), (2, 2)]
    (folder,) = cache.iterdir()
    assert folder.name == f"shapes-{generated.generator_version()}-seed0-val"
    again = open_split("shapes", "val", progress=lambda done, total: pytest.fail("written twice"))
    assert again.describe() == first.describe()
    assert {one.target.image_id for one in open_split("shapes", "test").sentences} == {
        one.target.image_id for split in ("testA", "testB") for one in open_split("shapes", split).sentences
    }


def test_generated_data_is_made_anew_when_the_generator_changes(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_split("shapes", "val")
    monkeypatch.setattr(generated, "__version__", "another")
    open_split("shapes", "val")
    assert len(list(cache.iterdir())) == 2


def test_generated_data_that_was_not_finished_leaves_nothing(cache: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        open_split("shapes", "val", progress=stop_after(1))
    assert list(cache.iterdir()) == []
    open_split("shapes", "val")


def test_two_first_runs_at_once_share_the_generated_data(cache: Path) -> None:
    """The second finishes while the first still writes."""

    def progress(done: int, total: int) -> None:
        if done == 1:
            open_split("shapes", "val")

    assert open_split("shapes", "val", progress=progress).sentences
    assert len(list(cache.iterdir())) == 1


def test_a_cache_that_cannot_be_written_says_what_to_do(cache: Path) -> None:
    cache.parent.touch()
    assert "set XDG_CACHE_HOME" in refusal(lambda: open_split("shapes", "val"))


def test_the_cache_follows_the_xdg_specification(monkeypatch: pytest.MonkeyPatch) -> None:
    for ignored in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert generated.cache_folder() == Path.home() / ".cache" / "lavt-edge"


@pytest.fixture(scope="module")
def small_lavt() -> LAVT:
    torch.manual_seed(0)
    text = TextConfig(len(VOCABULARY), 32, num_layers=1, num_heads=2, intermediate_size=32, max_positions=20)
    model = LAVT(LAVTConfig(swin="demo", window=4, text=text, variant="lavt_one")).eval()
    with torch.no_grad():  # an untrained model's masks are nearly empty
        model.classifier.conv1_1.bias.zero_()
        model.classifier.conv1_1.weight.mul_(10)
    return model


def test_the_reference_gives_what_the_model_itself_computes(
    small_lavt: LAVT, shapes_root: Path, tmp_path: Path
) -> None:
    split = open_split("shapes", "val", data_root=shapes_root)
    predictors = [
        ReferencePredictor(small_lavt, VOCABULARY, (64, 80), checkpoint="0" * 64, batch=batch) for batch in (1, 3)
    ]
    found: list[Evaluation] = [evaluate(one, split, tmp_path / f"{one.batch}.jsonl", limit=8) for one in predictors]
    tokenizer = build_tokenizer(VOCABULARY)
    expected = {}
    for one in split.sentences[:8]:
        resized = one.target.image.resize((80, 64), Image.Resampling.BILINEAR)
        pixels = (np.asarray(resized) / 255.0 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
        ids = tokenizer.encode(one.text).ids
        padding = [0] * (20 - len(ids))
        with torch.inference_mode():
            logits = small_lavt(
                torch.tensor(pixels.transpose(2, 0, 1)[None], dtype=torch.float32),
                torch.tensor([ids + padding]),
                torch.tensor([[1] * len(ids) + padding]),
            )
        mask = logits[0].argmax(0).numpy() == 1
        target = nearest(one.target.mask, 64, 80)
        expected[one.sentence_id] = (int((mask & target).sum()), int((mask | target).sum()))
    assert len({union for _, union in expected.values()}) > 2
    for name in ("1.jsonl", "3.jsonl"):
        for sentence_id, (intersection, union) in counts_in(tmp_path / name).items():
            # A pixel on the border of the classes may fall to either side in float32.
            assert intersection == pytest.approx(expected[sentence_id][0], abs=2)
            assert union == pytest.approx(expected[sentence_id][1], abs=2)
    assert found[0].figures["mean_iou"] == pytest.approx(found[1].figures["mean_iou"], abs=0.05)
    assert lines(tmp_path / "1.jsonl")[0]["model"]["runtime"] == "pytorch cpu"


def test_pytorch_and_the_bundle_give_the_same_row(demo_bundle: Path, shapes_root: Path, tmp_path: Path) -> None:
    split = open_split("shapes", "val", data_root=shapes_root)
    predictors = (load_bundle(demo_bundle, device="cpu", threads=1), load_reference("demo", device="cpu"))
    on_runtime, in_pytorch = (evaluate(one, split, tmp_path / one.name, limit=24).figures for one in predictors)
    assert on_runtime["sentences"] == 24
    assert on_runtime == pytest.approx(in_pytorch, abs=0.05)


def bench(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [Path(sys.executable).with_name("lavt-bench"), *arguments]
    environment = {**os.environ, "XDG_CACHE_HOME": str(cwd / "cache")}
    return subprocess.run([str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True)


def test_the_command_ends_with_the_row_and_the_published_ones(bundle: Path, tmp_path: Path) -> None:
    command = ("--engine", bundle / "segmenter.onnx", "--dataset", "refcoco", "--data-root", MINI, "--device", "cpu")
    done = bench(*command, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    results = tmp_path / "small.fp32.refcoco-unc.val.jsonl"
    metrics = ReferringMetrics()
    for counts in expected_counts(MINI, "val").values():
        metrics.add(*counts)
    figures = [f"{value:.2f}" for value in metrics.compute().values()][1:]
    (row,) = [line for line in done.stdout.splitlines() if " all " in line]
    assert row.split() == ["all", "5", *figures]
    assert "paper, lavt_one base" in done.stdout
    assert results.name in done.stdout
    kept = results.read_bytes()
    assert bench(*command, cwd=tmp_path).stdout == done.stdout
    assert results.read_bytes() == kept

    control = bench(*command, "--split", "test", "--swap", cwd=tmp_path)
    assert "with the words of another object" in control.stdout
    assert (tmp_path / "small.fp32.refcoco-unc.test.swapped.jsonl").exists()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ((), "--engine is missing"),
        (("--checkpoint", "demo"), "--checkpoint measures accuracy; name a data set with --dataset"),
        (("--engine", "x", "--limit", "3"), "--limit measures accuracy"),
        (("--dataset", "shapes", "--rounds", "3"), "--rounds measures latency"),
        (("--engine", "x", "--dataset", "shapes", "--image-size", "96"), "--image-size is for a checkpoint"),
        (("--engine", "x", "--checkpoint", "y", "--dataset", "shapes"), "--checkpoint is for a checkpoint"),
        (("--engine", "x", "--dataset", "refcoco"), "refcoco needs --data-root"),
        (("--engine", "x", "--dataset", "refcoco", "--data-root", str(MINI)), "no such bundle: x"),
        (("--checkpoint", "x.pth", "--dataset", "refcoco", "--data-root", str(MINI)), "x.pth: no such file"),
        (("--dataset", "refcoco", "--data-root", str(MINI), "--image-size", "big"), "--image-size 'big'"),
    ],
)
def test_a_wrong_combination_ends_in_one_line(
    options: tuple[str, ...], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    from lavt_edge.cli import bench_main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lavt-bench", *options])
    with pytest.raises(SystemExit) as caught:
        bench_main()
    assert caught.value.code == 1
    shown = capsys.readouterr()
    assert shown.err.count("\n") == 1
    assert named in shown.err
    assert list(tmp_path.iterdir()) == []
