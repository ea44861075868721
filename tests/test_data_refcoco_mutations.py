"""Files damaged at random are read or refused: 1,600 of the refs, 600 opcode streams, 800 of the annotations.

The refs are in all six protocols, with ids of numpy and OrderedDicts, and as Python 2 wrote them.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lavt_edge.data import RefCOCO
from lavt_edge.data.safe_pickle import read_plain_pickle
from lavt_edge.errors import DatasetError
from lavt_edge.tests.hostile_pickles import BOMBS, FLAG, PAYLOADS, nothing_runs, pickles_of_python_2

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools, numpy 2

MINI = Path(__file__).parent / "data" / "refer_mini"
REFS = (MINI / "refcoco" / "refs(unc).p").read_bytes()
VALUE = pickle.loads(REFS)
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
        b"I1\n",
        b"S'raw'\n",
        b"Va\n",
        b"p0\n",
        b"g0\n",
        b"l",
        b"d",
        b"R",
        b"b",
        b"ccollections\nOrderedDict\n",
        b"cnumpy.core.multiarray\nscalar\n",
        b"cnumpy\ndtype\n(S'i8'\nI0\nI1\ntR",
    ]
)


def with_numpy(value: Any) -> Any:
    """Refs with what scripts of today put in them."""
    if isinstance(value, dict):
        return OrderedDict((key, with_numpy(inner)) for key, inner in value.items())
    if isinstance(value, list):
        return [with_numpy(inner) for inner in value]
    return np.int64(value) if isinstance(value, int) else value


FORMS = [pickle.dumps(refs, protocol) for refs in (VALUE, with_numpy(VALUE)) for protocol in range(6)]
FORMS += [data for name, data in pickles_of_python_2().items() if name.startswith("refs")]


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


@pytest.mark.parametrize("refs", FORMS, ids=[f"{form[:2]!r}" for form in FORMS])
def test_the_forms_that_are_mutated_are_read_alike(whole: Path, refs: bytes) -> None:
    path = whole / "refcoco" / "refs(unc).p"
    path.write_bytes(refs)
    assert read_plain_pickle(path) == VALUE


@settings(MANY, max_examples=1600)
@given(st.sampled_from(FORMS), st.lists(EDIT, min_size=1, max_size=4))
def test_mutated_refs_are_read_or_refused_and_run_nothing(
    whole: Path, refs: bytes, edits: list[tuple[str, float, int, bytes]]
) -> None:
    (whole / "refcoco" / "refs(unc).p").write_bytes(mutate(refs, edits))
    open_and_use(whole)
    assert FLAG not in os.environ


@settings(MANY, max_examples=600)
@given(st.sampled_from([b"", *(b"\x80" + bytes([protocol]) for protocol in range(6))]), st.lists(OPCODES | SNIPPETS))
def test_crafted_opcode_streams_are_read_or_refused_and_run_nothing(
    whole: Path, start: bytes, stream: list[bytes]
) -> None:
    (whole / "refcoco" / "refs(unc).p").write_bytes(start + b"".join(stream[:30]) + b".")
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
