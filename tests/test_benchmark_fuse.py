"""The benchmark of mask learning: its measurements are those of its own process, and keep the limits."""

import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[1] / "tools"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    import benchmark_fuse

    return benchmark_fuse


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("measure", ["task arithmetic", "layer-wise"])
def test_learning_a_mask_keeps_its_memory(benchmark, tmp_path, measure):
    found = benchmark._measure(["memory", str(tmp_path), "3", "24000000", measure])
    assert 3 + 4 < found["units"] <= 3 + 6


def test_steps_are_timed_beside_what_they_are_measured_by(benchmark):
    found = benchmark._measure(["time", ".", "2", "1", "2", "1"])
    assert set(found["steps"]) == {
        *("Concrete task arithmetic", "Layer-wise AdaMerging", "Concrete layer-wise AdaMerging"),
    }
    for row in found["steps"].values():
        assert row["limit"] == pytest.approx(1.5 * row["plain"] + row["vectors"])
