"""Shared fixtures: a cache of the tests' own, and the pretrained weights when they are there."""

from collections.abc import Iterator
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
