"""Models on disk that several tests read."""

import pytest
from merging_cases import network, tuned
from safetensors.torch import save_file


@pytest.fixture
def family(tmp_path):
    """Paths of a base and two models, single files, and their states."""
    states = [network(0), tuned(network(0), 1), tuned(network(0), 2)]
    paths = [tmp_path / name for name in ("base.safetensors", "one.safetensors", "two.safetensors")]
    for path, state in zip(paths, states):
        save_file(state, path)
    return paths, states
