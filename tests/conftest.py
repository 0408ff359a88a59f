"""Shared fixtures: a cache of the tests' own, the pretrained weights when they are there, and a command."""

import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def pretrained_weights() -> Path:
    """The real YOLO11n checkpoint; `make test` fetches it before the tests."""
    from duet.paths import weights_folder

    path = weights_folder() / "yolo11n.pt"
    if not path.is_file():
        pytest.skip("weights/yolo11n.pt is absent; `duet weights yolo11n` fetches it")
    return path


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory) -> Path:
    """A cache folder for all tests of a session, away from the user's."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def cache(shared_cache, monkeypatch) -> Path:
    monkeypatch.setenv("DUET_CACHE", str(shared_cache))
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
