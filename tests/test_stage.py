"""Merging a stage: shared tensors by the merger, BatchNorm by its policy, the head by its policies."""

from pathlib import Path

import pytest
import torch

from duet.config import RunConfig
from duet.datasets.training import TrainingSet
from duet.detectors.base import DomainStatistics
from duet.detectors.yolo import YoloDetector
from duet.stage import StageInput, merge_stage, stage_seed, weighs_by_fisher

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
    for policy in ("current", "freeze"):
        state, _ = merged(models, merge=DUET, batch_norm=policy)
        assert torch.equal(state[MEAN], new[MEAN])


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
