"""The generated data that `lavt-bench --dataset shapes` makes for itself: written once, whole, and kept."""

from __future__ import annotations

from pathlib import Path
from threading import Thread

import pytest
from lavt_edge.data.sentences import open_split
from lavt_edge.data.shapes import cached as generated
from lavt_edge.tests.bench_results import refusal, stop_after


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
    """The second waits while the first writes, and writes nothing itself."""
    found: list[int] = []
    written: list[int] = []
    second = Thread(
        target=lambda: found.append(
            len(open_split("shapes", "val", progress=lambda done, _: written.append(done)).sentences)
        )
    )

    def progress(done: int, total: int) -> None:
        if done == 1:
            second.start()
            second.join(0.3)
            assert second.is_alive()

    first = open_split("shapes", "val", progress=progress).sentences
    second.join(60)
    assert found == [len(first)]
    assert not written
    assert len(list(cache.iterdir())) == 1


def test_a_cache_that_cannot_be_written_says_what_to_do(cache: Path) -> None:
    cache.parent.touch()
    assert "set XDG_CACHE_HOME" in refusal(lambda: open_split("shapes", "val"))


def test_the_cache_follows_the_xdg_specification(monkeypatch: pytest.MonkeyPatch) -> None:
    for ignored in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert generated.cache_folder() == Path.home() / ".cache" / "lavt-edge"
