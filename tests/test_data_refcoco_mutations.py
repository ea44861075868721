"""Files damaged at random are read or refused: 1,600 of the refs, 600 opcode streams, 800 of the annotations."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lavt_edge.data import RefCOCO
from lavt_edge.errors import DatasetError
from lavt_edge.tests.hostile_pickles import BOMBS, FLAG, PAYLOADS, nothing_runs, pickled

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools, numpy 2

MINI = Path(__file__).parent / "data" / "refer_mini"
REFS = (MINI / "refcoco" / "refs(unc).p").read_bytes()
INSTANCES = (MINI / "refcoco" / "instances.json").read_bytes()


@pytest.fixture(autouse=True)
def nothing_ran() -> Iterator[None]:
    with nothing_runs():
        yield


POSITION = st.floats(0, 1, exclude_max=True)
SNIPPETS = st.sampled_from(PAYLOADS + BOMBS) | st.binary(min_size=1, max_size=8)
EDIT = st.tuples(
    st.sampled_from(["replace", "insert", "delete", "cut", "repeat"]), POSITION, st.integers(1, 40), SNIPPETS
)
OPCODES = st.sampled_from([bytes([code]) for code in range(256)]) | st.sampled_from(
    [
        b"]",
        b"}",
        b"(",
        b"e",
        b"a",
        b"s",
        b"u",
        b"K\x01",
        b"U\x03raw",
        b"q\x00",
        b"h\x00",
        b"\x94",
        b"\x85",
        b"t",
        b"0",
        b"N",
    ]
)


def mutate(data: bytes, edits: list[tuple[str, float, int, bytes]]) -> bytes:
    for kind, position, length, snippet in edits:
        at = int(position * len(data))
        if kind == "replace":
            data = data[:at] + snippet + data[at + len(snippet) :]
        elif kind == "insert":
            data = data[:at] + snippet + data[at:]
        elif kind == "delete":
            data = data[:at] + data[at + length :]
        elif kind == "cut":
            data = data[:at]
        else:
            data = data[: at + length] + data[at:]
    return data


def open_and_use(root: Path) -> None:
    """Opens the data set and uses what is in it; anything but the project's own error fails the test."""
    try:
        for split in ("val", "testA"):
            for item in RefCOCO(root, split=split):
                assert all(isinstance(sentence, str) for sentence in item.sentences)
                assert item.mask.dtype == bool
                assert item.image.mode == "RGB"
    except DatasetError as error:
        assert "\n" not in str(error)  # noqa: PT017


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(MINI, tmp_path_factory.mktemp("mutated") / "mini"))


@pytest.fixture
def whole(root: Path) -> Path:
    (root / "refcoco" / "refs(unc).p").write_bytes(REFS)
    (root / "refcoco" / "instances.json").write_bytes(INSTANCES)
    return root


MANY = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@settings(MANY, max_examples=1600)
@given(st.lists(EDIT, min_size=1, max_size=4))
def test_mutated_refs_are_read_or_refused_and_run_nothing(
    whole: Path, edits: list[tuple[str, float, int, bytes]]
) -> None:
    (whole / "refcoco" / "refs(unc).p").write_bytes(mutate(REFS, edits))
    open_and_use(whole)
    assert FLAG not in os.environ


@settings(MANY, max_examples=600)
@given(st.lists(OPCODES | SNIPPETS, max_size=30))
def test_crafted_opcode_streams_are_read_or_refused_and_run_nothing(whole: Path, stream: list[bytes]) -> None:
    (whole / "refcoco" / "refs(unc).p").write_bytes(pickled(b"".join(stream)))
    open_and_use(whole)
    assert FLAG not in os.environ


JSON_SNIPPETS = st.sampled_from(
    [
        b"1e999",
        b"NaN",
        b"-Infinity",
        b"null",
        b"[[]]",
        b'{"size":[9,9],"counts":"o"}',
        b"[" * 20_000,
        b"9" * 5_000,
        b'"',
        b"-1e8",
    ]
) | st.binary(min_size=1, max_size=3)
JSON_EDIT = st.tuples(
    st.sampled_from(["replace", "insert", "delete", "cut", "repeat"]), POSITION, st.integers(1, 40), JSON_SNIPPETS
)


@settings(MANY, max_examples=600)
@given(st.lists(JSON_EDIT, min_size=1, max_size=3))
def test_mutated_annotations_are_read_or_refused(whole: Path, edits: list[tuple[str, float, int, bytes]]) -> None:
    (whole / "refcoco" / "instances.json").write_bytes(mutate(INSTANCES, edits))
    open_and_use(whole)


VALUES = st.sampled_from(
    [None, -1, 0, 2**63, 1e308, float("nan"), "", "x", [], {}, [[]], [[1, 2, 3]], [[1e9] * 6], True]
)


@settings(MANY, max_examples=200)
@given(st.sampled_from(["images", "annotations"]), st.integers(0, 9), st.data(), VALUES)
def test_annotations_with_wrong_values_are_read_or_refused(
    whole: Path, section: str, position: int, data: st.DataObject, value: object
) -> None:
    content = json.loads(INSTANCES)
    record = content[section][position]
    record[data.draw(st.sampled_from(sorted(record)))] = value
    (whole / "refcoco" / "instances.json").write_text(json.dumps(content))
    open_and_use(whole)
