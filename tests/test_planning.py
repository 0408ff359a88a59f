"""How many steps a run has, before it takes them."""

import pytest
import tiny_series
import yaml

from duet.config import parse_assignments
from duet.learner import Learner
from duet.monitor import Monitor
from duet.resolve import resolve_config


class Counting(Monitor):
    def __init__(self):
        self.planned = self.taken = 0

    def plan(self, steps):
        self.planned = steps

    def train_step(self, progress):
        self.taken += 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "options", "steps"),
    [
        ("sequential", [], 3 + 3 + 6),  # two stages of 12 scenes in fours, and both together
        ("joint", [], 6),
        ("individual", [], 3 + 3 + 6),
        ("sequential", ["evaluation.reference=none"], 3 + 3),
        ("replay", ["method.exemplars.images_per_class=1"], 3 + 4 + 6),  # three pictures are kept
        ("duet", ["method.min_steps=null"], 3 + (1 + 2) * 3 + 6),  # two epochs of calibration
        ("duet", ["method.min_steps=3"], 3 + (1 + 2) * 3 + 6),
        ("duet", ["method.min_steps=3", "train.batch=12"], 1 + (1 + 2) * 3 + 2),
    ],
)
def test_a_run_takes_the_steps_that_were_planned(method, options, steps, tmp_path, monkeypatch):
    monkeypatch.setenv("DUET_CACHE", str(tmp_path / "cache"))  # nothing was trained before
    monkeypatch.setattr("duet.report.html.write_report", tiny_series.short_report)
    series = {**tiny_series.SERIES, "scenes": {"seed": 9, "train_scenes": 12, "test_scenes": 2}}
    (tmp_path / "series.yaml").write_text(yaml.safe_dump(series))
    (tmp_path / "fcos.yaml").write_text(yaml.safe_dump(tiny_series.DETECTOR))
    named = {"series": str(tmp_path / "series.yaml"), "detector": str(tmp_path / "fcos.yaml"), "method": method}
    config = resolve_config(None, named, parse_assignments([*options, "evaluation.bootstrap=0"]))
    monitor = Counting()
    Learner(config, tmp_path / "run", monitor=monitor).run()
    assert (monitor.planned, monitor.taken) == (steps, steps)
