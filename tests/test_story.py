"""The whole story: two tasks are trained and deployed; then the pictures are gone, and two more tasks are learned."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from duet.artefact import artefact_is_whole, open_artefact
from duet.config import parse_assignments
from duet.datasets.domain import open_domains
from duet.datasets.series_file import find_series
from duet.detectors.families import load_pretrained
from duet.learner import Learner
from duet.resolve import resolve_config

pytestmark = pytest.mark.slow

TASKS = [
    {"domain": "clear", "classes": ["0", "1", "2"]},
    {"domain": "night", "classes": ["3", "4", "5"]},
    {"domain": "fog", "classes": ["6", "7"]},
    {"domain": "comic", "classes": ["8", "9"]},
]
COMMON = {
    "name": "story",
    "other_labels": "drop",
    "unlabelled_images": "keep",
    "train": {"epochs": 1, "image_size": 64, "fliplr": 0.0, "batch": 8, "threads": 1, "workers": 0},
}
SCENES = {"seed": 6, "train_scenes": 12, "test_scenes": 4}


def split(folder, name):
    return {"images": str(folder / name / "images"), "labels": str(folder / name / "labels")}


@pytest.fixture
def pictures(tmp_path, cache):
    """The four domains' pictures in folders that can be taken away."""
    (tmp_path / "four.yaml").write_text(yaml.safe_dump({**COMMON, "scenes": SCENES, "tasks": TASKS}))
    domains = open_domains(find_series(str(tmp_path / "four.yaml")))
    source = domains["clear"].train()[0].path.parents[3]
    return shutil.copytree(source, tmp_path / "pictures")


def train(tmp_path, pictures, detector, name, tasks):
    """A run on some of the tasks, in a folder of the tasks' number."""
    described = {
        task["domain"]: {
            "classes": str(pictures / task["domain"] / "classes.txt"),
            "train": split(pictures / task["domain"], "train"),
            "test": split(pictures / task["domain"], "test"),
        }
        for task in tasks
    }
    path = tmp_path / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**COMMON, "domains": described, "tasks": tasks}))
    options = {"series": str(path), "detector": detector, "method": "duet"}
    Learner(resolve_config(None, options, parse_assignments(["evaluation.reference=none"])), tmp_path / name).run()
    return tmp_path / name


def update(start, data, task, out, cache, *more):
    """`duet update` in a process of its own, with a cache of its own."""
    arguments = [
        *("update", str(start), "--data", str(data), "--domain", task["domain"], "--out", str(out)),
        *("--unlabelled", "keep", "--classes", *task["classes"], *more),
    ]
    root = str(Path(__file__).parents[1])
    environment = {**os.environ, "DUET_CACHE": str(cache), "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", "from duet.cli import main; main()", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return done


@pytest.mark.parametrize("name", ["fcos-tiny", "yolo11n"])
def test_the_pictures_are_gone_and_two_more_tasks_are_learned(name, pictures, tmp_path, request):
    detector = str(request.getfixturevalue("pretrained_weights")) if name == "yolo11n" else name
    whole = train(tmp_path, pictures, detector, "whole", TASKS)
    field = train(tmp_path, pictures, detector, "field", TASKS[:2])
    shutil.rmtree(pictures / "clear")
    shutil.rmtree(pictures / "night")
    first = update(field, pictures / "fog", TASKS[2], tmp_path / "first", tmp_path / "cache")
    assert first.returncode == 0, first.stderr
    shutil.rmtree(field)  # the next update needs the last artefact alone
    shutil.rmtree(pictures / "fog")
    validation = ("--val", f"comic={pictures / 'comic'}", "--fail-below", "kept=1000")
    second = update(
        tmp_path / "first", pictures / "comic", TASKS[3], tmp_path / "second", tmp_path / "cache", *validation
    )
    assert second.returncode == 1, second.stderr  # no one keeps a thousandfold
    assert "Verdict: not good enough" in second.stdout
    assert artefact_is_whole(tmp_path / "second")
    found, expected = open_artefact(tmp_path / "second"), open_artefact(whole)
    state = expected.detector.state()
    assert all(torch.equal(value, state[key]) for key, value in found.detector.state().items())
    assert all(torch.equal(value, expected.before[key]) for key, value in found.before.items())
    assert (found.record.tasks, found.record.start) == (expected.record.tasks, expected.record.start)
    assert found.detector.classes == tuple("0123456789")
    deployed, uninterrupted = tmp_path / "second" / "detector.pt", whole / "detector.pt"
    if name == "yolo11n":  # a pickle of modules: equal in what it holds, not byte by byte
        one, other = load_pretrained(str(deployed)), load_pretrained(str(uninterrupted)).state()
        assert one.classes == tuple("0123456789")
        assert all(torch.equal(value, other[key]) for key, value in one.state().items())
    else:
        assert deployed.read_bytes() == uninterrupted.read_bytes()
    scores = json.loads((tmp_path / "second" / "update.json").read_text())["scores"]
    assert [row["kind"] for row in scores] == ["old", "new"]
