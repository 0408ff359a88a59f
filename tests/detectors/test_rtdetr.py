"""What is RT-DETR's own: the rows of its decoder, the loss over new classes, the plain checkpoint."""

import numpy as np
import pytest
import torch
from ultralytics.models.utils.loss import RTDETRDetectionLoss

from duet.config import (
    DirectionalSettings,
    DistillationSettings,
    EvaluationSettings,
    MergeSettings,
    MethodSettings,
    RunConfig,
    TrainSettings,
)
from duet.datasets.training import TrainingSet
from duet.detectors.base import DomainStatistics
from duet.detectors.families import load_pretrained
from duet.detectors.rtdetr_training import NewClassesLoss
from duet.errors import InputError
from duet.stage import StageInput, later_stage


@pytest.fixture(scope="module")
def pretrained():
    return load_pretrained("rtdetr-tiny.yaml")


def test_the_small_one_is_small(pretrained):
    assert sum(value.numel() for value in pretrained.model.parameters()) < 4_000_000


def test_rows_are_those_of_selection_every_layer_and_denoising(pretrained):
    names = {key.removeprefix(pretrained.head_prefix) for key in pretrained._rows()}
    layers = len(pretrained.head.dec_score_head)
    scores = {f"dec_score_head.{index}.{kind}" for index in range(layers) for kind in ("weight", "bias")}
    assert names == scores | {"enc_score_head.weight", "enc_score_head.bias", "denoising_class_embed.weight"}


def test_the_decoder_is_shared_on_request(pretrained):
    decoder = f"{pretrained.head_prefix}decoder.layers.0.self_attn.out_proj.weight"
    assert decoder in pretrained.split().task
    assert decoder in pretrained.split(shared_towers=True).shared_parameters


def test_new_rows_never_lead_the_selection_of_queries(pretrained):
    start = pretrained.with_classes(("a", "b", "c"), 0)
    grown = start.grown(("d", "e"), 1, "rows")
    features = torch.randn(500, start.head.hidden_dim, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        scores = grown.head.enc_score_head(features)
    assert (scores[:, 3:].amax(-1) < scores[:, :3].amax(-1)).all()


def test_new_scores_start_as_rare_as_the_old_ones_are_on_average(pretrained):
    start = pretrained.with_classes(("a", "b"), 0)
    with torch.no_grad():
        start.head.dec_score_head[0].bias.copy_(torch.tensor([-2.0, -6.0]))
    grown = start.grown(("c",), 1, "rows")
    assert grown.head.dec_score_head[0].bias.tolist() == [-2.0, -6.0, -4.0]


def test_the_class_loss_over_new_classes_is_that_of_a_detector_without_the_old_ones():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 6, 5, generator=generator)
    found_scores = torch.rand(2, 6, generator=generator)
    targets = torch.tensor([[2, 4, 5, 5, 5, 5], [3, 5, 5, 5, 5, 5]])  # 5 is background
    new = NewClassesLoss(5, 2)._get_loss_class(logits, targets, found_scores, 3)
    expected = RTDETRDetectionLoss(nc=3, use_vfl=True)._get_loss_class(logits[..., 2:], targets - 2, found_scores, 3)
    torch.testing.assert_close(new["loss_class"], expected["loss_class"])
    changed = logits.clone()
    changed[..., :2] += 3.0
    again = NewClassesLoss(5, 2)._get_loss_class(changed, targets, found_scores, 3)
    assert torch.equal(again["loss_class"], new["loss_class"])


def test_a_plain_checkpoint_opens_without_this_package_and_predicts_the_same(pretrained, pictures, tmp_path):
    from ultralytics import RTDETR, YOLO

    detector = pretrained.with_classes(("a", "b"), 0).grown(("c",), 1, "rows")
    detector.save_checkpoint(tmp_path / "d.pt")
    ours = dict(detector.predict(pictures, 64, EvaluationSettings(confidence=0.001)))
    plain = YOLO(str(tmp_path / "d.pt"))
    assert isinstance(plain, RTDETR)
    assert plain.names == {0: "a", 1: "b", 2: "c"}
    for path in pictures:
        result = plain.predict(str(path), imgsz=64, conf=0.001, max_det=300, verbose=False)[0]
        np.testing.assert_allclose(result.boxes.conf.numpy(), ours[path].scores, atol=1e-5)
        np.testing.assert_allclose(result.boxes.xyxy.numpy(), ours[path].boxes_xyxy, atol=1e-2)


def test_a_checkpoint_of_plain_ultralytics_is_taken_as_a_start(pretrained, tmp_path):
    pretrained.with_classes(("a",), 0).save_checkpoint(tmp_path / "start.pt")
    opened = load_pretrained(str(tmp_path / "start.pt"))
    assert opened.describe().family == "rtdetr"
    assert opened.classes == ("a",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nothing: here", "does not describe a detector"),
        ("family: fcoss", "unknown detector family 'fcoss'"),
        ("family: fcos", "does not describe a detector"),
        ("[1, 2]", "expected a mapping"),
    ],
)
def test_an_architecture_that_is_none_is_refused(text, message, tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        load_pretrained(str(path))


def test_an_architecture_that_is_not_there_is_refused():
    with pytest.raises(InputError, match=r"nowhere\.yaml: no such architecture file"):
        load_pretrained("nowhere.yaml")


@pytest.mark.slow
def test_the_large_one_trains_merges_and_is_evaluated(make_request, pictures, tmp_path):
    previous = load_pretrained("rtdetr-l.yaml").with_classes(("a",), 0)
    method = MethodSettings(
        name="t",
        merge=MergeSettings(name="duet"),
        batch_norm="merge",
        negatives="new",
        distillation=DistillationSettings(),
        directional_consistency=DirectionalSettings(),
    )
    train = TrainSettings(epochs=1, batch=len(pictures), image_size=160, workers=0, amp=False)
    request = make_request(previous.grown(("b",), 1, "rows"), 1)
    shared = {key: previous.state()[key] for key in previous.split().shared}
    before = {key: value - 0.01 for key, value in shared.items() if value.is_floating_point()}
    colours = DomainStatistics((0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    item = StageInput(
        task=2,
        classes=("b",),
        data=TrainingSet(request.data, len(pictures), len(pictures), 0, 0),
        images=pictures,
        folder=tmp_path / "train",
        statistics=colours,
        past=(colours,),
        base={**shared, **before},
        previous=previous,
        before_previous={**shared, **before},
    )
    result = later_stage(item, RunConfig(method=method, train=train), None)
    assert result.detector.classes == ("a", "b")
    assert result.losses[0]["distill_loss"] >= 0
    assert result.losses[0]["dc_loss"] >= 0
    assert result.merge["alpha"]
    found = dict(result.detector.predict(pictures, 160, EvaluationSettings()))
    assert len(found) == len(pictures)
    result.detector.save_checkpoint(tmp_path / "d.pt")
    assert load_pretrained(str(tmp_path / "d.pt")).classes == ("a", "b")
