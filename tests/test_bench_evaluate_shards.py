"""`lavt-bench --shard` and `--merge`: the row and the file of a run that was never divided, or one line of refusal."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from lavt_edge.benchmarks.evaluation.evaluate import Evaluation, evaluate, merge
from lavt_edge.benchmarks.evaluation.predictors import BundlePredictor, load_bundle
from lavt_edge.data.sentences import Split, open_split
from lavt_edge.data.shapes.write import write_refcoco
from lavt_edge.runtime.prompt import Prompt
from lavt_edge.tests.bench_results import MINI, lines, refusal, stop_after
from lavt_edge.tests.doc_blocks import ROOT, blocks
from lavt_edge.tests.runtime_bundle import write_bundle
from lavt_edge.tests.test_bench_evaluate_command import bench
from lavt_edge.tests.test_data_layouts import ANN_IDS, write

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools, numpy 2


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundles") / "small", batch=None)


@pytest.fixture(scope="module")
def predictor(bundle: Path) -> BundlePredictor:
    return load_bundle(bundle, device="cpu", threads=1)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_refcoco(tmp_path_factory.mktemp("data") / "shapes", seed=3, scenes={"val": 4})


@pytest.fixture(scope="module")
def shapes(root: Path) -> Split:
    return open_split("shapes", "val", data_root=root)


def shards(
    predictor: BundlePredictor, split: Split, folder: Path, count: int, numbers: Sequence[int] = (), **options: Any
) -> list[Path]:
    """The files of the shards `numbers`, or of all."""
    return [
        evaluate(predictor, split, folder / f"{number}-of-{count}.jsonl", shard=(number, count), **options).results
        for number in numbers or range(1, count + 1)
    ]


def of(evaluation: Evaluation) -> tuple[object, ...]:
    return evaluation.title, evaluation.figures, evaluation.kinds, evaluation.published, evaluation.table()


@pytest.mark.parametrize("limit", [None, 18])
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_merged_shards_are_the_whole_run(
    predictor: BundlePredictor, shapes: Split, count: int, limit: int | None, tmp_path: Path
) -> None:
    whole = evaluate(predictor, shapes, tmp_path / "whole.jsonl", limit=limit)
    assert len(lines(whole.results)) - 1 == (limit or len(shapes.sentences))
    files = shards(predictor, shapes, tmp_path, count, limit=limit)
    for seed in range(3):
        random.Random(seed).shuffle(files)
        merged = merge(files, tmp_path / f"merged{seed}.jsonl")
        assert of(merged) == of(whole)
        assert merged.results.read_bytes() == whole.results.read_bytes()
    sizes = [len(lines(file)) - 1 for file in files]
    assert max(sizes) - min(sizes) <= 2 * predictor.batch
    again = evaluate(predictor, shapes, merged.results, limit=limit, progress=stop_after(0))  # nothing is run again
    assert of(again) == of(whole)


def test_a_sentence_is_computed_beside_the_same_ones(
    predictor: BundlePredictor, shapes: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another batch can move a mask's last bits."""
    asked: list[tuple[str, ...]] = []
    masks = predictor.masks

    def spy(images: np.ndarray, prompts: Sequence[Prompt]) -> np.ndarray:
        asked.append(tuple(prompt.sentence for prompt in prompts))
        return masks(images, prompts)

    monkeypatch.setattr(predictor, "masks", spy)
    evaluate(predictor, shapes, tmp_path / "whole.jsonl", limit=30)
    whole, asked = asked, []
    shards(predictor, shapes, tmp_path, 3, limit=30)
    assert asked == whole
    assert len(whole) == 8
    assert {len(rows) for rows in whole} == {predictor.batch} == {4}


def test_a_swapped_split_and_the_published_rows(predictor: BundlePredictor, tmp_path: Path) -> None:
    val = open_split("refcoco", "val", data_root=MINI)
    swapped = open_split("refcoco", "test", data_root=MINI, swap=True)
    for split, published in ((val, True), (swapped, False)):
        folder = tmp_path / split.split
        whole = evaluate(predictor, split, folder / "whole.jsonl")
        merged = merge(shards(predictor, split, folder, 2), folder / "merged.jsonl")
        assert of(merged) == of(whole)
        assert bool(merged.published) is published
        assert merged.results.read_bytes() == whole.results.read_bytes()
    part = evaluate(predictor, val, tmp_path / "1.jsonl", shard=(1, 2))
    assert not part.published
    assert part.title.endswith(", shard 1/2")


def test_no_published_rows_beside_the_demo_model(
    predictor: BundlePredictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predictor, "is_demo", True)
    assert not merge(
        shards(predictor, open_split("refcoco", "val", data_root=MINI), tmp_path, 2), tmp_path / "x"
    ).published


def test_grefcoco_keeps_its_own_figures(predictor: BundlePredictor, tmp_path: Path) -> None:
    root = write(tmp_path, "grefcoco", "images/train2014", ANN_IDS, refs="grefs(unc).p")
    split = open_split("grefcoco", "val", data_root=root)
    whole = evaluate(predictor, split, tmp_path / "whole.jsonl")
    files = shards(predictor, split, tmp_path, 2)
    merged = merge(files, tmp_path / "merged.jsonl")
    np.testing.assert_equal(merged.figures, whole.figures)
    assert merged.header == whole.header
    assert "giou" in merged.figures
    assert merged.results.read_bytes() == whole.results.read_bytes()
    files[0].write_text(files[0].read_text().replace('"no_target": false', '"no_target": null', 1))
    assert "is damaged" in refusal(lambda: merge(files, tmp_path / "x"))


def test_a_shard_that_was_stopped_goes_on(predictor: BundlePredictor, shapes: Split, tmp_path: Path) -> None:
    first, second = shards(predictor, shapes, tmp_path, 2)
    kept = second.read_bytes()
    for path in (second, tmp_path / "new.jsonl"):
        path.unlink(missing_ok=True)
        with pytest.raises(KeyboardInterrupt):
            evaluate(predictor, shapes, path, shard=(2, 2), progress=stop_after(5))
        count = len(kept.splitlines()) - 1
        assert f"{path}: 5 of the shard's {count} sentences; run it again" in refusal(lambda: merge([first, path]))  # noqa: B023
        with path.open("ab") as file:
            file.write(b'{"sentence_id": ')
        assert f"{path}: 5 of the shard's" in refusal(lambda: merge([first, path]))  # noqa: B023
        evaluate(predictor, shapes, path, shard=(2, 2))
        assert path.read_bytes() == kept


def test_a_shard_goes_on_as_itself_alone(predictor: BundlePredictor, shapes: Split, tmp_path: Path) -> None:
    (path,) = shards(predictor, shapes, tmp_path, 3, [2])
    assert "shard.number is 2 there and 3 here" in refusal(lambda: evaluate(predictor, shapes, path, shard=(3, 3)))
    assert "it says more than this" in refusal(lambda: evaluate(predictor, shapes, path))


# what is refused


def changed(path: Path, change: Callable[[dict[str, Any]], object], number: int = 0) -> Path:
    """A copy of a file in which a line is another."""
    content = lines(path)
    change(content[number])
    copy = path.with_name(f"changed-{path.name}")
    copy.write_text("".join(json.dumps(line) + "\n" for line in content))
    return copy


def test_shards_that_do_not_make_the_whole_are_refused(
    predictor: BundlePredictor, shapes: Split, tmp_path: Path
) -> None:
    one, two, three = shards(predictor, shapes, tmp_path, 3)
    assert refusal(lambda: merge([three, one])) == "shard 2/3 is missing; run with --shard 2/3, then merge all"
    assert refusal(lambda: merge([three])) == "shard 1/3 and 1 more are missing; run with --shard 1/3, then merge all"
    assert refusal(lambda: merge([three, one, three])) == f"{three}: shard 3 again, as in {three}; give each shard once"
    twin = changed(two, lambda _: None)
    assert (
        refusal(lambda: merge([one, two, three, twin])) == f"{twin}: shard 2 again, as in {two}; give each shard once"
    )
    (half,) = shards(predictor, shapes, tmp_path, 2, [2])
    assert "2-of-2.jsonl: of another run than " in refusal(lambda: merge([one, half]))
    assert "(shard.of is 2 there and 3 here); merge the shards of one run" in refusal(lambda: merge([one, half]))
    (limited,) = shards(predictor, shapes, tmp_path / "limited", 3, [2], limit=30)
    assert "(shard.sentences is 30 there and" in refusal(lambda: merge([one, limited, three]))
    assert not list(tmp_path.glob("small*"))


def test_shards_of_another_model_or_data_set_are_refused(
    bundle: Path, predictor: BundlePredictor, shapes: Split, tmp_path: Path
) -> None:
    one, two = shards(predictor, shapes, tmp_path, 2)
    model = load_bundle(write_bundle(tmp_path / "other", batch=None, seed=1), device="cpu", threads=1)
    batch = load_bundle(bundle, batch_size=2, device="cpu", threads=1)
    others = {
        "model.checkpoint is": (model, shapes),
        "batch is 2 there and 4 here": (batch, shapes),
        'dataset is "refcoco" there and "shapes" here': (predictor, open_split("refcoco", "test", data_root=MINI)),
        "files.instances.json is": (predictor, replace(shapes, files={**shapes.files, "instances.json": "0" * 64})),
        "swap is true there": (predictor, replace(shapes, swap=True)),
    }
    for number, (expected, (other, split)) in enumerate(others.items()):
        (path,) = shards(other, split, tmp_path / str(number), 2, [2])
        message = refusal(lambda: merge([one, path]))  # noqa: B023
        assert message.startswith(f"{path}: of another run than {one} (")
        assert expected in message
    assert of(merge([two, one], tmp_path / "merged.jsonl"))


@pytest.mark.parametrize(
    ("change", "number", "expected"),
    [
        (lambda line: line.update(union=-1), 3, "line 4 is damaged; run the shard again, with --restart"),
        (lambda line: line.update(iou=0.123), 3, "line 4 is damaged"),
        (lambda line: line.pop("ref_id"), 1, "line 2 is damaged"),
        (lambda line: line.update(predicted=1), 1, "line 2 is damaged"),
        (lambda line: line.pop("shard"), 0, "of a run that was not divided; give the files that --shard wrote"),
        (lambda line: line.update(lavt_bench=2), 0, "not a results file of lavt-bench (lavt_bench is 2, batch 4)"),
        (lambda line: line.update(batch=0), 0, "not a results file of lavt-bench (lavt_bench is 1, batch 0)"),
        (lambda line: line.pop("model"), 0, "not a results file of lavt-bench (Run.model is missing)"),
        (lambda line: line["shard"].update(number="1"), 0, "Run.shard.number: expected a whole number, found '1'"),
        (lambda line: line["shard"].update(number=0), 0, "shard 0/2: give K/N, K from 1 to N"),
        (lambda line: line["shard"].update(of=10**12), 0, f"shard 1/{10**12}: give K/N, K from 1 to N"),
        (lambda line: line["shard"].update(name="../x"), 0, "../x.shapes.val.jsonl: not the name of a file; name one"),
    ],
)
def test_a_damaged_shard_is_refused(
    predictor: BundlePredictor,
    shapes: Split,
    change: Callable[[dict[str, Any]], object],
    number: int,
    expected: str,
    tmp_path: Path,
) -> None:
    files = [changed(path, change, number) for path in shards(predictor, shapes, tmp_path, 2, limit=8)]
    assert expected in refusal(lambda: merge(files))
    assert len(list(tmp_path.iterdir())) == 4
    assert not (tmp_path.parent / "x.shapes.val.jsonl").exists()


def test_what_is_no_shard_is_refused(predictor: BundlePredictor, shapes: Split, tmp_path: Path) -> None:
    (path,) = shards(predictor, shapes, tmp_path, 1, limit=4)
    longer = tmp_path / "longer.jsonl"
    longer.write_bytes(path.read_bytes() + path.read_bytes().splitlines(keepends=True)[-1])
    assert f"{longer}: line 6 is damaged" in refusal(lambda: merge([longer]))
    for content in (b"", b"{", b"[]\n", b"\xff\xfe\n", b"[" * 100_000):
        longer.write_bytes(content)
        assert f"{longer}: not a results file of lavt-bench (" in refusal(lambda: merge([longer]))
    assert "none.jsonl: cannot be read (No such file or directory)" in refusal(lambda: merge([tmp_path / "none.jsonl"]))


def test_other_results_are_not_written_over(predictor: BundlePredictor, shapes: Split, tmp_path: Path) -> None:
    files, path = shards(predictor, shapes, tmp_path, 2), tmp_path / "merged.jsonl"
    whole = merge(files, path).results.read_bytes()
    for begun in (b"", whole[:-7], whole):  # a run of the whole that was stopped
        path.write_bytes(begun)
        assert merge(files, path).results.read_bytes() == whole
    for other in (b"notes\n", whole + b"{}\n"):
        path.write_bytes(other)
        assert "holds something else than these shards" in refusal(lambda: merge(files, path))
        assert path.read_bytes() == other
        assert merge(files, path, restart=True).results.read_bytes() == whole
    kept = files[0].read_bytes()
    assert "holds something else" in refusal(lambda: merge(files, files[0]))
    assert files[0].read_bytes() == kept


def test_more_shards_than_batches_are_refused(predictor: BundlePredictor, shapes: Split, tmp_path: Path) -> None:
    for shard in ((1, 4), (4, 3), (0, 3)):
        message = refusal(lambda: evaluate(predictor, shapes, tmp_path / "x", limit=12, shard=shard))  # noqa: B023
        assert message == f"shard {shard[0]}/{shard[1]}: give K/N, K from 1 to N, N up to 3 batches"
    assert list(tmp_path.iterdir()) == []


# the command


def test_the_command_merges_what_it_divided(bundle: Path, root: Path, tmp_path: Path) -> None:
    command = ("--engine", bundle, "--dataset", "shapes", "--data-root", root, "--device", "cpu", "--limit", "20")
    whole = bench(*command, cwd=tmp_path)
    name = "small.fp32.shapes.val"
    kept = (tmp_path / f"{name}.jsonl").read_bytes()
    (tmp_path / f"{name}.jsonl").unlink()
    for shard in ("2/2", "1/2"):
        done = bench(*command, "--shard", shard, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        assert f"small.fp32 on shapes.val, 32x24, shard {shard}" in done.stdout
    files = [f"{name}.{number}-of-2.jsonl" for number in (2, 1)]
    merged = bench("--merge", *files, cwd=tmp_path)
    assert (merged.returncode, merged.stderr) == (0, "")
    assert merged.stdout == whole.stdout
    assert (tmp_path / f"{name}.jsonl").read_bytes() == kept
    refused = bench("--merge", files[0], cwd=tmp_path)
    assert refused.returncode == 1
    assert refused.stderr == "error: shard 1/2 is missing; run with --shard 1/2, then merge all\n"


RAY = """
def init(address): ...
def remote(num_cpus):
    def of(function):
        function.remote = function
        return function
    return of
def get(results): ...
"""


def test_the_examples_for_clusters_end_as_the_whole_run(tmp_path: Path) -> None:
    """As each scheduler would start them: Slurm and Kubernetes by their variables, Ray by its interface."""
    write_bundle(tmp_path / "bundle")
    write_refcoco(tmp_path / "ROOT", seed=3, scenes={"val": 1})
    (tmp_path / "ray.py").write_text(RAY)
    data = ("--dataset", "refcoco", "--data-root", "ROOT", "--device", "cpu")
    whole = bench("--engine", "bundle", *data, "--results", "whole", cwd=tmp_path)
    page = [block for block in blocks(ROOT / "docs" / "measuring.md") if "/shared/evaluation" in block.text]
    slurm, ray, kubernetes = (block.text.replace("/shared/evaluation", str(tmp_path)) for block in page)
    assert "#SBATCH --array=1-4" in slurm
    job = yaml.safe_load(kubernetes)["spec"]
    assert (job["completionMode"], job["completions"]) == ("Indexed", 4)
    (container,) = job["template"]["spec"]["containers"]
    in_pod = [*container["command"], *container["args"]]
    starts: dict[str, list[tuple[list[str], dict[str, str]]]] = {
        "slurm": [
            (["bash", "-eu", "-c", slurm], {"SLURM_ARRAY_TASK_ID": str(number), "SLURM_CPUS_PER_TASK": "2"})
            for number in range(1, 5)
        ],
        "ray": [([sys.executable, "-c", ray], {})],
        "kubernetes": [(in_pod, {"JOB_COMPLETION_INDEX": str(number)}) for number in range(4)],
    }
    for name, commands in starts.items():
        for command, variables in commands:
            path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
            subprocess.run(command, cwd=tmp_path, env={**os.environ, "PATH": path, **variables}, check=True)
        files = sorted((tmp_path / "shards").iterdir())
        assert len(files) == 4
        merged = bench("--merge", *files, "--results", name, cwd=tmp_path)
        assert merged.stdout == whole.stdout.replace("result: whole", f"result: {name}")
        assert (tmp_path / name).read_bytes() == (tmp_path / "whole").read_bytes()
        shutil.rmtree(tmp_path / "shards")
