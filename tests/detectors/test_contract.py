"""What every detector has to keep, on a small random network."""

import copy

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from duet.config import DirectionalSettings, DistillationSettings, EvaluationSettings, MethodSettings, TrainSettings
from duet.detectors.base import DirectionalTarget, DomainStatistics, StageRequest
from duet.detectors.families import restore_detector, store_detector
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


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    paths = []
    for number in range(6):
        size = (64, 64) if number % 2 else (96, 64)
        path = folder / f"{number}.png"
        Image.fromarray(generator.integers(0, 255, (*size, 3), dtype=np.uint8)).save(path)
        paths.append(path)
    return paths


def training_set(folder, pictures, classes, index):
    (folder / "images").mkdir(parents=True)
    (folder / "labels").mkdir()
    for path in pictures:
        (folder / "images" / path.name).symlink_to(path)
        (folder / "labels" / f"{path.stem}.txt").write_text(f"{index} 0.5 0.5 0.6 0.5\n")
    layout = {"path": str(folder), "train": "images", "val": "images", "names": dict(enumerate(classes))}
    (folder / "data.yaml").write_text(yaml.safe_dump(layout))
    return folder / "data.yaml"


def request(tmp_path, pictures, detector, index, **options):
    method = options.pop("method", MethodSettings(name="test"))
    data = training_set(tmp_path / "data", pictures, detector.classes, index)
    epochs = options.pop("epochs", 1)
    return StageRequest(data, tmp_path / "train", 3, TRAIN, method, epochs, **options)


def outputs(detector, size=64, seed=0):
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(seed))
    model = copy.deepcopy(detector.model).eval()
    with torch.no_grad():
        return model(images)[0]  # (B, 4 + C, A)


def test_the_split_covers_every_tensor_exactly_once(detector):
    split = detector.split()
    assert sorted(split.shared + split.task) == sorted(detector.state())
    assert not set(split.shared) & set(split.task)
    assert split.parameters == {name for name, _ in detector.model.named_parameters()}
    assert all("model.23." in key for key in split.task)
    assert len(split.shared_parameters) > 100
    assert not any("running" in key for key in split.shared_parameters)


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


def test_new_rows_follow_their_seed(detector):
    one, same, other = (detector.grown(("c",), seed=seed, head="rows").state() for seed in (1, 1, 2))
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert any(not torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("head", ["rows", "parallel"])
def test_stored_and_restored_gives_the_same_outputs(detector, head, tmp_path):
    grown = detector.grown(("c",), seed=2, head=head).grown(("d",), seed=2, head=head)
    store_detector(grown, tmp_path / "m.safetensors")
    again = restore_detector(tmp_path / "m.safetensors")
    assert again.classes == grown.classes
    assert torch.equal(outputs(again), outputs(grown))


def test_a_damaged_file_is_named(detector, tmp_path):
    path = tmp_path / "m.safetensors"
    store_detector(detector, path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"m\.safetensors: not a readable"):
        restore_detector(path)


def test_a_clone_shares_nothing(detector):
    twin = detector.clone()
    own = {value.data_ptr() for value in detector.model.state_dict().values()}
    assert not own & {value.data_ptr() for value in twin.model.state_dict().values()}


def test_a_state_that_does_not_fit_is_refused(detector):
    state = detector.state()
    state.pop(next(iter(state)))
    with pytest.raises(ValueError, match="does not fit"):
        detector.load_state(state)


def test_predictions_have_the_contracts_form(detector, pictures):
    settings = EvaluationSettings(confidence=0.0001)
    found = dict(detector.predict(pictures, 64, settings))
    assert sorted(found) == sorted(pictures)
    for path, item in found.items():
        with Image.open(path) as picture:
            width, height = picture.size
        assert item.boxes_xyxy.shape == (len(item.scores), 4)
        assert item.boxes_xyxy.dtype == np.float32
        assert (np.diff(item.scores) <= 0).all()
        assert set(item.labels) <= {"a", "b"}
        assert (item.boxes_xyxy >= 0).all()
        assert (item.boxes_xyxy[:, [0, 2]] <= width).all()
        assert (item.boxes_xyxy[:, [1, 3]] <= height).all()


def test_a_plain_checkpoint_opens_without_this_package_and_predicts_the_same(detector, pictures, tmp_path):
    from ultralytics import YOLO

    detector.save_checkpoint(tmp_path / "d.pt")
    ours = dict(detector.predict(pictures, 64, EvaluationSettings(confidence=0.0001)))
    plain = YOLO(str(tmp_path / "d.pt"))
    assert plain.names == {0: "a", 1: "b"}
    for path in pictures:
        result = plain.predict(str(path), imgsz=64, conf=0.0001, iou=0.7, max_det=300, verbose=False)[0]
        np.testing.assert_allclose(result.boxes.xyxy.numpy(), ours[path].boxes_xyxy, atol=1e-3)
        np.testing.assert_allclose(result.boxes.conf.numpy(), ours[path].scores, atol=1e-5)


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


def test_the_first_stage_trains_everything(detector, pictures, tmp_path):
    before = detector.state()
    outcome = detector.train_stage(request(tmp_path, pictures, detector, 0))
    after = detector.state()
    assert set(outcome.losses[0]) == {"box_loss", "cls_loss", "dfl_loss"}
    still = {key for key in before if torch.equal(before[key], after[key]) and before[key].is_floating_point()}
    # The box branch of a level without an object gets no gradient.
    assert all(key.startswith(("model.23.dfl.", "model.23.cv2.")) for key in still)
    assert "model.23.dfl.conv.weight" in still


def later(tmp_path, pictures, detector, head="rows", **options):
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
        request(
            tmp_path,
            pictures,
            grown,
            2,
            method=method,
            teacher=detector,
            directional=directional if method.directional_consistency else None,
        )
    )
    return grown, outcome.losses[-1], start


@pytest.mark.parametrize("head", ["rows", "parallel"])
@pytest.mark.parametrize("kind", ["paper", "weighted"])
def test_losses_are_listed_by_name_and_weighted(detector, pictures, tmp_path, head, kind):
    teacher = detector.state()
    _, losses, _ = later(
        tmp_path,
        pictures,
        detector,
        head,
        distillation=DistillationSettings(kind=kind, weight=0.5),
        directional_consistency=DirectionalSettings(weight=0.1),
    )
    assert losses["distill_loss"] > 0
    assert losses["dc_loss"] > 0
    assert losses["distill_weighted"] == pytest.approx(0.5 * losses["distill_loss"], rel=1e-4)
    assert losses["dc_weighted"] == pytest.approx(0.1 * losses["dc_loss"], rel=1e-4)
    header = (tmp_path / "train" / "results.csv").read_text().splitlines()[0]
    assert all(f"train/{name}" in header for name in losses)
    assert all(torch.equal(teacher[key], value) for key, value in detector.state().items())


def test_old_rows_stand_still_when_they_are_held(detector, pictures, tmp_path):
    grown, _, start = later(tmp_path, pictures, detector, negatives="new", old_rows="restore")
    after = grown.state()
    for level in range(3):
        key = f"model.23.cv3.{level}.2.weight"
        torch.testing.assert_close(after[key][:2], start[key][:2], rtol=0, atol=2e-6)  # rounding of the average
        assert not torch.equal(after[key][2:], start[key][2:])


def test_old_classes_get_no_class_loss_when_negatives_are_new(detector, pictures, tmp_path):
    with torch.no_grad():
        for branch in detector.head.cv3:
            branch[-1].bias.fill_(2.0)  # every class everywhere: the loss is almost all background, equal per class
    _, everything, _ = later(tmp_path / "all", pictures, detector, negatives="all")
    _, new, _ = later(tmp_path / "new", pictures, detector, negatives="new")
    assert new["cls_loss"] == pytest.approx(everything["cls_loss"] / 3, rel=0.2)  # one class of three


def test_parallel_leaves_old_heads_exactly(detector, pictures, tmp_path):
    grown, _, start = later(tmp_path, pictures, detector, "parallel")
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


def test_frozen_parts_do_not_move_their_statistics_included(detector, pictures, tmp_path):
    grown, _, start = later(
        tmp_path, pictures, detector, negatives="new", freeze_shared=True, freeze_towers=True, batch_norm="freeze"
    )
    after = grown.state()
    moved = {key for key in start if not torch.allclose(after[key].float(), start[key].float(), atol=1e-7, rtol=0)}
    assert moved == {f"model.23.cv3.{level}.2.{kind}" for level in range(3) for kind in ("weight", "bias")}


def test_frozen_batch_norm_keeps_statistics_and_trains_weights(detector, pictures, tmp_path):
    grown, _, start = later(tmp_path, pictures, detector, batch_norm="freeze")
    after = grown.state()
    assert torch.allclose(after["model.0.bn.running_mean"], start["model.0.bn.running_mean"], rtol=0, atol=1e-7)
    assert not torch.equal(after["model.0.bn.weight"], start["model.0.bn.weight"])
    assert not torch.equal(after["model.0.conv.weight"], start["model.0.conv.weight"])


def test_shared_parameters_move_less_with_a_smaller_learning_rate(detector, pictures, tmp_path):
    def moved(folder, factor):
        grown, _, start = later(folder, pictures, detector, shared_lr_factor=factor)
        after = grown.state()
        return sum((after[key] - start[key]).abs().sum().item() for key in detector.split().shared_parameters)

    assert moved(tmp_path / "slow", 0.01) < 0.1 * moved(tmp_path / "fast", 1.0)


def test_head_policies_put_the_head_together_as_they_say(detector):
    current = detector.grown(("c",), seed=2, head="rows")
    with torch.no_grad():
        for value in current.model.model[-1].parameters():
            value.add_(1.0)
    old, new = detector.state(), current.state()
    row, tower = "model.23.cv3.0.2.weight", "model.23.cv2.0.0.conv.weight"
    for towers, expected in (("old", old[tower]), ("new", new[tower]), ("merge", (old[tower] + new[tower]) / 2)):
        merged = current.merged_head(old, MethodSettings(name="t", towers=towers))
        assert set(merged) == set(current.split().task)
        torch.testing.assert_close(merged[tower], expected)
        assert torch.equal(merged[row][:2], old[row])
        assert torch.equal(merged[row][2:], new[row][2:])
    trained = current.merged_head(old, MethodSettings(name="t", old_rows="trained"))
    assert torch.equal(trained[row], new[row])


def test_a_stage_of_very_few_steps_is_not_taken_for_a_dead_loss(detector, pictures, tmp_path):
    method = MethodSettings(
        name="t",
        batch_norm="freeze",
        distillation=DistillationSettings(),
        directional_consistency=DirectionalSettings(),
    )
    old = detector.state()
    shared = detector.split().shared_parameters
    target = DirectionalTarget({key: old[key] for key in shared}, {key: old[key] for key in shared})
    grown = detector.grown(("c",), seed=2, head="rows")
    one_step = request(tmp_path, pictures[:2], grown, 2, method=method, teacher=detector, directional=target)
    outcome = grown.train_stage(one_step)
    assert outcome.losses[-1]["dc_loss"] == 0.0


def test_a_loss_that_stays_zero_stops_the_stage(detector, pictures, tmp_path):
    grown = detector.grown(("c",), seed=2, head="rows")
    shared = detector.split().shared_parameters
    old = detector.state()
    nothing = DirectionalTarget({key: old[key] for key in shared}, {key: torch.zeros_like(old[key]) for key in shared})
    method = MethodSettings(name="t", directional_consistency=DirectionalSettings())
    options = {"method": method, "teacher": detector, "epochs": 3}
    with pytest.raises(RuntimeError, match="dc loss is switched on and stayed exactly zero"):
        grown.train_stage(request(tmp_path / "a", pictures, grown, 2, directional=nothing, **options))
    wrong = DirectionalTarget({"nowhere": torch.zeros(1)}, {"nowhere": torch.zeros(1)})
    with pytest.raises(RuntimeError, match="1 of 1 shared parameters match nothing"):
        grown.train_stage(request(tmp_path / "b", pictures, grown, 2, directional=wrong, **options))


def test_a_loss_that_is_not_finite_stops_the_stage(detector, pictures, tmp_path):
    with torch.no_grad():
        detector.model.model[0].conv.weight.fill_(float("nan"))
    with pytest.raises(RuntimeError, match="is not finite"):
        detector.train_stage(request(tmp_path, pictures, detector, 0))


def test_the_same_seed_gives_the_same_weights(detector, pictures, tmp_path):
    states = []
    for name in ("one", "two"):
        twin = detector.clone()
        twin.train_stage(request(tmp_path / name, pictures, twin, 0))
        states.append(twin.state())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_recolouring_gives_the_statistics_of_the_past_domain():
    from duet.detectors.replay import recolour

    generator = torch.Generator().manual_seed(0)
    own = DomainStatistics((0.5, 0.5, 0.5), (0.1, 0.1, 0.1))
    past = DomainStatistics((0.2, 0.4, 0.6), (0.05, 0.02, 0.05))
    images = torch.randn(4, 3, 64, 64, generator=generator) * 0.1 + 0.5
    before = images.clone()
    recolour(images, own, (past,), 0.5, generator)
    changed = [index for index in range(4) if not torch.equal(images[index], before[index])]
    assert len(changed) == 2
    for index in changed:
        torch.testing.assert_close(images[index].mean((1, 2)), torch.tensor(past.mean), atol=0.01, rtol=0)
        torch.testing.assert_close(images[index].std((1, 2)), torch.tensor(past.std), atol=0.01, rtol=0)


def test_an_end_to_end_head_is_refused():
    from ultralytics.nn.tasks import DetectionModel

    with pytest.raises(InputError, match="expected a plain Detect head"):
        YoloDetector(DetectionModel("yolov10n.yaml", verbose=False))


@pytest.mark.parametrize("architecture", ["yolov8n.yaml", "yolo12n.yaml"])
def test_other_families_with_the_same_head_need_no_code(architecture):
    from ultralytics.nn.tasks import DetectionModel

    detector = YoloDetector(DetectionModel(architecture, nc=80, verbose=False)).with_classes(("a",), 0)
    grown = detector.grown(("b",), 0, "rows")
    assert torch.equal(outputs(grown)[:, :5], outputs(detector))
