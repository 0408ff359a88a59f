"""What every detector has to keep, on small random networks; a new adapter signs by an entry in ``adapters.py``."""

import copy

import cv2
import numpy as np
import pytest
import torch
from adapters import ADAPTERS
from PIL import Image

from duet.config import (
    AppearanceSettings,
    DirectionalSettings,
    DistillationSettings,
    EvaluationSettings,
    EwcSettings,
    MethodSettings,
)
from duet.detectors import stage_plan
from duet.detectors.base import Consolidation, DirectionalTarget
from duet.detectors.families import restore_detector, store_detector
from duet.detectors.stage_plan import AddedLosses
from duet.errors import InputError

GRID = 64  # sums of products of multiples of 1/64 are exact in float32, in whatever order they are computed


@pytest.fixture(scope="module", params=list(ADAPTERS))
def adapter(request):
    return ADAPTERS[request.param]


@pytest.fixture(scope="module")
def pretrained(adapter):
    return adapter.build()


@pytest.fixture
def detector(pretrained):
    return pretrained.with_classes(("a", "b"), seed=1)


@torch.no_grad()
def outputs(adapter, detector, size=96):
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    return adapter.outputs(detector, images)


def score_rows(detector):
    """Tensors that scores of classes are computed from, one row per class."""
    return [key for key in detector._rows() if "embed" not in key]


def test_the_split_covers_every_tensor_exactly_once(detector):
    state = detector.state()
    for shared_towers in (False, True):
        split = detector.split(shared_towers)
        assert sorted(split.shared + split.task) == sorted(state)
        assert split.parameters == {name for name, _ in detector.model.named_parameters()}
        assert not any("running" in key for key in split.shared_parameters)
    rows = detector.split(shared_towers=True).task
    assert all(len(state[key]) == 2 for key in rows)
    assert set(rows) < set(detector.split().task)


def exactly_summed(detector):
    """A copy whose class scores are computed on a grid; a matrix product of another width may else round otherwise."""
    twin = detector.clone()
    for key in score_rows(twin):
        layer = twin.model.get_submodule(key.rpartition(".")[0])
        with torch.no_grad():
            layer.get_parameter(key.rpartition(".")[2]).mul_(GRID).round_().div_(GRID)
        if key.endswith("weight"):
            layer.register_forward_pre_hook(lambda _, inputs: ((inputs[0] * GRID).round() / GRID,))
    return twin


def test_growing_leaves_old_outputs_unchanged_to_the_bit(adapter, detector):
    start = exactly_summed(detector)
    grown = exactly_summed(start.grown(("c", "d", "e"), seed=2, head="rows").grown(("f",), seed=3, head="rows"))
    before, after = outputs(adapter, start), outputs(adapter, grown)
    assert torch.equal(after[0][..., :2], before[0])
    assert torch.equal(after[1], before[1])
    assert after[0].shape[-1] == 6
    assert start.classes == ("a", "b")


def test_the_order_of_classes_and_their_rows_survive_three_growths(detector):
    with torch.no_grad():
        for key in detector._rows():
            dict(detector.model.named_parameters())[key][1] = 7.0
    grown = detector
    for number, name in enumerate("cde"):
        grown = grown.grown((name,), seed=number, head="rows")
    assert grown.classes == ("a", "b", "c", "d", "e")
    for key in grown._rows():
        assert len(grown.state()[key]) == 5
        assert (grown.state()[key][1] == 7.0).all()
        assert not (grown.state()[key][2:] == 7.0).any()


def test_growth_refuses_known_classes_and_unknown_heads(detector):
    with pytest.raises(ValueError, match="already has class 'a'"):
        detector.grown(("a",), seed=0, head="rows")
    if detector.describe().family != "yolo":
        with pytest.raises(InputError, match=r"method\.head: parallel"):
            detector.grown(("c",), seed=0, head="parallel")


def test_new_rows_follow_their_seed(detector):
    one, same, other = (detector.grown(("c",), seed=seed, head="rows").state() for seed in (1, 1, 2))
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert any(not torch.equal(one[key], other[key]) for key in one)


def test_new_rows_may_start_as_the_mean_of_the_old_ones(detector):
    with torch.no_grad():
        for key in detector._score_rows():
            detector.model.get_parameter(key).add_(torch.rand(2).view(2, *[1] * (detector.state()[key].ndim - 1)))
    old, grown = detector.state(), detector.grown(("c", "d"), seed=2, head="rows", new_rows="mean").state()
    assert set(detector._score_rows()) <= set(score_rows(detector))  # query selection has a start of its own
    for key in detector._score_rows():
        assert torch.equal(grown[key][:2], old[key])
        torch.testing.assert_close(grown[key][2:], old[key].mean(0, keepdim=True).expand_as(grown[key][2:]))
    random = detector.grown(("c", "d"), seed=2, head="rows").state()
    assert all(torch.equal(grown[key], random[key]) for key in random if key not in detector._score_rows())


def test_stored_and_restored_gives_the_same_outputs(adapter, detector, tmp_path):
    grown = detector.grown(("c",), seed=2, head="rows")
    store_detector(grown, tmp_path / "m.safetensors")
    again = restore_detector(tmp_path / "m.safetensors")
    assert again.classes == grown.classes
    for one, other in zip(outputs(adapter, again), outputs(adapter, grown)):
        assert torch.equal(one, other)


def test_a_damaged_file_is_named(detector, tmp_path):
    path = tmp_path / "m.safetensors"
    store_detector(detector, path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"m\.safetensors: not a readable"):
        restore_detector(path)


def test_copies_share_nothing(detector):
    own = {value.data_ptr() for value in detector.model.state_dict().values()}
    for other in (detector.clone(), detector.grown(("c",), seed=0, head="rows")):
        assert not own & {value.data_ptr() for value in other.model.state_dict().values()}


def test_a_state_that_does_not_fit_is_refused(detector):
    state = detector.state()
    state.pop(next(iter(state)))
    with pytest.raises(ValueError, match="does not fit"):
        detector.load_state(state)


def test_predictions_have_the_contracts_form(detector, pictures):
    found = dict(detector.predict(pictures, 64, EvaluationSettings(confidence=0.0001)))
    assert sorted(found) == sorted(pictures)
    assert sum(len(item.scores) for item in found.values()) > 0
    for path, item in found.items():
        with Image.open(path) as picture:
            width, height = picture.size
        assert item.boxes_xyxy.shape == (len(item.scores), 4)
        assert item.boxes_xyxy.dtype == np.float32
        assert item.scores.dtype == np.float32
        assert (np.diff(item.scores) <= 0).all()
        assert set(item.labels) <= {"a", "b"}
        assert (item.boxes_xyxy >= 0).all()
        assert (item.boxes_xyxy[:, [0, 2]] <= width + 1e-3).all()
        assert (item.boxes_xyxy[:, [1, 3]] <= height + 1e-3).all()


def test_pictures_in_memory_give_what_their_files_give(detector, pictures):
    settings = EvaluationSettings(confidence=0.0001, multi_label=False)
    held = [(number, cv2.imread(str(path))) for number, path in enumerate(pictures)]
    found = dict(detector.predict_pictures(held, 64, settings, batch=2, square=True))
    assert sorted(found) == list(range(len(pictures)))
    for path, expected in detector.predict(pictures, 64, settings):
        own = found[pictures.index(path)]
        np.testing.assert_allclose(own.scores, expected.scores, atol=1e-5)
        assert own.boxes_xyxy.shape == expected.boxes_xyxy.shape


def test_prediction_does_not_change_the_detector(detector, pictures):
    before = detector.state()
    list(detector.predict(pictures, 64, EvaluationSettings()))
    assert all(torch.equal(before[key], value) for key, value in detector.state().items())


@pytest.mark.parametrize("kind", ["paper", "weighted", "lwf", "erd"])
def test_distillation_between_equal_models_pulls_nowhere_and_otherwise_only_at_the_student(adapter, detector, kind):
    images = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    student = detector.grown(("c",), seed=2, head="rows")
    loss = adapter.distill(student, detector, images, kind)
    loss.backward()
    still = max(value.grad.abs().max() for value in gradients(student))
    assert abs(loss.item()) < 1e-3
    assert still < 1e-3
    assert all(value.grad is None for value in detector.model.parameters())
    with torch.no_grad():
        for value in student.model.parameters():
            value.mul_(1.1)
            value.grad = None
    loss = adapter.distill(student, detector, images, kind)
    loss.backward()
    assert loss.item() > 0.01
    named = dict(student.model.named_parameters())
    assert max(named[key].grad.abs().max() for key in student.split().shared_parameters) > 0
    assert max(value.grad.abs().max() for value in gradients(student)) > 10 * still
    for key in score_rows(student):
        if named[key].grad is not None:  # nothing says what the student makes of a class that the teacher never saw
            assert not named[key].grad[2:].any()


def gradients(detector):
    return [value for value in detector.model.parameters() if value.grad is not None]


def test_the_first_stage_trains_backbone_and_head(detector, make_request):
    before = detector.state()
    outcome = detector.train_stage(make_request(detector, 0))
    after = detector.state()
    assert len(outcome.losses) == 1
    assert all(np.isfinite(value) for value in outcome.losses[0].values())
    assert not any("distill" in name or "dc" in name for name in outcome.losses[0])
    moved = [key for key in detector.split().parameters if not torch.equal(before[key], after[key])]
    assert len(moved) > 0.7 * len(detector.split().parameters)
    assert any(not torch.equal(before[key], after[key]) for key in before if "running_mean" in key)
    assert detector.image_size == 64


def later(make_request, detector, folder="later", **options):
    """A second stage on class c, with the teacher; returns the trained detector, its losses and its start."""
    method = MethodSettings(name="test", **options)
    grown = detector.grown(("c",), seed=2, head="rows")
    start = grown.state()
    old = detector.state()
    shared = detector.split(method.towers == "shared").shared_parameters
    generator = torch.Generator().manual_seed(0)
    direction = {key: torch.randn(old[key].shape, generator=generator) for key in shared}
    directional = DirectionalTarget({key: old[key] for key in shared}, direction)
    wanted = directional if method.directional_consistency else None
    request = make_request(grown, 2, folder, method=method, teacher=detector, directional=wanted)
    return grown, grown.train_stage(request).losses[-1], start


@pytest.mark.parametrize("kind", ["paper", "weighted"])
def test_losses_are_listed_by_name_and_weighted(detector, make_request, kind):
    teacher = detector.state()
    _, losses, _ = later(
        make_request,
        detector,
        towers="shared",
        distillation=DistillationSettings(kind=kind, weight=0.5),
        directional_consistency=DirectionalSettings(weight=0.1),
    )
    assert losses["distill_loss"] > 0
    assert losses["dc_loss"] > 0
    assert losses["distill_weighted"] == pytest.approx(0.5 * losses["distill_loss"], rel=1e-4)
    assert losses["dc_weighted"] == pytest.approx(0.1 * losses["dc_loss"], rel=1e-4)
    assert all(torch.equal(teacher[key], value) for key, value in detector.state().items())


def test_consolidation_holds_what_mattered(detector, make_request):
    grown = detector.grown(("c",), seed=2, head="rows")
    old, keys = detector.state(), detector.split(shared_towers=True).shared_parameters
    held = Consolidation({key: old[key] for key in keys}, {key: torch.ones_like(old[key]) for key in keys})
    method = MethodSettings(name="t", ewc=EwcSettings(weight=2.0))
    request = make_request(grown, 2, method=method, teacher=detector, consolidation=held)
    losses = grown.train_stage(request).losses[-1]
    assert losses["ewc_loss"] > 0
    assert losses["ewc_weighted"] == pytest.approx(2 * losses["ewc_loss"], rel=1e-4)


def test_old_rows_stand_still_when_they_are_held(detector, make_request):
    grown, _, start = later(make_request, detector, negatives="new", old_rows="restore")
    after = grown.state()
    for key in grown._rows():
        torch.testing.assert_close(after[key][:2], start[key][:2], rtol=1e-5, atol=2e-6)  # rounding of the average
    assert any(not torch.equal(after[key][2:], start[key][2:]) for key in grown._rows())


def test_old_classes_get_no_class_loss_when_negatives_are_new(detector, make_request):
    def moved(negatives):
        options = {"negatives": negatives, "old_rows": "trained", "weight_decay": 0.0}
        grown, _, start = later(make_request, detector, negatives, **options)
        after = grown.state()
        return max((after[key][:2] - start[key][:2]).abs().max().item() for key in score_rows(grown))

    assert moved("new") < 2e-6
    assert moved("all") > 1e-4


def test_frozen_parts_do_not_move_their_statistics_included(detector, make_request):
    grown, _, start = later(
        make_request, detector, negatives="new", freeze_shared=True, freeze_towers=True, batch_norm="freeze"
    )
    after = grown.state()
    moved = {key for key in start if not torch.allclose(after[key].float(), start[key].float(), atol=2e-6, rtol=0)}
    assert moved
    assert moved <= set(grown._rows())


def test_a_frozen_backbone_leaves_the_head_free(detector, make_request):
    grown, _, start = later(make_request, detector, freeze_shared=True)
    after = grown.state()
    assert all(torch.allclose(after[key].float(), start[key].float(), atol=2e-6) for key in grown.split().shared)
    assert any(not torch.equal(after[key], start[key]) for key in grown.split().task if key not in grown._rows())


def test_frozen_batch_norm_keeps_statistics_and_trains_weights(detector, make_request):
    grown, _, start = later(make_request, detector, batch_norm="freeze")
    after = grown.state()
    statistics = [key for key in start if "running" in key]
    assert statistics
    assert all(torch.allclose(after[key], start[key], rtol=0, atol=1e-6) for key in statistics)
    assert any(not torch.equal(after[key], start[key]) for key in grown.split().shared_parameters)


def test_shared_parameters_move_less_with_a_smaller_learning_rate(detector, make_request):
    def moved(folder, factor):
        grown, _, start = later(make_request, detector, folder, shared_lr_factor=factor)
        after = grown.state()
        return sum((after[key] - start[key]).abs().sum().item() for key in detector.split().shared_parameters)

    assert moved("slow", 0.01) < 0.1 * moved("fast", 1.0)


def test_the_first_layers_move_less_with_layer_decay(detector, make_request):
    def moved(folder, decay):
        grown, _, start = later(make_request, detector, folder, layer_decay=decay)
        shared = set(grown.split().shared_parameters)
        names = [key for key, _ in grown.model.named_parameters() if key in shared]
        after, eighth = grown.state(), len(names) // 8
        return [
            sum((after[key] - start[key]).abs().sum().item() for key in keys)
            for keys in (names[:eighth], names[-eighth:])
        ]

    (first, last), (slow_first, same_last) = moved("even", 1.0), moved("decayed", 0.01)
    assert slow_first < 0.1 * first
    assert same_last == pytest.approx(last, rel=0.5)


def test_new_class_rows_move_more_with_a_larger_learning_rate(detector, make_request):
    def moved(folder, factor):
        grown, _, start = later(make_request, detector, folder, row_lr_factor=factor)
        after, rows = grown.state(), grown._rows()
        others = [key for key in grown.split().parameters if key not in rows]
        return [sum((after[key] - start[key]).abs().sum().item() for key in keys) for keys in (rows, others)]

    (slow_rows, others), (fast_rows, same_others) = moved("slow", 1.0), moved("fast", 10.0)
    assert fast_rows > 3 * slow_rows
    assert same_others == pytest.approx(others, rel=0.5)


@pytest.mark.parametrize("later", [False, True])
def test_the_student_alone_sees_varied_pictures(later, detector, make_request, monkeypatch):
    def turn_over(images, share, random):
        shares.append(share)
        images.copy_(1 - images)
        varied.append(images.clone())

    def watch(self, outputs, images):
        taught.append(images.clone())
        return added(self, outputs, images)

    shares, varied, taught, added = [], [], [], AddedLosses.__call__
    monkeypatch.setattr(stage_plan, "vary", turn_over)
    monkeypatch.setattr(AddedLosses, "__call__", watch)
    method = MethodSettings(name="test", appearance=AppearanceSettings(share=0.25), distillation=DistillationSettings())
    student = detector.grown(("c",), seed=2, head="rows") if later else detector
    request = make_request(student, 1, method=method, teacher=detector.clone() if later else None)
    student.train_stage(request)
    assert shares and set(shares) == {0.25}  # the first stage too
    assert all(torch.allclose(plain, 1 - seen) for plain, seen in zip(taught, varied, strict=True))


def test_without_the_setting_nothing_is_varied(detector, make_request, monkeypatch):
    def refuse(images, share, random):
        raise AssertionError("varied")

    monkeypatch.setattr(stage_plan, "vary", refuse)
    detector.train_stage(make_request(detector, 1))


def test_head_policies_put_the_head_together_as_they_say(detector):
    current = detector.grown(("c",), seed=2, head="rows")
    with torch.no_grad():
        for value in current.model.parameters():
            value.add_(1.0)
    old, new = detector.state(), current.state()
    rows = set(current._rows())
    tower = next(key for key in current.split().task if key in current.split().parameters and key not in rows)
    for towers, expected in (("old", old[tower]), ("new", new[tower]), ("merge", (old[tower] + new[tower]) / 2)):
        merged = current.merged_head(old, MethodSettings(name="t", towers=towers))
        assert set(merged) == set(current.split().task)
        torch.testing.assert_close(merged[tower], expected)
        for row in rows:
            assert torch.equal(merged[row][:2], old[row])
            assert torch.equal(merged[row][2:], new[row][2:])
    assert set(current.merged_head(old, MethodSettings(name="t", towers="shared"))) == rows
    trained = current.merged_head(old, MethodSettings(name="t", old_rows="trained"))
    assert all(torch.equal(trained[row], new[row]) for row in rows)


def test_the_same_seed_gives_the_same_weights(detector, make_request):
    states = []
    for name in ("one", "two"):
        twin = detector.clone()
        twin.train_stage(make_request(twin, 0, name))
        states.append(twin.state())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_a_training_leaves_the_memory_layout_as_it_was(detector, make_request):
    before = detector.state()
    detector.train_stage(make_request(detector, 0))
    after = detector.state()
    assert any(not torch.equal(before[key], after[key]) for key in before)
    assert all(after[key].stride() == before[key].stride() for key in before)


def test_squared_gradients_are_there_for_every_parameter_and_change_nothing(detector, make_request):
    before = detector.state()
    values = detector.squared_gradients(make_request(detector, 0))
    assert set(values) == set(detector.split().parameters)
    assert all(values[key].shape == before[key].shape and (values[key] >= 0).all() for key in values)
    assert sum((values[key] > 0).any().item() for key in detector.split().shared_parameters) > 30
    assert all(torch.equal(before[key], value) for key, value in detector.state().items())


def test_a_loss_that_stays_zero_stops_the_stage(detector, make_request):
    grown = detector.grown(("c",), seed=2, head="rows")
    shared, old = detector.split().shared_parameters, detector.state()
    nothing = DirectionalTarget({key: old[key] for key in shared}, {key: torch.zeros_like(old[key]) for key in shared})
    method = MethodSettings(name="t", directional_consistency=DirectionalSettings())
    options = {"method": method, "teacher": detector, "epochs": 3}
    with pytest.raises(RuntimeError, match="dc loss is switched on and stayed exactly zero"):
        grown.train_stage(make_request(grown, 2, "a", directional=nothing, **options))
    wrong = DirectionalTarget({"nowhere": torch.zeros(1)}, {"nowhere": torch.zeros(1)})
    with pytest.raises(RuntimeError, match="1 of 1 shared parameters match nothing"):
        grown.train_stage(make_request(grown, 2, "b", directional=wrong, **options))


def test_a_stage_of_very_few_steps_is_not_taken_for_a_dead_loss(detector, make_request):
    grown = detector.grown(("c",), seed=2, head="rows")
    shared, old = detector.split().shared_parameters, detector.state()
    target = DirectionalTarget({key: old[key] for key in shared}, {key: torch.zeros_like(old[key]) for key in shared})
    method = MethodSettings(name="t", directional_consistency=DirectionalSettings())
    outcome = grown.train_stage(make_request(grown, 2, method=method, teacher=detector, directional=target))
    assert outcome.losses[-1]["dc_loss"] == 0.0


def test_a_loss_that_is_not_finite_stops_the_stage(detector, make_request):
    with torch.no_grad():
        dict(detector.model.named_parameters())[detector.split().shared_parameters[0]].fill_(float("nan"))
    with pytest.raises((RuntimeError, ValueError), match=r"is not finite|non-finite|NaN|nan"):
        detector.train_stage(make_request(detector, 0))


def test_batch_norm_is_estimated_on_what_is_given(detector, pictures):
    before = detector.state()
    detector.estimate_batch_norm(pictures, 64)
    after = detector.state()
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert moved
    assert all("running" in key or "num_batches" in key for key in moved)


def test_a_checkpoint_is_written_and_holds_no_code_of_ours(detector, tmp_path):
    path = tmp_path / "d.pt"
    copy.deepcopy(detector).save_checkpoint(path)
    assert b"duet." not in path.read_bytes()
