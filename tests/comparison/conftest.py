"""Grids in memory and an engine that runs nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_series
import yaml

from duet.comparison.grid import cells_of, read_grid
from duet.comparison.records import write_record
from duet.comparison.worker import Job
from duet.config import RunConfig

# Without threads: the grid says how many.
SERIES = {
    **tiny_series.SERIES,
    "scenes": {"seed": 17, "train_scenes": 24, "test_scenes": 12},
    "train": {"epochs": 1, "image_size": 64, "fliplr": 0.0, "batch": 8},
}


@pytest.fixture
def write_grid(tmp_path):
    """Write a grid and its series side by side; the grid's path."""

    def write(**values) -> Path:
        (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(SERIES))
        path = tmp_path / "grid.yaml"
        path.write_text(yaml.safe_dump({"series": ["tiny.yaml"], **values}))
        return path

    return write


@pytest.fixture
def make_cells(write_grid):
    """The cells of a grid of these keys."""

    def make(**values):
        return cells_of(read_grid(str(write_grid(**values))))

    return make


class FakeEngine:
    """Jobs end in the order in which they began; each does what its cell's name is mapped to."""

    def __init__(self, slots=2, codes=None):
        self.slots, self.codes, self.started, self.running, self.most, self.stopped = (
            slots,
            codes or {},
            [],
            [],
            0,
            False,
        )

    def start(self, job: Job):
        self.started.append(job)
        self.running.append(job)
        self.most = max(self.most, len(self.running))
        return job.name

    def ended(self, handles, seconds):
        job = self.running.pop(0)
        assert job.name in handles
        code = self.codes.get(job.name, 0)
        if code == 0:
            job.files.run.mkdir(parents=True, exist_ok=True)
            (job.files.run / "results.json").write_text("{}")
            write_record(job.files.record, RunConfig.model_validate(job.config), "finished")
        return [(job.name, code)]

    def stop(self):
        self.stopped = True


@pytest.fixture
def make_engine():
    return FakeEngine
