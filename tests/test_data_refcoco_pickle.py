"""Pickles that call, import, allocate or are damaged: refused with the project's own error, and nothing is run."""

import codecs
import os
import pickle
import resource
import shutil
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lavt_edge.data import RefCOCO, safe_pickle
from lavt_edge.data.safe_pickle import MAX_BYTES, read_plain_pickle
from lavt_edge.errors import DatasetError
from lavt_edge.tests.hostile_pickles import BOMBS, FLAG, PAYLOADS, Executed, Payload, nothing_runs, pickled

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools, numpy 2

MINI = Path(__file__).parent / "data" / "refer_mini"
REFS = (MINI / "refcoco" / "refs(unc).p").read_bytes()


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


# Plain data is read.

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.lists(inner).map(tuple),
    max_leaves=30,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(PLAIN, st.sampled_from([2, 3, 4, 5]))
def test_plain_data_reads_as_pickle_reads_it(path: Path, value: object, protocol: int) -> None:
    assert read(path, pickle.dumps(value, protocol)) == value


def test_the_golden_refs_read_as_pickle_reads_them() -> None:
    assert read_plain_pickle(MINI / "refcoco" / "refs(unc).p") == pickle.loads(REFS)


def test_python_2_strings_are_utf8_or_else_latin_1(path: Path) -> None:
    # Python 2's cPickle numbers memo slots from 1 and writes str as SHORT_BINSTRING or BINSTRING.
    data = b"}q\x01(U\x03rawq\x02U\x05caf\xc3\xa9q\x03X\x04\x00\x00\x00sentq\x04T\x04\x00\x00\x00caf\xe9q\x05u"
    assert read(path, pickled(data)) == {"raw": "café", "sent": "café"}


def test_a_python_2_refs_file_opens(tmp_path: Path) -> None:
    root = Path(shutil.copytree(MINI, tmp_path / "mini"))
    short_strings = bytearray()
    at = 0
    while (found := REFS.find(b"X", at)) >= 0:  # BINUNICODE, length, text -> SHORT_BINSTRING, length, text
        (length,) = struct.unpack_from("<I", REFS, found + 1) if found + 5 <= len(REFS) else (2**32,)
        if length > 255:
            short_strings += REFS[at : found + 1]
            at = found + 1
            continue
        short_strings += REFS[at:found] + b"U" + bytes([length]) + REFS[found + 5 : found + 5 + length]
        at = found + 5 + length
    short_strings += REFS[at:]
    assert short_strings.count(b"X") < 5
    (root / "refcoco" / "refs(unc).p").write_bytes(short_strings)
    assert [item.sentences for item in RefCOCO(root)] == [item.sentences for item in RefCOCO(MINI)]


# Code is not.


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("payload", [Payload(), Executed(), os.getcwd, Path("x"), {1, 2}, b"bytes", 1j, codecs.lookup])
def test_objects_other_than_plain_data_are_refused(path: Path, payload: object, protocol: int) -> None:
    message = refusal(path, pickle.dumps([{"ref_id": payload}], protocol))
    assert "other than plain data" in message or "imports or calls code" in message


@pytest.mark.parametrize("payload", PAYLOADS)
def test_every_opcode_that_could_run_something_is_refused(path: Path, payload: bytes) -> None:
    assert "opcode " in refusal(path, pickled(payload))


@pytest.mark.parametrize("protocol", [0, 1])
def test_other_protocols_are_refused(path: Path, protocol: int) -> None:
    assert "not a pickle of protocol 2 to 5" in refusal(path, pickle.dumps([{"a": 1}], protocol))
    assert "not a pickle" in refusal(path, b"\x80\x06].")
    assert "not a pickle" in refusal(path, b"{}")


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
    assert "more than 2000000 containers" in refusal(path, pickled(b"]" * 2_000_001))


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
    ],
)
def test_damaged_opcode_streams_are_refused(path: Path, body: bytes) -> None:
    refusal(path, pickled(body))


def test_a_truncated_pickle_is_refused_wherever_it_is_cut(path: Path) -> None:
    for length in range(0, len(REFS), 41):
        refusal(path, REFS[:length])


def test_a_directory_or_a_missing_file_is_refused(tmp_path: Path) -> None:
    for name in (tmp_path, tmp_path / "none"):
        with pytest.raises(DatasetError, match="cannot be read"):
            read_plain_pickle(name)
