"""Shared fixtures: a cache of the tests' own, the pretrained weights when they are there, and a command."""

import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")
if WORKER and hasattr(os, "sched_setaffinity"):  # one core each, before torch counts them; children inherit it
    CORES = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {CORES[int(WORKER.removeprefix("gw")) % len(CORES)]})


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with end-to-end runs come first, so that no process begins the longest when the others are through."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(scope="session")
def pretrained_weights() -> Path:
    """The real YOLO11n checkpoint; `make test` fetches it before the tests."""
    from duet.paths import weights_folder

    path = weights_folder() / "yolo11n.pt"
    if not path.is_file():
        pytest.skip("weights/yolo11n.pt is absent; `duet weights yolo11n` fetches it")
    return path


@pytest.fixture(scope="session", autouse=True)
def shared_cache(tmp_path_factory) -> Iterator[Path]:
    """A cache folder for all tests of a session, away from the user's."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DUET_CACHE", str(folder))
        yield folder


@pytest.fixture
def cache(shared_cache) -> Path:
    """The same folder, for tests that look into it."""
    return shared_cache


@pytest.fixture
def merge_command(tmp_path, monkeypatch, capsys):
    """Run `duet merge` inside an empty folder; its exit code, what it printed, and what it printed as error."""
    from duet.cli import main

    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["duet", "merge", *arguments])
        with pytest.raises(SystemExit) as stopped:
            main()
        captured = capsys.readouterr()
        return stopped.value.code, captured.out, captured.err

    return call
