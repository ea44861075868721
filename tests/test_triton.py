"""A real Triton that serves what lavt-export triton writes, and reads its configs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier, Event
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import yaml
from lavt_edge.data.shapes.scenes import scene_at
from lavt_edge.errors import ExportError
from lavt_edge.export.triton.repository import TritonOptions, version_of, write_repository
from lavt_edge.runtime.bundle import file_entry, open_bundle
from lavt_edge.runtime.update import update_bundle
from lavt_edge.tests.doc_blocks import PAGES, blocks, promised
from lavt_edge.tests.engine_records import a_record
from lavt_edge.tests.runtime_bundle import CHANNELS, HEIGHT, WIDTH, WORDS, write_bundle
from lavt_edge.tests.triton_requests import BAD, FILE, ONE, encoded
from lavt_edge.tests.triton_server import Environment, Triton, make_environment, serve, texts

SIZES = ((240, 240), (300, 200), (128, 180))
SENTENCES = 20


# the server


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return make_environment(tmp_path_factory.mktemp("triton") / "environment")


Case = tuple[npt.NDArray[np.uint8], str]


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    """Images of several sizes, each with a sentence."""
    found = []
    for i in range(SENTENCES):
        scene = scene_at(3, "val", i, SIZES)
        found.append((np.asarray(scene.render()), scene.sentences()[0].text))
    return found


# In the server's environment, whose numpy need not round as this one's.
_EXPECTED = """
import json, sys, numpy as np
from lavt_edge.runtime import Segmenter
bundle, data = sys.argv[1:]
sentences = json.load(open(data + "/sentences.json"))
with Segmenter.load(bundle, device="cpu") as segmenter, np.load(data + "/images.npz") as images:
    results = [segmenter.segment(images[f"arr_{i}"], text) for i, text in enumerate(sentences)]
np.savez(data + "/masks.npz", *[one.mask for one in results])
np.savez(data + "/scores.npz", np.array([one.score for one in results], np.float32))
"""

Expected = Callable[[Path], tuple[list[npt.NDArray[np.bool_]], npt.NDArray[np.float32]]]


@pytest.fixture(scope="module")
def expected(environment: Environment, cases: list[Case], tmp_path_factory: pytest.TempPathFactory) -> Expected:
    """The masks and scores that `Segmenter.segment` gives for the cases with a bundle."""

    def compute(bundle: Path) -> tuple[list[npt.NDArray[np.bool_]], npt.NDArray[np.float32]]:
        folder = tmp_path_factory.mktemp("expected")
        np.savez(folder / "images.npz", *[image for image, _ in cases])
        (folder / "sentences.json").write_text(json.dumps([text for _, text in cases]))
        environment.run(_EXPECTED, bundle, folder)
        with np.load(folder / "masks.npz") as masks, np.load(folder / "scores.npz") as scores:
            return [masks[f"arr_{i}"] for i in range(len(cases))], scores["arr_0"]

    return compute


@pytest.fixture(scope="module")
def repository(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("repository") / "models"
    for backend in ("python", "onnxruntime"):
        write_repository(demo_bundle, output, TritonOptions(backend))
    return output


@pytest.fixture(scope="module")
def triton(environment: Environment, repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    """A server that has loaded `lavt`; when the tests are done it must end with 0."""
    with serve(environment, repository, tmp_path_factory.mktemp("log") / "triton.log", "lavt") as running:
        yield running


def asked(case: Case, *, as_file: bool = True) -> dict[str, npt.NDArray[Any]]:
    image, sentence = case
    picture = {"image": texts([encoded(image)])} if as_file else {"array": image[None]}
    return {"sentences": texts([sentence]), **picture}


def test_twenty_masks_are_those_of_the_runtime(
    triton: Triton, cases: list[Case], expected: Expected, demo_bundle: Path
) -> None:
    assert triton.ask("GET", "/v2/health/ready").status == 200
    assert triton.ask("GET", "/v2/models/lavt/ready").status == 200
    masks, scores = expected(demo_bundle)
    assert sum(mask.any() for mask in masks) > SENTENCES // 2
    for as_file in (True, False):
        for case, mask, score in zip(cases, masks, scores, strict=True):
            outputs = triton.infer(asked(case, as_file=as_file)).outputs
            assert outputs["masks"].shape == (1, 1, *mask.shape)
            assert np.array_equal(outputs["masks"][0, 0], mask)
            assert outputs["scores"].tolist() == [[score]]


def test_several_images_and_sentences_in_a_request(
    triton: Triton, cases: list[Case], expected: Expected, demo_bundle: Path
) -> None:
    masks, scores = expected(demo_bundle)
    alike = [i for i in range(SENTENCES) if cases[i][0].shape == cases[0][0].shape][:3]
    sentences = [[cases[i][1], "the leftmost circle"] for i in alike]
    request = {"sentences": texts(*sentences), "image": texts(*([encoded(cases[i][0])] for i in alike))}
    outputs = triton.infer(request).outputs
    assert outputs["masks"].shape == (3, 2, *masks[alike[0]].shape)
    for row, i in enumerate(alike):
        assert np.array_equal(outputs["masks"][row, 0], masks[i])
        assert outputs["scores"][row, 0] == scores[i]
    only = triton.infer(request, outputs=[{"name": "scores", "parameters": {"binary_data": True}}]).outputs
    assert only.keys() == {"scores"}
    assert np.array_equal(only["scores"], outputs["scores"])


def executions(triton: Triton) -> tuple[int, int]:
    """How many inferences there were, and in how many calls of `execute`."""
    (stats,) = triton.ask("GET", "/v2/models/lavt/stats").json["model_stats"]
    return stats["inference_count"], stats["execution_count"]


def test_sixteen_clients_at_once_are_batched(
    triton: Triton, cases: list[Case], expected: Expected, demo_bundle: Path
) -> None:
    """Some of them ask what cannot be answered, which is no matter for the others in the same batch."""
    masks, _ = expected(demo_bundle)
    together, before = Barrier(16), executions(triton)

    def ask(i: int) -> None:
        together.wait()
        for turn in range(3):
            case = (i + turn) % SENTENCES
            request = asked(cases[case])
            if i % 4 == 3:
                request["image"] = texts([b"no image"])
                assert "not an image" in triton.infer(request).error
            else:
                assert np.array_equal(triton.infer(request).outputs["masks"][0, 0], masks[case])

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(ask, range(16)))
    inferences, calls = (after - old for after, old in zip(executions(triton), before, strict=True))
    assert inferences == 3 * 16
    assert calls < inferences


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_used_gets_its_line_and_the_server_lives(triton: Triton, case: str) -> None:
    request, says = BAD[case]
    answer = triton.infer(request)
    assert says in answer.error
    assert answer.status == 400
    assert triton.infer({**ONE, **FILE}).status == 200


def test_requests_that_are_none_get_a_line(triton: Triton) -> None:
    path = "/v2/models/lavt/infer"
    for body, header in ((b"", 0), (b"{", None), (b'{"inputs": 3}', None), (b"{}", 1000), (b"\xff" * 1000, 10)):
        assert triton.ask("POST", path, body, header).error
    broken = json.dumps({"inputs": [{"name": "sentences", "shape": [1, 1], "datatype": "BYTES", "data": ["x"]}]})
    assert "give either `image`" in triton.ask("POST", path, broken.encode()).error
    assert triton.infer({**ONE, **FILE}, version=7).error
    assert triton.infer({**ONE, **FILE}, model="other").error
    assert triton.infer({**ONE, **FILE}, outputs=[{"name": "logits"}]).error
    assert triton.infer({**ONE, **FILE}).status == 200


def test_a_new_bundle_is_loaded_while_clients_ask(
    triton: Triton, repository: Path, cases: list[Case], expected: Expected, demo_bundle: Path, tmp_path: Path
) -> None:
    """Every request is answered, with the old bundle's mask or the new one's, and after the load with the new one's."""
    bundle = write_bundle(tmp_path / "other", 3, 0, False)
    old, new = expected(demo_bundle)[0], expected(bundle)[0]
    before, now = (version_of((one / "lavt.json").read_bytes()) for one in (demo_bundle, bundle))
    loaded = Event()

    def keep_asking() -> int:
        asked_for = 0
        while not loaded.is_set():
            mask = triton.infer(asked(cases[0])).outputs["masks"][0, 0]
            assert np.array_equal(mask, old[0]) or np.array_equal(mask, new[0])
            asked_for += 1
        return asked_for

    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(keep_asking)
        try:
            write_repository(bundle, repository, TritonOptions(instances=2))
            assert np.array_equal(triton.infer(asked(cases[1])).outputs["masks"][0, 0], old[1])
            assert triton.load("lavt").status == 200
        finally:
            loaded.set()
        assert asking.result() > 0
    for case, mask in zip(cases, new, strict=True):
        assert np.array_equal(triton.infer(asked(case), version=now).outputs["masks"][0, 0], mask)
    assert triton.infer(asked(cases[0]), version=before).error
    config = triton.ask("GET", "/v2/models/lavt/config").json
    assert (config["max_batch_size"], config["instance_group"][0]["count"]) == (3, 2)

    damaged = repository / "lavt" / str(before) / "bundle" / "segmenter.onnx"
    damaged.unlink()  # a link to the bundle's file
    damaged.write_bytes(b"damaged")
    config_file = repository / "lavt" / "config.pbtxt"
    config_file.write_text(config_file.read_text().replace(str(now), str(before)))
    assert "lavt.json says" in triton.load("lavt").json["error"]
    assert np.array_equal(triton.infer(asked(cases[0])).outputs["masks"][0, 0], new[0])


def test_commands_of_the_page(environment: Environment, demo_bundle: Path, tmp_path: Path) -> None:
    """Those of docs/triton.md that ask a server, at its ports, in order; and the probe of the deployment."""
    page = next(page for page in PAGES if page.name == "triton.md")
    (tmp_path / "photo.jpg").write_bytes(encoded(np.asarray(scene_at(0, "val", 2).render())))
    bundle = write_bundle(tmp_path / "new-bundle", 1, 1, False)
    write_repository(demo_bundle, tmp_path / "models", TritonOptions())
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with serve(environment, tmp_path / "models", tmp_path / "log", "lavt") as triton:

        def at_ports(text: str) -> str:
            for shown, port in ((8000, triton.http), (8001, triton.grpc), (8002, triton.metrics)):
                text = text.replace(f"localhost:{shown}", f"127.0.0.1:{port}")
            return text

        def run(*command: str | Path, **more: Any) -> str:
            done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, **more)
            assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
            return done.stdout

        asked = [block for block in blocks(page) if block.runner == (Path(__file__), "test_commands_of_the_page")]
        assert [block.language for block in asked] == ["python", "sh", "sh"]
        for block in asked:
            text = at_ports(block.text)
            if block.language == "python":
                printed = run(environment.folder / "bin" / "python", "-c", text)
                assert printed.strip() == promised(block)
            else:
                printed = run("bash", "-euc", text, env={**os.environ, "PATH": path})
        version = version_of((bundle / "lavt.json").read_bytes())
        assert f'nv_inference_count{{model="lavt",version="{version}"}} 0' in printed
        (deployment,) = (block.text for block in blocks(page) if block.language == "yaml")
        (container,) = next(iter(yaml.safe_load_all(deployment)))["spec"]["template"]["spec"]["containers"]
        assert triton.ask("GET", container["readinessProbe"]["httpGet"]["path"]).status == 200
        run(*map(at_ports, container["livenessProbe"]["exec"]["command"]))


# the configs


@pytest.mark.parametrize("model", ["lavt_text", "lavt_segmenter"])
def test_the_server_reads_the_configs_of_the_bare_graphs(triton: Triton, repository: Path, model: str) -> None:
    """As far as it goes without their backend: it parses and checks them, and then looks for the backend's library."""
    assert "unable to find backend library for backend 'onnxruntime'" in triton.load(model).json["error"]
    config = repository / model / "config.pbtxt"
    good = config.read_text()
    for old, new, says in (
        ("data_type: TYPE_FP32", "data_type: TYPE_FLOAT", "failed to read text proto"),
        ("max_batch_size: 8", "max_batch_size: -1", "'max_batch_size' must be non-negative"),
    ):
        assert old in good
        config.write_text(good.replace(old, new))
        told = len(triton.log.read_bytes())
        assert triton.load(model).json["error"]
        assert says in triton.log.read_bytes()[told:].decode()
    config.write_text(good)


_PARSED = """
import json, sys
from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2
for path in sys.argv[1:]:
    config = text_format.Parse(open(path).read(), model_config_pb2.ModelConfig())
    print(json.dumps(json_format.MessageToDict(config, preserving_proto_field_name=True)))
"""


def parsed(environment: Environment, *configs: Path) -> list[dict[str, Any]]:
    """What protobuf reads in the files, with Triton's own message."""
    return [json.loads(line) for line in environment.run(_PARSED, *configs).splitlines()]


def tensors(config: dict[str, Any], kind: str) -> dict[str, tuple[str, list[int]]]:
    return {one["name"]: (one["data_type"], list(map(int, one["dims"]))) for one in config[kind]}


@pytest.mark.parametrize(("batch", "shown"), [(None, []), (3, [3])])
def test_configs_say_what_the_manifest_says(
    environment: Environment, tmp_path: Path, batch: int | None, shown: list[int]
) -> None:
    bundle, models = write_bundle(tmp_path / "bundle", batch, 0, False), tmp_path / "models"
    version, names = write_repository(bundle, models, TritonOptions("onnxruntime", instances=2))
    text, image = parsed(environment, *(models / name / "config.pbtxt" for name in names))
    for config, name, file in ((text, "lavt_text", "text_encoder.onnx"), (image, "lavt_segmenter", "segmenter.onnx")):
        assert (config["name"], config["backend"], config["default_model_filename"]) == (name, "onnxruntime", file)
        assert config["version_policy"] == {"specific": {"versions": [str(version)]}}
        assert config["instance_group"] == [{"count": 2}]
        assert config.get("max_batch_size", 0) == (8 if batch is None else 0)
        assert ("dynamic_batching" in config) == (batch is None)
    words = [*shown, WORDS]
    assert tensors(text, "input") == dict.fromkeys(("input_ids", "attention_mask"), ("TYPE_INT64", words))
    assert tensors(text, "output") == {"prompt": ("TYPE_FP32", [*words, CHANNELS])}
    assert tensors(image, "input") == {
        "image": ("TYPE_UINT8", [*shown, HEIGHT, WIDTH, 3]),
        "prompt": ("TYPE_FP32", [*words, CHANNELS]),
        "word_mask": ("TYPE_FP32", words),
    }
    assert tensors(image, "output") == {
        "logits": ("TYPE_FP32", [*shown, 2, HEIGHT, WIDTH]),
        "mask": ("TYPE_UINT8", [*shown, HEIGHT, WIDTH]),
    }


def test_engines_are_served_with_their_own_largest_batch(environment: Environment, tmp_path: Path) -> None:
    bundle, models = write_bundle(tmp_path / "bundle", None, 0, False), tmp_path / "models"
    records = [
        a_record(name="text_encoder.fp16.engine", role="text_encoder", max_batch=1),
        a_record(name="segmenter.rtx.engine", flavor="tensorrt_rtx", gpu=None, compute_capability=None),
        a_record(name="segmenter.int8.engine", precision="int8", max_batch=2),
        a_record(name="segmenter.fp16.engine", max_batch=4),
    ]
    with update_bundle(bundle) as change:
        for record in records:
            change.new(record.name).write_bytes(record.name.encode())
        graph = open_bundle(bundle).manifest.files["segmenter.onnx"].sha256
        entries = {one.name: file_entry(change.path(one.name), "engine", one.precision) for one in records}
        engines = {one.name: {**one.to_dict(), "onnx_sha256": graph} for one in records}
        change.commit(entries, lambda manifest: replace(manifest, engines=engines))
    for chosen, file, largest in (
        (bundle, "segmenter.fp16.engine", 4),
        (bundle / "segmenter.int8.engine", "segmenter.int8.engine", 2),
    ):
        version, names = write_repository(chosen, models, TritonOptions("tensorrt"))
        text, image = parsed(environment, *(models / name / "config.pbtxt" for name in names))
        assert (text["default_model_filename"], text["max_batch_size"]) == ("text_encoder.fp16.engine", 1)
        assert (image["default_model_filename"], image["max_batch_size"]) == (file, largest)
        assert image["instance_group"] == [{"count": 1, "kind": "KIND_GPU"}]
        assert (models / "lavt_segmenter" / str(version) / file).read_bytes() == file.encode()
    with pytest.raises(ExportError, match="not for RTX"):
        write_repository(bundle / "segmenter.rtx.engine", tmp_path / "new", TritonOptions("tensorrt"))


def test_lavt_runs_the_file_that_was_chosen(environment: Environment, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", 3, 0, False)
    write_repository(bundle / "segmenter.onnx", tmp_path / "models", TritonOptions())
    (config,) = parsed(environment, tmp_path / "models" / "lavt" / "config.pbtxt")
    assert config["parameters"] == {"file": {"string_value": "segmenter.onnx"}}
    assert config["max_batch_size"] == 3
    assert tensors(config, "input") == {
        "sentences": ("TYPE_STRING", [-1]),
        "image": ("TYPE_STRING", [1]),
        "array": ("TYPE_UINT8", [-1, -1, 3]),
    }
    assert tensors(config, "output") == {"masks": ("TYPE_BOOL", [-1, -1, -1]), "scores": ("TYPE_FP32", [-1])}
