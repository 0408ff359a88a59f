"""The benchmark of merging: its reference computes what ours does, and the command prints its tables."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import merging

ROOT = Path(__file__).resolve().parents[1]


def test_the_flat_reference_is_ties(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")
    from benchmark_merge import DENSITY, _flat_ties_vector

    generator = torch.Generator().manual_seed(0)
    vectors = torch.randint(-8, 9, (5, 4000), generator=generator).float()
    ours = merging.ties_merging({"w": torch.zeros(4000)}, [{"w": vector} for vector in vectors], density=DENSITY)
    torch.testing.assert_close(_flat_ties_vector(vectors), ours.state["w"])
    assert ours.state["w"].count_nonzero() > 1000


@pytest.mark.slow
def test_the_command_prints_times_and_memory(tmp_path):
    command = [sys.executable, ROOT / "tools/benchmark.py", "merge", "--models", "2", "--scalars", "2100000"]
    done = subprocess.run(
        [*command, "--repeat", "1", "--shard-mb", "5", "--folder", tmp_path],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "140"},
    )
    assert done.returncode == 0, done.stderr
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in done.stdout.splitlines() if "│" in line]
    times = {row[0]: row[1:] for row in rows if len(row) == 7}
    assert list(times)[:2] == ["read files whole, write one", "read and write through 1 MB"]
    assert all(float(row[0]) > 0 and float(row[1]) > 0 for row in times.values())
    assert 0 < float(times["TIES"][5]) < 1.5
    assert [row[0] for row in rows if len(row) == 4] == []
    assert [row[0] for row in rows if len(row) == 2] == ["averaging", "task arithmetic", "DuET, 2 models"]
    assert list(tmp_path.iterdir()) == []
