"""What every detector has to keep, on a small random network."""

import copy
from itertools import count
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from duet.config import DirectionalSettings, DistillationSettings, EvaluationSettings, MethodSettings, TrainSettings
from duet.detectors.base import DirectionalTarget
from duet.detectors.families import load_pretrained, restore_detector, store_detector
from duet.detectors.ultralytics_checkpoint import open_checkpoint
from duet.detectors.yolo import YoloDetector
from duet.errors import InputError

TRAIN = TrainSettings(epochs=1, batch=4, image_size=64, workers=0, threads=1, amp=False, lr0=1e-2)


@pytest.fixture(scope="module")
def pretrained():
    from ultralytics.nn.tasks import DetectionModel

    torch.manual_seed(0)
    return YoloDetector(DetectionModel("yolo11n.yaml", nc=80, verbose=False))


@pytest.fixture
def detector(pretrained):
    return pretrained.with_classes(("a", "b"), seed=1)


def outputs(detector, size=64, seed=0):
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(seed))
    model = copy.deepcopy(detector.model).eval()
    with torch.no_grad():
        return model(images)[0]  # (B, 4 + C, A)


@pytest.mark.parametrize("head", ["rows", "parallel"])
def test_growing_leaves_old_outputs_unchanged_to_the_bit(detector, head):
    before = outputs(detector)
    grown = detector.grown(("c", "d", "e"), seed=2, head=head).grown(("f",), seed=3, head=head)
    after = outputs(grown)
    anchors = before.shape[2]
    assert grown.classes == ("a", "b", "c", "d", "e", "f")
    assert torch.equal(after[:, :6, :anchors], before)
    assert after.shape == (2, 4 + 6, anchors * (3 if head == "parallel" else 1))
    if head == "parallel":
        assert not after[:, 6:, :anchors].any()
    assert detector.classes == ("a", "b")


def test_rows_keep_the_number_of_parameters_of_a_plain_head(detector):
    grown = detector.grown(("c",), seed=2, head="rows")
    count = sum(value.numel() for value in grown.model.parameters())
    assert count - sum(value.numel() for value in detector.model.parameters()) == 3 * (80 + 1)


def test_a_known_class_cannot_be_added(detector):
    with pytest.raises(ValueError, match="already has class 'a'"):
        detector.grown(("a",), seed=0, head="rows")
    parallel = detector.grown(("c",), seed=0, head="parallel")
    with pytest.raises(InputError, match=r"keep method\.head: parallel"):
        parallel.grown(("d",), seed=0, head="rows")


def test_new_rows_start_as_rare_as_the_old_ones_are_on_average(detector):
    with torch.no_grad():
        detector.head.cv3[0][-1].bias.copy_(torch.tensor([-2.0, -6.0]))
    grown = detector.grown(("c", "d"), seed=1, head="rows")
    assert grown.head.cv3[0][-1].bias.tolist() == [-2.0, -6.0, -4.0, -4.0]


@pytest.mark.parametrize("head", ["rows", "parallel"])
def test_stored_and_restored_gives_the_same_outputs(detector, head, tmp_path):
    grown = detector.grown(("c",), seed=2, head=head).grown(("d",), seed=2, head=head)
    store_detector(grown, tmp_path / "m.safetensors")
    again = restore_detector(tmp_path / "m.safetensors")
    assert again.classes == grown.classes
    assert torch.equal(outputs(again), outputs(grown))


def test_a_plain_checkpoint_opens_without_this_package_and_predicts_the_same(detector, pictures, tmp_path):
    from ultralytics import YOLO

    detector.save_checkpoint(tmp_path / "d.pt")
    ours = dict(detector.predict(pictures, 64, EvaluationSettings(confidence=0.0001, multi_label=False)))
    plain = YOLO(str(tmp_path / "d.pt"))
    assert plain.names == {0: "a", 1: "b"}
    for path in pictures:
        result = plain.predict(str(path), imgsz=64, conf=0.0001, iou=0.7, max_det=300, verbose=False)[0]
        np.testing.assert_allclose(result.boxes.xyxy.numpy(), ours[path].boxes_xyxy, atol=1e-3)
        np.testing.assert_allclose(result.boxes.conf.numpy(), ours[path].scores, atol=1e-5)


def test_a_box_counts_for_every_class_unless_its_best_is_asked_for(detector, pictures):
    settings = EvaluationSettings(confidence=0.0001, iou=1.0, max_detections=10_000)
    for path, found in detector.predict(pictures, 64, settings):
        best = dict(detector.predict([path], 64, settings.model_copy(update={"multi_label": False})))[path]
        assert len(found.labels) == 2 * len(best.labels)
        assert sorted(found.labels) == ["a"] * len(best.labels) + ["b"] * len(best.labels)


def test_a_slow_machine_loses_no_boxes(detector, pictures, monkeypatch):
    settings = EvaluationSettings(confidence=0.0001)
    expected = dict(detector.predict(pictures, 64, settings))
    clock = count(step=60)  # every look at it is a minute later
    monkeypatch.setattr("ultralytics.utils.nms.time", SimpleNamespace(time=lambda: float(next(clock))))
    for path, found in detector.predict(pictures, 64, settings):
        assert found.labels == expected[path].labels != ()


def test_wide_pictures_in_memory_are_padded_as_ultralytics_pads_files(detector, tmp_path):
    from ultralytics import YOLO

    wide = np.random.default_rng(0).integers(0, 255, (48, 200, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "wide.png"), wide)
    detector.save_checkpoint(tmp_path / "d.pt")
    settings = EvaluationSettings(confidence=0.0001)
    plain = YOLO(str(tmp_path / "d.pt")).predict(
        str(tmp_path / "wide.png"), imgsz=128, conf=0.0001, iou=0.7, max_det=300, verbose=False
    )[0]
    ((_, ours),) = detector.predict_pictures([(0, wide)], 128, settings)
    ((_, square),) = detector.predict_pictures([(0, wide)], 128, settings, square=True)
    np.testing.assert_allclose(ours.boxes_xyxy, plain.boxes.xyxy.numpy(), atol=1e-3)
    np.testing.assert_allclose(ours.scores, plain.boxes.conf.numpy(), atol=1e-5)
    assert square.scores.shape != ours.scores.shape or not np.allclose(square.scores, ours.scores, atol=1e-5)


def test_a_checkpoint_tells_the_size_it_was_trained_at(detector, tmp_path):
    detector._image_size = 96
    detector.save_checkpoint(tmp_path / "d.pt")
    assert open_checkpoint(tmp_path / "d.pt").image_size == 96


class Touch:
    """A pickle that would create a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_what_is_no_checkpoint_is_refused_and_nothing_runs(tmp_path):
    path = tmp_path / "x.pt"
    for content in (b"", b"nothing", b"I am a text file\n" * 20):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"x\.pt: refused as a checkpoint"):
            open_checkpoint(path)
    torch.save({"model": Touch(tmp_path / "touched")}, path)
    with pytest.raises(InputError, match="refused as a checkpoint"):
        open_checkpoint(path)
    assert not (tmp_path / "touched").exists()


def test_the_first_stage_trains_everything(detector, make_request):
    before = detector.state()
    outcome = detector.train_stage(make_request(detector, 0))
    after = detector.state()
    assert set(outcome.losses[0]) == {"box_loss", "cls_loss", "dfl_loss"}
    still = {key for key in before if torch.equal(before[key], after[key]) and before[key].is_floating_point()}
    # The box branch of a level without an object gets no gradient.
    assert all(key.startswith(("model.23.dfl.", "model.23.cv2.")) for key in still)
    assert "model.23.dfl.conv.weight" in still


def later(make_request, detector, head="rows", folder="stage", **options):
    """A second stage on class c, with the teacher; returns the trained detector, its losses and its start."""
    method = MethodSettings(name="test", head=head, **options)
    grown = detector.grown(("c",), seed=2, head=head)
    start = grown.state()
    shared = detector.split().shared_parameters
    old = detector.state()
    generator = torch.Generator().manual_seed(0)
    direction = {key: torch.randn(old[key].shape, generator=generator) for key in shared}
    directional = DirectionalTarget({key: old[key] for key in shared}, direction)
    outcome = grown.train_stage(
        make_request(
            grown,
            2,
            folder,
            method=method,
            teacher=detector,
            directional=directional if method.directional_consistency else None,
        )
    )
    return grown, outcome.losses[-1], start


@pytest.mark.parametrize("head", ["rows", "parallel"])
@pytest.mark.parametrize("kind", ["paper", "weighted"])
def test_losses_are_listed_by_name_and_weighted(detector, make_request, tmp_path, head, kind):
    teacher = detector.state()
    _, losses, _ = later(
        make_request,
        detector,
        head,
        distillation=DistillationSettings(kind=kind, weight=0.5),
        directional_consistency=DirectionalSettings(weight=0.1),
    )
    assert losses["distill_loss"] > 0
    assert losses["dc_loss"] > 0
    assert losses["distill_weighted"] == pytest.approx(0.5 * losses["distill_loss"], rel=1e-4)
    assert losses["dc_weighted"] == pytest.approx(0.1 * losses["dc_loss"], rel=1e-4)
    header = (tmp_path / "stage" / "train" / "results.csv").read_text().splitlines()[0]
    assert all(f"train/{name}" in header for name in losses)
    assert all(torch.equal(teacher[key], value) for key, value in detector.state().items())


def test_old_classes_get_no_class_loss_when_negatives_are_new(detector, make_request):
    with torch.no_grad():
        for branch in detector.head.cv3:
            branch[-1].bias.fill_(2.0)  # every class everywhere: the loss is almost all background, equal per class
    _, everything, _ = later(make_request, detector, folder="all", negatives="all")
    _, new, _ = later(make_request, detector, folder="new", negatives="new")
    assert new["cls_loss"] == pytest.approx(everything["cls_loss"] / 3, rel=0.2)  # one class of three


def test_parallel_leaves_old_heads_exactly(detector, make_request):
    grown, _, start = later(make_request, detector, "parallel")
    after = grown.state()
    old = [key for key in start if ".heads.0." in key and start[key].is_floating_point()]
    new = [key for key in start if ".heads.1.cv3." in key and start[key].is_floating_point()]
    assert old
    assert all(torch.equal(after[key], start[key]) for key in old)
    assert all(not torch.equal(after[key], start[key]) for key in new)
    merged = grown.merged_head(detector.state(), MethodSettings(name="t", head="parallel"))
    assert set(merged) == set(grown.split().task)
    for key, value in detector.state().items():
        if key.startswith("model.23."):
            assert torch.equal(merged[key.replace("model.23.", "model.23.heads.0.")], value)


@pytest.mark.parametrize("architecture", ["yolov10n.yaml", "yolo26n.yaml"])
def test_an_end_to_end_head_is_refused(architecture):
    with pytest.raises(InputError, match="expected a plain Detect head"):
        load_pretrained(architecture)


@pytest.mark.parametrize("architecture", ["yolov8n.yaml", "yolo12n.yaml"])
def test_other_families_with_the_same_head_need_no_code(architecture):
    from ultralytics.nn.tasks import DetectionModel

    detector = YoloDetector(DetectionModel(architecture, nc=80, verbose=False)).with_classes(("a",), 0)
    grown = detector.grown(("b",), 0, "rows")
    assert torch.equal(outputs(grown)[:, :5], outputs(detector))
