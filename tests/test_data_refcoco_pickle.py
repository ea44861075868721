"""Pickles that call, import, allocate or are damaged: refused with the project's own error, and nothing is run."""

import codecs
import os
import pickle
import resource
import shutil
import subprocess
import sys
import tracemalloc
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lavt_edge.data import RefCOCO, safe_pickle
from lavt_edge.data.safe_pickle import MAX_BYTES, read_plain_pickle
from lavt_edge.errors import DatasetError
from lavt_edge.tests.hostile_pickles import (
    BOMBS,
    FLAG,
    PAYLOADS,
    Executed,
    Payload,
    nothing_runs,
    pickled,
    pickles_of_python_2,
)

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools, numpy 2

MINI = Path(__file__).parent / "data" / "refer_mini"
REFS = (MINI / "refcoco" / "refs(unc).p").read_bytes()
PYTHON_2 = pickles_of_python_2()


@pytest.fixture(autouse=True)
def nothing_ran() -> Iterator[None]:
    with nothing_runs():
        yield


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "refs.p"


def read(path: Path, data: bytes) -> object:
    path.write_bytes(data)
    return read_plain_pickle(path)


def refusal(path: Path, data: bytes) -> str:
    with pytest.raises(DatasetError) as caught:
        read(path, data)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def plain(value: Any, encoding: str = "utf-8") -> Any:
    """What `pickle` reads, with strings of Python 2 decoded, numpy's numbers as Python's and dicts as dict."""
    if isinstance(value, bytes):
        return value.decode(encoding)
    if isinstance(value, list | tuple):
        return type(value)(plain(inner, encoding) for inner in value)
    if isinstance(value, dict):
        return {plain(key, encoding): plain(inner, encoding) for key, inner in value.items()}
    return value.item() if isinstance(value, np.generic) else value


# Plain data is read.

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.lists(inner).map(tuple),
    max_leaves=30,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(PLAIN, st.sampled_from(range(6)))
def test_plain_data_reads_as_pickle_reads_it(path: Path, value: object, protocol: int) -> None:
    assert read(path, pickle.dumps(value, protocol)) == value


@pytest.mark.parametrize("protocol", range(6))
def test_numpy_numbers_and_ordered_dicts_read_as_plain_ones(path: Path, protocol: int) -> None:
    kinds = (np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64, np.longlong, np.bool_)
    numbers = [kind(value) for kind in kinds for value in (0, 1, 100)] + [np.int64(-(2**60)), np.uint64(2**64 - 1)]
    floats = [np.float16(0.5), np.float32(-1.25), np.float64(1e-300), np.array(7, ">i8")[()]]
    value = [OrderedDict(b=numbers, a=OrderedDict()), OrderedDict(c=floats), numbers]
    data = pickle.dumps(value, protocol)
    assert repr(read(path, data)) == repr(plain(pickle.loads(data)))


@pytest.mark.parametrize("name", [name for name in PYTHON_2 if not name.startswith("refs")])
def test_what_python_2_wrote_reads_as_pickle_reads_it(path: Path, name: str) -> None:
    expected = plain(pickle.loads(PYTHON_2[name], encoding="bytes"), encoding=name.split(".")[0])
    assert expected[0]["raw"] == expected[1]["again"] == "café"
    assert repr(read(path, PYTHON_2[name])) == repr(expected)


def test_a_refs_file_that_python_2_wrote_by_default_opens(tmp_path: Path) -> None:
    root = Path(shutil.copytree(MINI, tmp_path / "mini"))
    assert PYTHON_2["refs.cPickle.0.p"].startswith(b"(lp1\n")
    (root / "refcoco" / "refs(unc).p").write_bytes(PYTHON_2["refs.cPickle.0.p"])
    for split in ("val", "testA", "testB"):
        assert [item.sentences for item in RefCOCO(root, split=split)] == [
            item.sentences for item in RefCOCO(MINI, split=split)
        ]


def test_the_golden_refs_read_as_pickle_reads_them() -> None:
    assert read_plain_pickle(MINI / "refcoco" / "refs(unc).p") == pickle.loads(REFS)


def test_python_2_strings_are_utf8_or_else_latin_1(path: Path) -> None:
    # Python 2's cPickle numbers memo slots from 1 and writes str as SHORT_BINSTRING or BINSTRING.
    data = b"}q\x01(U\x03rawq\x02U\x05caf\xc3\xa9q\x03X\x04\x00\x00\x00sentq\x04T\x04\x00\x00\x00caf\xe9q\x05u"
    assert read(path, pickled(data)) == {"raw": "café", "sent": "café"}


# Code is not.


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "payload",
    [
        *(
            Payload(),
            Executed(),
            os.getcwd,
            Path("x"),
            {1, 2},
            b"bytes",
            b"long" * 99,
            1j,
            codecs.lookup,
            codecs.encode,
        ),
        *(np.zeros(3), np.array([Payload()], object), np.dtype("i8"), np.str_("a"), np.datetime64("2020"), OrderedDict),
    ],
)
def test_objects_other_than_plain_data_are_refused(path: Path, payload: object, protocol: int) -> None:
    message = refusal(path, pickle.dumps([{"ref_id": payload}], protocol))
    assert "other than plain data" in message or "imports or calls code" in message


@pytest.mark.parametrize("payload", PAYLOADS)
def test_every_opcode_that_could_run_something_is_refused(path: Path, payload: bytes) -> None:
    message = refusal(path, pickled(payload))
    assert "other than plain data" in message or "imports or calls code" in message
    assert "refused" in refusal(path, payload + b".")


@pytest.mark.parametrize("data", [b"\x80\x06].", b"{}", b"<!DOCTYPE html>", b"", b"\x00"])
def test_what_is_no_pickle_is_told_so(path: Path, data: bytes) -> None:
    assert "not a pickle of protocol 0 to 5" in refusal(path, data)


@pytest.mark.parametrize("payload", [Payload(), Executed()])
def test_the_payloads_do_run_in_pickle_itself(payload: object) -> None:
    code = "import pickle, subprocess, sys\npickle.load(sys.stdin.buffer)\nsubprocess.run(['printenv', sys.argv[1]])"
    data = pickle.dumps([payload], protocol=2)
    done = subprocess.run([sys.executable, "-c", code, FLAG], input=data, capture_output=True, check=True)
    assert done.stdout.strip() == b"1"


# Nor is what allocates.


def test_a_file_larger_than_any_refs_file_is_not_even_read(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(DatasetError, match="larger than 128 MiB"):
        read_plain_pickle(path)


@pytest.mark.parametrize("bomb", BOMBS)
def test_declared_sizes_allocate_nothing(path: Path, bomb: bytes) -> None:
    path.write_bytes(pickled(bomb))
    tracemalloc.start()
    try:
        with pytest.raises(DatasetError):
            read_plain_pickle(path)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_bombs_are_refused_in_a_process_that_has_no_memory_to_spare(tmp_path: Path) -> None:
    names = []
    for number, bomb in enumerate(BOMBS):
        names.append(tmp_path / f"{number}.p")
        names[-1].write_bytes(pickled(bomb))
    code = (
        "import sys, pathlib, lavt_edge.data.safe_pickle as s, lavt_edge.errors as e\n"
        "for name in sys.argv[1:]:\n"
        "    try: s.read_plain_pickle(pathlib.Path(name))\n"
        "    except e.DatasetError: print('refused')\n"
    )

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (2 * 2**30, 2 * 2**30))

    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, names)],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=limit,
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
    )
    assert done.stdout.split() == ["refused"] * len(BOMBS), done.stderr


def test_exponential_references_cost_their_file_only(path: Path) -> None:
    # Each list holds the one before ten times: 10**60 elements to whoever walks it, sixty lists in memory.
    body = b"]q\x00" + b"".join(
        b"](" + b"h" + bytes([i]) + (b"h" + bytes([i])) * 9 + b"eq" + bytes([i + 1]) for i in range(60)
    )
    assert read(path, pickled(b"(" + body + b"t")) is not None
    shutil.copytree(MINI / "refcoco", path.parent / "refcoco")
    (path.parent / "refcoco" / "refs(unc).p").write_bytes(pickled(b"](" + body + b"e"))
    with pytest.raises(DatasetError, match="not a ref with a split"):
        RefCOCO(path.parent)


def test_one_ref_repeated_a_million_times_is_refused(path: Path) -> None:
    sentence = b"}(U\x03rawU\x01aU\x07sent_idK\x01u"
    sentences = b"](" + sentence + b"q\x01" + b"h\x01" * 9_999 + b"e"
    ref = b"}(U\x06ref_idK\x01U\x06ann_idK\x01U\x08image_idK\x01U\x05splitU\x03valU\x09sentences" + sentences + b"u"
    shutil.copytree(MINI / "refcoco", path.parent / "refcoco")
    refs = path.parent / "refcoco" / "refs(unc).p"
    refs.write_bytes(pickled(b"]q\x00(" + ref + b"q\x02" + b"h\x02" * 500 + b"e"))
    with pytest.raises(DatasetError, match="or too many"):
        RefCOCO(path.parent)
    refs.write_bytes(pickled(b"]q\x00(}q\x01" + b"h\x01" * 1_000_001 + b"e"))
    with pytest.raises(DatasetError, match="at most 1000000 refs"):
        RefCOCO(path.parent)


def test_too_many_containers_are_refused(path: Path) -> None:
    assert "more than 4000000 containers" in refusal(path, pickled(b"]" * 4_000_001))


def test_more_memo_slots_than_a_data_set_takes_are_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safe_pickle, "MAX_MEMO", 3)
    assert read(path, pickled(b"]" + b"\x94" * 3)) == []
    assert "more than 3 memo slots" in refusal(path, pickled(b"]" + b"\x94" * 4))


@pytest.mark.parametrize("step", [b"](", b"\x85", b"a"])
def test_deep_nesting_neither_recurses_nor_crashes(path: Path, step: bytes) -> None:
    depth = 200_000
    bodies = {
        b"](": b"](" * depth + b"e" * depth,
        b"\x85": b"]" + b"\x85" * depth,
        b"a": b"]" * depth + b"a" * (depth - 1),
    }
    value = read(path, pickled(bodies[step]))
    assert isinstance(value, list | tuple)


def test_dict_keys_other_than_text_are_refused(path: Path) -> None:
    # Numbers could be chosen to collide, and a deep tuple's hash would overflow the C stack.
    assert "dict key that is not text" in refusal(path, pickled(b"}K\x01Ns"))
    assert "dict key that is not text" in refusal(path, pickled(b"}]" + b"\x85" * 200_000 + b"Ns"))
    assert "dict key that is not text" in refusal(path, b"(I1\nNd.")
    assert "dict key that is not text" in refusal(path, b"ccollections\nOrderedDict\n(((I1\nNtltR.")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"]]",
        b"(",
        b"]e",
        b"]K\x01u",
        b"K\x01K\x02a",
        b"}(K\x01u",
        b"}Na",
        b"h\x00",
        b"j\x00\x00\x00\x00",
        b"q\x00",
        b"\x94",
        b"U\x05ab",
        b"J\x01\x02",
        b"G\x00",
        b"\x8a\x09\x01",
        b"0",
        b"2",
        b"\xff",
        b"\x85",
        b"](0e",
        b"t",
        b"X\x01\x00\x00\x00\xff",
        b"X\x03\x00\x00\x00\xed\xa0\x80",
        b"\x8c\x03\xed\xa0\x80",
        b"V\\ud800\n",
        b"S'a\n",
        b"Sa\n",
        b"I\n",
        b"I1.5\n",
        b"Fone\n",
        b"p-1\n",
        b"g0\n",
        b"(I1\nd",
        b"R",
        b")R",
        b"b",
        b"ccollections\nOrderedDict\n(I1\ntR",
        b"ccollections\nOrderedDict\n(]I1\natR",
        b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(S'i8'\nI0\nI1\ntRS'short'\ntR",
        b"cnumpy.core.multiarray\nscalar\n(S'i8'\nS'12345678'\ntR",
    ],
)
def test_damaged_opcode_streams_are_refused(path: Path, body: bytes) -> None:
    refusal(path, pickled(body))


def test_a_truncated_pickle_is_refused_wherever_it_is_cut(path: Path) -> None:
    for data in (REFS, PYTHON_2["refs.cPickle.0.p"]):
        for length in range(0, len(data) - 1, 41):
            refusal(path, data[:length])


def test_a_directory_or_a_missing_file_is_refused(tmp_path: Path) -> None:
    for name in (tmp_path, tmp_path / "none"):
        with pytest.raises(DatasetError, match="cannot be read"):
            read_plain_pickle(name)
