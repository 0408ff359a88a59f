"""What is FCOS's own: losses over new classes, boxes back in the original image, the plain loop and its pictures."""

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from duet.config import EvaluationSettings, MethodSettings, TrainSettings
from duet.detectors.families import load_pretrained
from duet.detectors.plain_data import Sample, TrainingPictures
from duet.detectors.plain_training import _optimizer
from duet.detectors.stage_plan import StagePlan
from duet.errors import InputError
from duet.learner import Learner
from duet.resolve import resolve_config


@pytest.fixture(scope="module")
def detector():
    return load_pretrained("fcos-tiny.yaml").with_classes(("a", "b", "c"), 0)


def test_a_box_is_found_where_it_stands_in_a_picture_that_is_not_square(detector, tmp_path):
    path = tmp_path / "wide.png"
    Image.fromarray(np.full((48, 96, 3), 128, dtype=np.uint8)).save(path)
    twin = detector.clone()
    with torch.no_grad():
        for value in twin.model.head.regression_head.bbox_reg.parameters():
            value.zero_()
        twin.model.head.regression_head.bbox_reg.bias.fill_(1.0)  # every side one anchor away
    found = dict(twin.predict([path], 64, EvaluationSettings(confidence=0.001, iou=1.0)))[path]
    # Input: 96 × 48 shrinks to 64 × 32 with 16 rows of border above and below. The anchor of stride 8 at the input's
    # (32, 32) lies at (48, 24) of the original; two anchors of 8 pixels are 24 pixels of the original.
    expected = np.array([36, 12, 60, 36])
    assert np.abs(found.boxes_xyxy - expected).max(1).min() < 1e-3


def test_the_loss_from_a_class_on_is_that_of_a_detector_with_the_later_classes_only(detector):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(1, 3, 64, 64, generator=generator)
    outputs = detector.raw(detector.model.eval(), images)
    sample = Sample(images[0], torch.tensor([[8.0, 8.0, 40.0, 40.0]]), torch.tensor([2]))
    shifted = Sample(sample.image, sample.boxes_xyxy, torch.tensor([1]))
    later = {**outputs, "cls_logits": outputs["cls_logits"][..., 1:]}
    one = detector.own_losses(images, [sample], outputs, 1)
    other = detector.own_losses(images, [shifted], later, 0)
    assert all(torch.equal(one[name], other[name]) for name in one)
    whole = detector.own_losses(images, [sample], outputs, 0)
    assert whole["classification"] > one["classification"]


def test_squared_gradients_of_one_picture_are_those_of_its_loss(detector, make_request, tmp_path):
    request = make_request(detector, 1)
    for path in sorted((request.data.parent / "images").iterdir())[1:]:
        path.unlink()
    values = detector.squared_gradients(request)
    pictures = TrainingPictures(request.data, request.train, 0, augment=False)
    twin = detector.clone()
    images = pictures[0].image.unsqueeze(0)
    sum(twin.own_losses(images, [pictures[0]], twin.raw(twin.model.eval(), images), 0).values()).backward()
    key = "head.classification_head.cls_logits.weight"
    torch.testing.assert_close(values[key], dict(twin.model.named_parameters())[key].grad.square())


def test_pictures_depend_on_seed_and_epoch_only(detector, make_request):
    request = make_request(detector, 0)
    one, same, other = (TrainingPictures(request.data, request.train, seed) for seed in (1, 1, 2))
    assert len(one) == 6
    assert torch.equal(one[3].image, same[3].image)
    assert torch.equal(one[3].boxes_xyxy, same[3].boxes_xyxy)
    assert not torch.equal(one[3].image, other[3].image)
    first = one[3].image
    one.epoch = 1
    assert not torch.equal(one[3].image, first)


def test_pictures_as_they_are_are_letterboxed_with_their_boxes(detector, make_request):
    request = make_request(detector, 1)
    sample = TrainingPictures(request.data, request.train, 0, augment=False)[0]  # 64 × 96: 43 wide in the input
    assert sample.image.shape == (3, 64, 64)
    assert sample.image[:, :, :10].unique().tolist() == pytest.approx([114 / 255])
    low, high = sample.boxes_xyxy[0, :2].tolist(), sample.boxes_xyxy[0, 2:].tolist()
    assert low == pytest.approx([32 - 0.3 * 43, 16], abs=1.0)
    assert high == pytest.approx([32 + 0.3 * 43, 48], abs=1.0)
    assert sample.labels.tolist() == [1]


def test_a_picture_without_a_label_is_background(detector, make_request):
    request = make_request(detector, 1)
    for path in (request.data.parent / "labels").iterdir():
        path.write_text("")
    sample = TrainingPictures(request.data, request.train, 0)[0]
    assert sample.boxes_xyxy.shape == (0, 4)
    twin = detector.clone()
    assert np.isfinite(twin.train_stage(request).losses[0]["classification"])


@pytest.mark.parametrize(("name", "kind"), [("AdamW", torch.optim.AdamW), ("SGD", torch.optim.SGD)])
def test_the_optimizer_spares_biases_and_slows_the_backbone(detector, name, kind):
    rows = tuple(detector._rows())
    plan = StagePlan(shared_prefixes=("backbone.",), shared_lr_factor=0.1, rows=rows, row_lr_factor=5.0)
    settings = TrainSettings(optimizer=name, lr0=0.01)
    optimizer = _optimizer(detector.model, settings, 0.5, plan)
    assert isinstance(optimizer, kind)
    found = {(round(group["lr"], 6), group["weight_decay"]) for group in optimizer.param_groups}
    assert found == {(rate, decay) for rate in (0.001, 0.01, 0.05) for decay in (0.5, 0.0)}
    named = dict(detector.model.named_parameters())
    fast = [value for group in optimizer.param_groups if group["lr"] > 0.04 for value in group["params"]]
    assert {id(value) for value in fast} == {id(named[name]) for name in rows}
    counted = sum(len(group["params"]) for group in optimizer.param_groups)
    assert counted == len(list(detector.model.parameters()))


def test_its_checkpoint_opens_with_weights_only(detector, tmp_path):
    detector.save_checkpoint(tmp_path / "d.pt")
    content = torch.load(tmp_path / "d.pt", weights_only=True)
    assert content["classes"] == ["a", "b", "c"]
    assert set(content["model"]) == set(detector.state())
    again = load_pretrained(str(tmp_path / "d.pt"))
    assert again.classes == ("a", "b", "c")
    assert all(torch.equal(value, detector.state()[key]) for key, value in again.state().items())
    content["model"].pop("head.classification_head.cls_logits.bias")
    torch.save(content, tmp_path / "d.pt")
    with pytest.raises(InputError, match=r"d\.pt: damaged, its tensors do not fit"):
        load_pretrained(str(tmp_path / "d.pt"))


def test_parallel_heads_are_refused(detector):
    with pytest.raises(InputError, match=r"method\.head: parallel"):
        detector.grown(("d",), 0, MethodSettings(name="t", head="parallel").head)


@pytest.mark.slow
def test_it_learns_two_tasks_of_the_demo_and_keeps_the_first(tmp_path, shared_cache, monkeypatch):
    monkeypatch.setenv("DUET_CACHE", str(shared_cache))
    series = {
        "name": "two",
        "scenes": {"seed": 0, "train_scenes": 200, "test_scenes": 60},
        "other_labels": "drop",
        "unlabelled_images": "keep",
        "train": {"epochs": 5, "image_size": 160, "lr0": 0.001, "fliplr": 0.0},
        "tasks": [
            {"domain": "clear", "classes": ["0", "1", "2"]},
            {"domain": "night", "classes": ["3", "4", "5"]},
        ],
    }
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(series))
    found = {}
    for method in ("sequential", "duet"):
        options = {"series": str(tmp_path / "two.yaml"), "detector": "fcos-tiny", "method": method}
        results = Learner(resolve_config(None, options), tmp_path / method).run()
        found[method] = results["indices"]["map50"]
    assert found["duet"]["avg_ri"] > found["sequential"]["avg_ri"]
    assert found["duet"]["ni"] >= 0.3
