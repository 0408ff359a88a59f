"""Merging a stage: shared tensors by the merger, BatchNorm by its policy, the head by its policies."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from duet import stage
from duet.config import RunConfig
from duet.datasets.training import TrainingSet
from duet.detectors.base import DomainStatistics, StageOutcome
from duet.detectors.yolo import YoloDetector
from duet.stage import StageInput, later_stage, merge_stage, mixed, stage_seed, statistics_on, weighs_by_fisher
from duet.stage_data import LOOKED_AT

MEAN = "model.0.bn.running_mean"
COUNT = "model.0.bn.num_batches_tracked"
WEIGHT = "model.0.conv.weight"


@pytest.fixture(scope="module")
def models():
    """θ_0's shared tensors, the detector of t − 1, and a trained one that differs from it everywhere."""
    from ultralytics.nn.tasks import DetectionModel

    torch.manual_seed(0)
    base = YoloDetector(DetectionModel("yolo11n.yaml", nc=80, verbose=False)).with_classes(("a", "b"), 0)
    previous, trained = base.clone(), base.grown(("c",), 1, "rows")
    shift(previous, 0.01)
    shift(trained, 0.03)
    return base, previous, trained


def shift(detector, size):
    state = {
        key: value + size * (1 + torch.rand(value.shape)) if value.is_floating_point() else value + int(size * 100)
        for key, value in detector.state().items()
    }
    detector.load_state(state)


def stage_input(shared, previous, **options):
    return StageInput(
        task=2,
        classes=("c",),
        data=TrainingSet(Path("none"), 1, 1, 0, 0),
        images=(),
        folder=Path("none"),
        statistics=DomainStatistics((0, 0, 0), (1, 1, 1)),
        past=(),
        base=shared,
        previous=previous,
        before_previous=shared,
        **options,
    )


def merged(models, **method):
    base, previous, trained = models
    detector = trained.clone()
    shared = {key: base.state()[key] for key in base.split().shared}
    item = stage_input(shared, previous)
    config = RunConfig(method={"name": "test", **method})
    entry = merge_stage(detector, previous.state(), item, config)
    return detector.state(), entry


DUET = {"name": "duet", "options": {"gamma": 0.1, "alpha_base": 0.5}}


def test_shared_weights_are_interpolated_with_the_layers_alpha(models):
    _, previous, trained = models
    state, entry = merged(models, merge=DUET, batch_norm="current")
    alpha = entry["alpha"]["model.0.conv"]
    expected = alpha * previous.state()[WEIGHT] + (1 - alpha) * trained.state()[WEIGHT]
    torch.testing.assert_close(state[WEIGHT], expected)
    assert 0.5 - 0.0762 <= alpha < 0.5  # the new model moved further: weight shifts to it
    assert entry["sign_conflict_rate"] == 0.0


def test_no_merger_keeps_the_trained_weights(models):
    state, entry = merged(models, merge=None)
    assert torch.equal(state[WEIGHT], models[2].state()[WEIGHT])
    assert entry == {"method": None, "alpha": {}, "sign_conflict_rate": 0.0}


def test_batch_norm_policies(models):
    _, previous, trained = models
    old, new = previous.state(), trained.state()
    state, entry = merged(models, merge=DUET, batch_norm="merge")
    alpha = entry["alpha"]["model.0.bn"]
    torch.testing.assert_close(state[MEAN], alpha * old[MEAN] + (1 - alpha) * new[MEAN])
    assert state[COUNT] == new[COUNT]
    for policy in ("current", "freeze", "mixture"):
        state, _ = merged(models, merge=DUET, batch_norm=policy)
        assert torch.equal(state[MEAN], new[MEAN])


def test_statistics_of_two_domains_together_are_those_of_all_their_values():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(1000, 3, generator=generator), 2 * torch.randn(3000, 3, generator=generator) + 1
    before, current = (
        {"a.running_mean": x.mean(0), "a.running_var": x.var(0, unbiased=False), "a.weight": x[0]} for x in values
    )
    del current["a.weight"]
    both = torch.cat(values)
    found = mixed(before, current, 0.75)
    torch.testing.assert_close(found["a.running_mean"], both.mean(0))
    torch.testing.assert_close(found["a.running_var"], both.var(0, unbiased=False))
    assert set(found) == {"a.running_mean", "a.running_var"}
    for share, expected in ((0.0, before), (1.0, current)):
        assert all(torch.equal(value, expected[key]) for key, value in mixed(before, current, share).items())


def test_statistics_are_estimated_on_a_copy_and_on_images_from_all_over(models, monkeypatch):
    _, previous, _ = models
    seen, before = [], previous.state()

    def estimate(self, images, image_size):
        seen.extend(images)
        shift(self, 0.5)

    monkeypatch.setattr(YoloDetector, "estimate_batch_norm", estimate)
    found = statistics_on(previous, [Path(str(number)) for number in range(1000)], 64)
    assert len(seen) == LOOKED_AT
    assert int(seen[-1].name) > 990 and len(set(seen)) == len(seen)
    assert all(torch.equal(previous.state()[key], value) for key, value in before.items())
    assert MEAN in found and WEIGHT not in found
    assert not torch.equal(found[MEAN], before[MEAN])


@pytest.mark.parametrize("head", ["rows", "parallel"])
@pytest.mark.parametrize(("policy", "share"), [("mixture", 0.0), ("mixture", 0.5), ("freeze", 1.0), ("freeze", 0.0)])
def test_a_stage_starts_from_the_mixture_and_its_teacher_knows_the_new_domain(models, monkeypatch, head, policy, share):
    base, previous, _ = models
    old, seen = previous.state(), []
    new = {key: value + 1 for key, value in old.items() if "running" in key}

    def train(self, request):
        seen.append((self.state(), request.teacher.state()))
        return StageOutcome(({"loss": 1.0},), 1.0)

    monkeypatch.setattr(YoloDetector, "train_stage", train)
    monkeypatch.setattr(stage, "statistics_on", lambda *arguments: new)
    shared = {key: base.state()[key] for key in base.split().shared}
    options = {"batch_norm": policy, "teacher_statistics": share, "head": head, "calibration_epochs": 1}
    config = RunConfig(method={"name": "test", **options})
    result = later_stage(stage_input(shared, previous), config, None)
    for student, teacher in seen:  # training, then calibration
        torch.testing.assert_close(student[MEAN], old[MEAN] + (0.5 if policy == "mixture" else 0.0))
        torch.testing.assert_close(teacher[MEAN], old[MEAN] + share)
        assert torch.equal(teacher[WEIGHT], old[WEIGHT])
    assert len(seen) == 2
    assert ("statistics" in result.seconds) == (policy == "mixture" or share > 0)
    assert torch.equal(result.detector.state()[MEAN], seen[0][0][MEAN])
    assert torch.equal(previous.state()[MEAN], old[MEAN])


@pytest.mark.parametrize(("seen", "rate"), [(0.0, 0.1), (0.25, 0.15), (1.0, 0.3), (3.5, 0.3)])
def test_the_shared_rate_follows_what_the_previous_model_sees(models, monkeypatch, seen, rate):
    base, previous, _ = models
    trained = []

    def train(self, request):
        trained.append((request.method.shared_lr_factor, request.method.unseen_lr_factor))
        return StageOutcome(({"loss": 1.0},), 1.0)

    monkeypatch.setattr(YoloDetector, "train_stage", train)
    monkeypatch.setattr(stage, "seen_objects", lambda *arguments: seen)
    shared = {key: base.state()[key] for key in base.split().shared}
    method = {"name": "test", "shared_lr_factor": 0.3, "unseen_lr_factor": 0.1, "batch_norm": "freeze"}
    result = later_stage(stage_input(shared, previous), RunConfig(method=method), None)
    ((factor, unseen),) = trained
    assert factor == pytest.approx(rate) and unseen is None
    found = [result.merge[key] for key in ("seen", "shared_lr_factor", "tower_lr_factor")]
    assert found == [seen, factor, 1.0]
    assert result.seconds["statistics"] >= 0
    del method["unseen_lr_factor"]
    result = later_stage(stage_input(shared, previous), RunConfig(method=method), None)
    assert trained[1] == (0.3, None)
    assert "seen" not in result.merge and "statistics" not in result.seconds


@pytest.mark.parametrize(("seen", "rate"), [(0.0, 0.25), (0.5, 0.5), (2.0, 0.75)])
def test_the_rate_of_the_towers_follows_by_itself(models, monkeypatch, seen, rate):
    base, previous, _ = models
    trained = []

    def train(self, request):
        trained.append((request.method.shared_lr_factor, request.method.tower_lr_factor))
        return StageOutcome(({"loss": 1.0},), 1.0)

    monkeypatch.setattr(YoloDetector, "train_stage", train)
    monkeypatch.setattr(stage, "seen_objects", lambda *arguments: seen)
    shared = {key: base.state()[key] for key in base.split().shared}
    options = {"tower_lr_factor": 0.75, "unseen_tower_lr_factor": 0.25, "shared_lr_factor": 0.5}
    method = {"name": "test", "batch_norm": "freeze", "calibration_epochs": 1, **options}
    later_stage(stage_input(shared, previous), RunConfig(method=method), None)
    assert trained == [(0.5, pytest.approx(rate))] * 2  # training, then calibration


def test_the_head_is_never_averaged_unless_asked(models):
    _, previous, trained = models
    tower = "model.23.cv3.0.0.0.conv.weight"
    for towers, source in (("old", previous), ("new", trained)):
        state, _ = merged(models, merge=DUET, towers=towers)
        assert torch.equal(state[tower], source.state()[tower])


def test_seeds_of_stages_differ_and_do_not_depend_on_history():
    assert len({stage_seed(seed, task) for seed in range(5) for task in range(10)}) == 50
    assert stage_seed(3, 2) == 302


def test_fisher_information_decides_which_model_a_scalar_comes_from(models):
    base, previous, trained = models
    parameters = base.split().shared_parameters
    sure, unsure = ({key: torch.full(value.shape, size) for key, value in base.state().items()} for size in (1.0, 1e-9))
    detector = trained.clone()
    shared = {key: base.state()[key] for key in base.split().shared}
    item = stage_input(shared, previous, fisher={key: unsure[key] for key in parameters})
    config = RunConfig(method={"name": "t", "merge": {"name": "fisher", "options": {"normalize": False}}})
    merge_stage(detector, previous.state(), item, config, {key: sure[key] for key in parameters})
    torch.testing.assert_close(detector.state()[WEIGHT], trained.state()[WEIGHT], rtol=1e-4, atol=1e-5)
    assert weighs_by_fisher(config)
    assert not weighs_by_fisher(RunConfig(method={"name": "t", "merge": {"name": "ties"}}))


def test_the_rate_of_what_is_shared_follows_what_is_seen_and_the_batch(models, monkeypatch):
    base, previous, _ = models
    trained = []

    def train(self, request):
        trained.append(request.method.shared_lr_factor)
        return StageOutcome(({"loss": 1.0},), 1.0)

    monkeypatch.setattr(YoloDetector, "train_stage", train)
    monkeypatch.setattr(stage, "seen_objects", lambda *arguments: 0.5)
    shared = {key: base.state()[key] for key in base.split().shared}
    item = replace(stage_input(shared, previous), data=TrainingSet(Path("none"), 40, 40, 0, 0))
    rates = {"shared_lr_factor": 0.3, "unseen_lr_factor": 0.1, "min_steps": 20}
    config = RunConfig(method={"name": "test", "batch_norm": "freeze", **rates}, train={"batch": 16, "epochs": 4})
    result = later_stage(item, config, None)
    assert trained == [pytest.approx(0.1)]  # halfway from 0.1 to 0.3, times 8 / 16
    assert result.merge["shared_lr_factor"] == trained[0] and result.merge["seen"] == 0.5


def test_a_stage_of_few_pictures_takes_more_steps_and_says_with_which_batch(models, monkeypatch):
    base, previous, _ = models
    trained = []

    def train(self, request):
        trained.append((request.train.batch, request.method.shared_lr_factor))
        return StageOutcome(({"loss": 1.0},), 1.0)

    monkeypatch.setattr(YoloDetector, "train_stage", train)
    shared = {key: base.state()[key] for key in base.split().shared}
    item = replace(stage_input(shared, previous), data=TrainingSet(Path("none"), 40, 40, 0, 0))
    method = {"name": "test", "batch_norm": "freeze", "calibration_epochs": 1, "shared_lr_factor": 0.5}
    train_settings = {"batch": 16, "epochs": 4}
    result = later_stage(item, RunConfig(method={**method, "min_steps": 20}, train=train_settings), None)
    assert trained == [(8, 0.25)] * 2  # training, then calibration
    assert (result.merge["batch"], result.merge["shared_lr_factor"]) == (8, 0.25)
    result = later_stage(item, RunConfig(method=method, train=train_settings), None)
    assert trained[2:] == [(16, 0.5)] * 2 and "batch" not in result.merge
