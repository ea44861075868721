"""Pickles that call, import, allocate or are damaged: refused with the project's own error, and nothing is run."""

import builtins
import codecs
import json
import os
import pickle
import resource
import shutil
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lavt_edge.data import RefCOCO
from lavt_edge.data.safe_pickle import MAX_BYTES, read_plain_pickle
from lavt_edge.errors import DatasetError

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools, numpy 2

MINI = Path(__file__).parent / "data" / "refer_mini"
REFS = (MINI / "refcoco" / "refs(unc).p").read_bytes()
INSTANCES = (MINI / "refcoco" / "instances.json").read_bytes()
FLAG = "LAVT_TEST_PAYLOAD_RAN"


class Payload:
    """Sets an environment variable when a real unpickler meets it."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.putenv, (FLAG, "1")


class Executed:
    """Runs source code when a real unpickler meets it."""

    def __reduce__(self) -> tuple[object, ...]:
        return builtins.exec, (f"import os; os.environ['{FLAG}'] = '1'",)


EXEC_SOURCE = f"import os; os.environ['{FLAG}'] = '1'".encode()
PAYLOADS = [
    b"cbuiltins\nexec\n(U" + bytes([len(EXEC_SOURCE)]) + EXEC_SOURCE + b"tR",
    b"(ibuiltins\nexec\n",
    b"(cbuiltins\nexec\nU" + bytes([len(EXEC_SOURCE)]) + EXEC_SOURCE + b"o",
    b"\x8c\x08builtins\x8c\x04exec\x93\x8c" + bytes([len(EXEC_SOURCE)]) + EXEC_SOURCE + b"\x85R",
    b"Ppersistent\n",
    b"U\x01aQ",
    b"\x82\x01",
    b"\x83\x01\x00",
    b"\x84\x01\x00\x00\x00",
    b"}}b",
    b"ccollections\nOrderedDict\n)\x81",
    b"\x97",
    b"\x98",
]
BOMBS = [
    b"X\xff\xff\xff\xff",  # 4 GB of text declared
    b"T\xff\xff\xff\x7f",
    b"\x8d" + struct.pack("<Q", 2**62),  # BINUNICODE8
    b"\x8e" + struct.pack("<Q", 2**62),  # BINBYTES8
    b"\x96" + struct.pack("<Q", 2**40),  # BYTEARRAY8, which pickle allocates before reading
    b"\x8b\xff\xff\xff\x7f",  # LONG4
    b"\x95" + struct.pack("<Q", 2**62),  # FRAME
    b"]r\xff\xff\xff\x7f",  # a memo slot that pickle makes room for: 32 GB
    b"]p999999999999\n",
    b"I" + b"9" * 100_000 + b"\n",
]


def pickled(body: bytes) -> bytes:
    return b"\x80\x02" + body + b"."


@pytest.fixture(autouse=True)
def nothing_ran() -> object:
    os.environ.pop(FLAG, None)
    yield
    assert FLAG not in os.environ
    probe = subprocess.run(["printenv", FLAG], capture_output=True, check=False)  # putenv does not show in os.environ
    assert probe.returncode == 1


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


# Mutated files: 1,600 of the refs and 600 crafted opcode streams, 600 of the annotations.

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
