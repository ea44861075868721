"""One writer at a time of a folder that appears or changes, among processes."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from lavt_edge._base.files import locked, whole_folder
from lavt_edge.tests.folder_content import content, names

HELD = """
import sys
from pathlib import Path
from lavt_edge._base.files import locked, whole_folder

target = Path(sys.argv[2])
with locked(target) if sys.argv[1] == "lock" else whole_folder(target, replace=True) as partial:
    print("held", flush=True)
    input()
    if sys.argv[1] == "write":
        (partial / "new").write_text("theirs")
"""


@contextmanager
def other_process(kind: str, target: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that has the lock; it goes on when it is given a line."""
    command = [sys.executable, "-c", HELD, kind, str(target)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("end", ["done", "killed"])
def test_a_second_writer_is_refused_until_the_first_has_ended(tmp_path: Path, old: bool, end: str) -> None:
    target = tmp_path / "bundle"
    if old:
        target.mkdir()
        (target / "old").write_text("old")
    with other_process("write", target) as process:
        with pytest.raises(BlockingIOError, match="another command is writing it"), whole_folder(target, replace=True):
            pytest.fail("the body must not run")
        if end == "killed":
            process.kill()
        process.communicate("go on\n" if end == "done" else None)
        assert target.exists() == (old or end == "done")
    with whole_folder(target, replace=True) as partial:
        (partial / "new").write_text("ours")
    assert content(target) == {"new": "ours"}
    assert names(tmp_path) == ["bundle"]


def test_writers_of_other_names_do_not_wait(tmp_path: Path) -> None:
    with other_process("write", tmp_path / "bundle"), whole_folder(tmp_path / "bundle2") as partial:
        (partial / "new").write_text("ours")
    assert content(tmp_path / "bundle2") == {"new": "ours"}


def test_a_folder_that_another_changes_is_not_replaced(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    target.mkdir()
    (target / "old").write_text("old")
    with other_process("lock", target):
        with pytest.raises(BlockingIOError, match="another command"), whole_folder(target, replace=True):
            pytest.fail("the body must not run")
        assert names(tmp_path) == ["bundle"]
    with whole_folder(target, replace=True) as partial, pytest.raises(BlockingIOError), locked(target):
        pytest.fail("what is being replaced cannot be changed")
    assert partial.name not in names(tmp_path)


def test_the_lock_of_a_folder_is_that_of_the_name(tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    folder.mkdir()
    with locked(folder):
        folder.rename(tmp_path / "away")
        folder.mkdir()
        with locked(folder), pytest.raises(BlockingIOError), locked(tmp_path / "away"):
            pytest.fail("the first is locked wherever it lies")
    assert names(folder) == []


def test_of_many_at_once_one_writes(tmp_path: Path) -> None:
    """All ask at the same moment, over and over; the folder is always one writer's whole work."""
    code = """
import sys, time
from pathlib import Path
from lavt_edge._base.files import whole_folder
target, mine, end = Path(sys.argv[1]), sys.argv[2], time.monotonic() + 1.0
time.sleep(max(0.0, float(sys.argv[3]) - time.time()))
done = 0
while time.monotonic() < end or not done:
    try:
        with whole_folder(target, replace=True) as partial:
            for name in ("a", "b"):
                (partial / name).write_text(mine)
        done += 1
    except BlockingIOError:
        pass
"""
    start = time.time() + 0.5
    target = tmp_path / "bundle"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(target), str(i), str(start)], stderr=subprocess.PIPE, text=True
        )
        for i in range(4)
    ]
    errors = [process.communicate()[1] for process in processes]
    assert errors == [""] * 4
    assert names(target) == ["a", "b"]
    assert (target / "a").read_text() == (target / "b").read_text()
    assert names(tmp_path) == ["bundle"]
