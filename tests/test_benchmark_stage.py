"""The benchmark of a whole stage: what is run, and that the table has ratios of whole stages."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from tiny_series import SERIES

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def benchmark_stage(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")
    import benchmark_stage

    return benchmark_stage


@pytest.fixture
def taken(monkeypatch, benchmark_stage):
    """Stages that were asked for; each takes a second, and `duet` half a second more on the head."""
    asked = []

    def later_stage(item, config, progress):
        asked.append((config.method.name, config.train.epochs, item.task, item.classes, item.previous.classes))
        more = {"calibrate": 0.5} if config.method.name == "duet" else {}
        return SimpleNamespace(seconds={"train": 0.9, "merge": 0.1, **more})

    monkeypatch.setattr(benchmark_stage, "later_stage", later_stage)
    return asked


def test_methods_take_turns_and_stand_against_plain_fine_tuning(taken, benchmark_stage, tmp_path, capsys):
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(SERIES))
    benchmark_stage.stage(
        ["duet"], series=str(tmp_path / "tiny.yaml"), detector="fcos-tiny", epochs=2, rounds=2, threads=1
    )
    second = (2, ("3", "4"), ("0", "1", "2"))
    assert taken == 2 * [("sequential", 2, *second), ("duet", 2, *second)]
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[1]: [word for word in line.split() if word != "│"] for line in lines if "%" in line}
    assert rows["sequential"][1:] == ["1.00", "1.00", "1.00", "90%", "0%", "0%"]
    assert rows["duet"][1:] == ["1.50", "1.50", "1.50", "60%", "33%", "0%"]


def test_a_real_stage_has_every_part(benchmark_stage, tmp_path, capsys):
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(SERIES))
    benchmark_stage.stage(
        ["duet"], series=str(tmp_path / "tiny.yaml"), detector="fcos-tiny", epochs=1, rounds=1, threads=1
    )
    (row,) = (line for line in capsys.readouterr().out.splitlines() if "duet" in line)
    training, calibration, looking = (int(word.rstrip("%")) for word in row.split() if word.endswith("%"))
    assert min(training, calibration, looking) > 0
    assert training + calibration + looking <= 101
