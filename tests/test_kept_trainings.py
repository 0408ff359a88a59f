"""Trainings of later stages that runs share: methods that train alike train once; nothing else is taken for it."""

from dataclasses import replace

import pytest
import tiny_series
import torch
import yaml

from duet.datasets.training import TrainingSet
from duet.detectors.base import Consolidation, DirectionalTarget, DomainStatistics, StageRequest
from duet.detectors.families import load_pretrained
from duet.detectors.fcos import FcosDetector
from duet.learner import Learner
from duet.resolve import resolve_config
from duet.stage import StageInput, _training_key

# Scenes of its own: the tests' cache must hold no training of another module's series.
SERIES = {**tiny_series.SERIES, "scenes": {"seed": 71, "train_scenes": 6, "test_scenes": 2}}
AVERAGE = {"merge": {"name": "averaging"}}


@pytest.fixture
def trained(monkeypatch):
    """Seeds of the stages that were really trained."""
    seeds, own = [], FcosDetector.train_stage

    def train_stage(self, request):
        seeds.append(request.seed)
        return own(self, request)

    monkeypatch.setattr(FcosDetector, "train_stage", train_stage)
    return seeds


@pytest.fixture
def learn(tmp_path, monkeypatch):
    """Run a method on two tiny tasks, with the trainings of later stages kept; its results."""
    monkeypatch.setenv("DUET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("duet.report.html.write_report", tiny_series.short_report)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(SERIES))
    (tmp_path / "nano.yaml").write_text(yaml.safe_dump(tiny_series.DETECTOR))
    count = iter(range(100))

    def run(method="duet-paper", kept=True, seed=0, **changes):
        options = {"series": str(tmp_path / "tiny.yaml"), "detector": str(tmp_path / "nano.yaml"), "method": method}
        evaluation = {"reference": "none", "bootstrap": 0}
        config = resolve_config(None, {**options, "seed": seed}, {"method": changes, "evaluation": evaluation})
        trainings = tmp_path / "trainings" if kept else None
        out = tmp_path / f"run-{next(count)}"
        Learner(config, out, trainings=trainings).run()
        return tiny_series.content(out)

    return run


def model(content):
    return content["stages/2/model.safetensors"]


def test_another_merger_trains_nothing_again_and_ends_as_it_would_alone(learn, trained):
    first = learn()
    assert trained == [1, 2]
    shared = learn(**AVERAGE)
    assert trained == [1, 2] and model(shared) != model(first)
    alone = learn(kept=False, **AVERAGE)
    assert trained == [1, 2, 2] and shared == alone


def test_a_calibration_after_the_merge_is_trained_by_each(learn, trained):
    learn()
    learn(calibration_epochs=1)
    assert trained == [1, 2, 2]


@pytest.mark.parametrize(
    "other",
    [
        {"directional_consistency": {"weight": 0.5}},
        {"distillation": {"weight": 0.5}},
        {"shared_lr_factor": 0.5},
        {"row_lr_factor": 5.0},
        {"new_rows": "mean"},
        {"appearance": {"share": 0.25}},
        {"batch_norm": "freeze"},
        {"negatives": "new"},
        {"seed": 3},
    ],
)
def test_what_decides_the_training_makes_another(learn, trained, other):
    learn()
    before = len(trained)
    learn(**other)
    assert len(trained) > before and trained[-1] % 100 == 2


def test_every_part_of_what_a_training_starts_from_is_in_its_key(tmp_path):
    teacher = load_pretrained("fcos-tiny.yaml").with_classes(("a",), 0)
    student = teacher.grown(("b",), 1, "rows")
    for part in ("images", "labels"):
        (tmp_path / "data" / part).mkdir(parents=True)
        (tmp_path / "data" / part / "0.txt").write_text(part)
    config = resolve_config(None, {"series": "demo", "method": "duet"})
    statistics = DomainStatistics((0, 0, 0), (1, 1, 1))
    direction = {"x": torch.zeros(2)}
    data = TrainingSet(tmp_path / "data" / "data.yaml", 1, 1, 0, 0)
    item = StageInput(2, ("b",), data, (), tmp_path, statistics, (), {}, teacher, {})
    request = StageRequest(
        data=data.data,
        folder=tmp_path,
        seed=2,
        train=config.train,
        method=config.method,
        epochs=3,
        teacher=teacher,
        directional=DirectionalTarget(direction, direction),
        consolidation=Consolidation(direction, direction),
        past_domains=(statistics,),
        own_domain=statistics,
    )
    moved, other = {"x": torch.ones(2)}, DomainStatistics((0, 0, 0.5), (1, 1, 1))
    changes = [
        {"seed": 3},
        {"epochs": 4},
        {"train": config.train.model_copy(update={"lr0": 0.5})},
        {"method": config.method.model_copy(update={"shared_lr_factor": 0.5})},
        {"teacher": load_pretrained("fcos-tiny.yaml").with_classes(("a",), 5)},
        {"directional": DirectionalTarget(direction, moved)},
        {"consolidation": Consolidation(direction, moved)},
        {"past_domains": (other,)},
        {"own_domain": other},
    ]
    keys = [_training_key(student, request, item)]
    keys += [_training_key(student, replace(request, **change), item) for change in changes]
    keys.append(_training_key(teacher.grown(("b",), 7, "rows"), request, item))
    keys.append(_training_key(teacher.grown(("c",), 1, "rows"), request, item))
    for part in ("images", "labels"):
        (tmp_path / "data" / part / "0.txt").write_text("changed")
        keys.append(_training_key(student, request, item))
    assert len(set(keys)) == len(keys)
    assert _training_key(student.clone(), replace(request, folder=tmp_path / "elsewhere"), item) == keys[-1]


def test_without_a_folder_nothing_is_kept(learn, trained, tmp_path):
    learn(kept=False)
    learn(kept=False)
    assert trained == [1, 2, 2] and not (tmp_path / "trainings").exists()


def test_a_damaged_training_is_made_again(learn, trained, tmp_path):
    first = learn()
    path = next((tmp_path / "trainings").glob("*/model.safetensors"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert learn() == first and trained == [1, 2, 2]
