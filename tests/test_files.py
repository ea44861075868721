"""Files and folders appear whole or not at all, and what killed processes leave goes with the next attempt."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from lavt_edge._base.files import partial_of, remove_abandoned, whole_file, whole_folder
from lavt_edge.tests.folder_content import content, names
from lavt_edge.tests.stress.steps import kill_at_each_step


@pytest.fixture
def gone() -> int:
    """The id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.fixture
def living() -> Iterator[int]:
    """The id of another process that runs."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process.pid
    process.kill()
    process.wait()
    assert process.stdin is not None
    process.stdin.close()


def write_then_raise(path: Path, error: BaseException) -> None:
    path.write_text("half")
    raise error


# folders


def test_a_folder_appears_at_the_end_with_all_that_was_written(tmp_path: Path) -> None:
    target = tmp_path / "new" / "bundle"
    with whole_folder(target) as partial:
        assert partial.parent == target.parent
        (partial / "a").write_text("1")
        (partial / "deep").mkdir()
        (partial / "deep" / "b").write_text("2")
        assert not target.exists()
    assert content(target) == {"a": "1", "deep/b": "2"}
    assert names(target.parent) == ["bundle"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_leaves_no_folder(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), whole_folder(tmp_path / "bundle") as partial:
        write_then_raise(partial / "a", error())
    assert names(tmp_path) == []


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_is_there_is_refused_before_anything_is_written(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "bundle"
    if kind == "file":
        target.write_text("mine")
    else:
        target.mkdir()
        (target / "mine").write_text("mine")
    with pytest.raises(FileExistsError, match="bundle exists already"), whole_folder(target):
        pytest.fail("the body must not run")
    assert names(tmp_path) == ["bundle"]


def test_an_empty_folder_may_be_filled(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    with whole_folder(tmp_path / "bundle") as partial:
        (partial / "a").write_text("1")
    assert content(tmp_path / "bundle") == {"a": "1"}
    assert names(tmp_path) == ["bundle"]


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_replacing_swaps_the_whole(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "bundle"
    if kind == "file":
        target.write_text("old")
    else:
        target.mkdir()
        (target / "old").write_text("old")
    with whole_folder(target, replace=True) as partial:
        (partial / "new").write_text("new")
        assert target.is_file() or content(target) == {"old": "old"}
    assert content(target) == {"new": "new"}
    assert names(tmp_path) == ["bundle"]


def test_an_exception_while_replacing_keeps_the_old(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    target.mkdir()
    (target / "old").write_text("old")
    with pytest.raises(ValueError, match="broken"), whole_folder(target, replace=True) as partial:
        write_then_raise(partial / "new", ValueError("broken"))
    assert content(target) == {"old": "old"}
    assert names(tmp_path) == ["bundle"]


def test_a_replacement_that_cannot_get_its_name_keeps_the_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "bundle"
    target.mkdir()
    (target / "old").write_text("old")
    rename = Path.rename

    def failing(self: Path, to: Path) -> Path:
        if to == target and (self / "new").exists():
            raise OSError("the disk is gone")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="the disk is gone"), whole_folder(target, replace=True) as partial:
        (partial / "new").write_text("new")
    assert content(target) == {"old": "old"}
    assert names(tmp_path) == ["bundle"]


def fill_while(target: Path, meanwhile: Callable[[], object], replace: bool = False) -> None:
    with whole_folder(target, replace=replace) as partial:
        (partial / "new").write_text("new")
        meanwhile()


def make_mine(target: Path) -> None:
    target.mkdir()
    (target / "mine").write_text("mine")


@pytest.mark.parametrize("replace", [False, True])
def test_what_was_made_meanwhile_is_kept(tmp_path: Path, replace: bool) -> None:
    target, file = tmp_path / "bundle", tmp_path / "file"
    with pytest.raises(FileExistsError, match="bundle was made meanwhile"):
        fill_while(target, lambda: make_mine(target), replace)
    with pytest.raises(FileExistsError, match="file was made meanwhile"):
        fill_while(file, lambda: file.write_text("mine"), replace)
    assert (content(target), file.read_text()) == ({"mine": "mine"}, "mine")
    assert names(tmp_path) == ["bundle", "file"]


def test_only_what_was_there_at_the_start_is_replaced(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    target.mkdir()

    def exchange() -> None:
        target.rename(tmp_path / "away")
        make_mine(target)

    with pytest.raises(FileExistsError, match="bundle was replaced meanwhile"):
        fill_while(target, exchange, replace=True)
    assert content(target) == {"mine": "mine"}
    assert names(tmp_path) == ["away", "bundle"]


def test_a_symbolic_link_to_a_folder_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with whole_folder(tmp_path / "link") as partial:
        (partial / "new").write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert content(tmp_path / "real") == {"new": "new"}
    assert names(tmp_path) == ["link", "real"]


# files


def test_a_file_appears_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "new" / "out.png"
    with whole_file(target) as partial:
        partial.write_text("1")
        assert not target.exists()
    assert target.read_text() == "1"
    assert names(target.parent) == ["out.png"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_keeps_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "out.png"
    target.write_text("old")
    with pytest.raises(error), whole_file(target) as partial:
        write_then_raise(partial, error())
    assert target.read_text() == "old"
    assert names(tmp_path) == ["out.png"]


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    target = tmp_path / "out.png"
    target.write_text("old")
    with whole_file(target) as partial:
        partial.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert names(tmp_path) == ["out.png"]


def test_a_file_that_was_never_written_does_not_appear(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), whole_file(tmp_path / "out.png"):
        pass
    assert names(tmp_path) == []


@pytest.mark.parametrize("whole", [whole_folder, whole_file])
def test_a_file_in_the_place_of_a_parent_is_no_existing_target(
    tmp_path: Path, whole: Callable[[Path], AbstractContextManager[Path]]
) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(NotADirectoryError, match="file is not a folder"), whole(tmp_path / "file" / "target"):
        pytest.fail("the body must not run")
    assert (tmp_path / "file").read_text() == "mine"


# what was left behind


@pytest.mark.parametrize("name", ["bundle", "bundle.v2", "odd [1]*?", ".hidden"])
def test_leftovers_of_the_dead_go_and_those_of_the_living_stay(
    tmp_path: Path, gone: int, living: int, name: str
) -> None:
    dead_folder, dead_file = (tmp_path / f".{name}.{gone}.{mark}.partial" for mark in ("00000001", "00000002"))
    dead_folder.mkdir()
    (dead_folder / "weights").write_text("half")
    dead_file.write_text("half")
    kept = [
        f".{name}.{living}.00000003.partial",
        partial_of(tmp_path / name).name,
        f".other{name}.{gone}.00000005.partial",
        f".{name}.notanumber.00000006.partial",
        f"{name}.{gone}.00000007.partial",
        f".{name}.other.00000008.replaced",
    ]
    for path in kept:
        (tmp_path / path).write_text("kept")
    (tmp_path / f".{name}.00000009.replaced").write_text("the only copy")
    remove_abandoned(tmp_path, name)
    assert names(tmp_path) == sorted([*kept, f".{name}.00000009.replaced"])
    (tmp_path / name).write_text("new")
    remove_abandoned(tmp_path, name)
    assert names(tmp_path) == sorted([*kept, name])


def test_leftovers_of_any_name_go(tmp_path: Path, gone: int, living: int) -> None:
    kept = ["mine", ".mine", f".a.{living}.00000001.partial", ".b.partial"]
    for name in (*kept, f".a.{gone}.00000002.partial", f"..b.npz.{gone}.00000003.partial"):
        (tmp_path / name).write_text("")
    remove_abandoned(tmp_path)
    assert names(tmp_path) == sorted(kept)


def test_an_earlier_process_with_the_same_id_is_gone(tmp_path: Path) -> None:
    """In a container every run has the same id."""
    (tmp_path / f".out.png.{os.getpid()}.00000001.partial").write_text("half")
    with whole_file(tmp_path / "out.png") as partial:
        partial.write_text("new")
        remove_abandoned(tmp_path, "out.png")  # as another thread would
    assert names(tmp_path) == ["out.png"]


KILLED = """
import os, signal, sys
from pathlib import Path
from lavt_edge._base.files import whole_file, whole_folder

target = Path(sys.argv[2])
with (whole_folder(target, replace=True) if sys.argv[1] == "folder" else whole_file(target)) as partial:
    (partial / "weights" if sys.argv[1] == "folder" else partial).write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("kind", ["folder", "file"])
@pytest.mark.parametrize("old", [False, True])
def test_a_killed_process_leaves_the_target_as_it_was(tmp_path: Path, kind: str, old: bool) -> None:
    target = tmp_path / "target"
    if old and kind == "folder":
        target.mkdir()
        (target / "old").write_text("old")
    elif old:
        target.write_text("old")
    done = subprocess.run([sys.executable, "-c", KILLED, kind, str(target)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert target.exists() == old
    if old:
        assert content(target) == {"old": "old"} if kind == "folder" else target.read_text() == "old"
    assert len(names(tmp_path)) > old  # what it left, which the next attempt clears
    with whole_folder(target, replace=True) if kind == "folder" else whole_file(target) as partial:
        (partial / "new" if kind == "folder" else partial).write_text("new")
    assert names(tmp_path) == ["target"]


@pytest.mark.parametrize("kind", ["folder", "file"])
@pytest.mark.parametrize("old", [False, True])
def test_killed_at_any_step_it_is_old_new_or_absent_and_the_next_clears_up(
    tmp_path: Path, kind: str, old: bool
) -> None:
    target = tmp_path / "target"

    def write(text: str) -> None:
        with whole_folder(target, replace=True) if kind == "folder" else whole_file(target) as partial:
            for name in ("a", "b"):
                (partial / name if kind == "folder" else partial).write_text(text)

    def begin() -> None:
        if target.is_dir():
            shutil.rmtree(target)
        target.unlink(missing_ok=True)
        if old:
            write("old")

    def check() -> None:
        if target.exists():
            found = content(target) if kind == "folder" else target.read_text()
            assert found in (
                [{"a": text, "b": text} for text in ("old", "new")] if kind == "folder" else ["old", "new"]
            )
        elif old:
            (kept,) = (path for path in tmp_path.iterdir() if path.name.endswith(".replaced"))
            assert content(kept) == {"a": "old", "b": "old"}
        write("next")
        assert names(tmp_path) == ["target"]

    assert kill_at_each_step(tmp_path, begin, lambda: write("new"), check) > 5
