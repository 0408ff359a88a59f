"""Updates of deployed detectors: the same as the uninterrupted run, from the artefact alone."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from typer.testing import CliRunner

from duet.artefact import Artefact, open_artefact
from duet.cli import app
from duet.config import PseudoLabelSettings, TrainSettings, parse_assignments
from duet.datasets.dataset_folder import DatasetFolder, open_folder
from duet.datasets.domain import open_domains
from duet.datasets.series_file import find_series
from duet.datasets.training import write_training_set
from duet.detectors.families import load_pretrained, restore_detector
from duet.errors import InputError
from duet.learner import Learner
from duet.methods import METHODS
from duet.resolve import resolve_config
from duet.update import Update, default_train, update_detector
from duet.update_command import verdict

TASKS = [
    {"domain": "clear", "classes": ["0", "1", "2"]},
    {"domain": "night", "classes": ["3", "4"]},
    {"domain": "fog", "classes": ["6", "7"]},
]
SERIES = {
    "name": "small",
    "scenes": {"seed": 6, "train_scenes": 24, "test_scenes": 8},
    "other_labels": "drop",
    "unlabelled_images": "keep",
    "train": {"epochs": 1, "image_size": 160, "fliplr": 0.0, "batch": 8, "threads": 1, "workers": 0},
    "tasks": TASKS,
}


def test_verdicts():
    indices = {"kept": 0.9, "new": 0.5, "overall": 0.7}
    assert verdict(indices, {}) == (True, "Verdict: kept 0.900, new 0.500, overall 0.700.")
    assert verdict(indices, {"kept": 0.9})[0]
    good, sentence = verdict(indices, {"kept": 0.95, "new": 0.4})
    assert not good
    assert "kept 0.900 is below 0.95" in sentence
    good, sentence = verdict({**indices, "kept": None}, {"kept": 0.1})
    assert not good and "kept cannot be computed" in sentence
    assert "no validation set" in verdict(dict.fromkeys(indices), {})[1]


def test_a_plain_checkpoint_is_measured_from_the_pretrained_weights_of_its_size(monkeypatch, tmp_path):
    from duet.update import _config, _guessed_record, _origin

    start, asked = load_pretrained("yolo11n.yaml"), []
    field = start.with_classes(("cat",), 0)
    monkeypatch.setattr("duet.update.load_pretrained", lambda name: asked.append(name) or start)
    folder = DatasetFolder(tmp_path, "yolo", ("dog",))
    update = Update(tmp_path / "field.pt", folder, "night", ("dog",), tmp_path / "out")
    record = _guessed_record(field, update)
    origin = _origin(Artefact(field, None), record, update, _config(update, record))
    assert (origin.name, origin.is_checkpoint, asked) == ("yolo11n", False, ["yolo11n"])
    assert all(torch.equal(origin.state[key], value) for key, value in start.state().items())

    other = load_pretrained("yolo11s.yaml")  # weights of another size do not fit: the checkpoint itself stands in
    monkeypatch.setattr("duet.update.load_pretrained", lambda name: other)
    origin = _origin(Artefact(field, None), record, update, _config(update, record))
    assert (origin.name, origin.is_checkpoint) == (str(tmp_path / "field.pt"), True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": ("6", "6")}, "class '6' is named twice"),
        ({"classes": ()}, "expected the names of the new classes"),
        ({"classes": "67"}, "expected the names of the new classes"),
        ({"domain": " "}, "expected a name"),
        ({"domain": "../fog"}, "without slashes"),
        ({"domain": "fo\ng"}, "expected a name"),
    ],
)
def test_what_is_no_task_is_refused(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        Update(**{"detector": "d.pt", "data": None, "domain": "fog", "classes": ("6",), "out": "out", **changes})


def test_a_detector_without_a_record_learns_at_the_size_that_it_knows():
    detector = load_pretrained("fcos-tiny.yaml").with_classes(("a",), 0)
    assert default_train(detector) == TrainSettings()
    detector._image_size = 100
    assert default_train(detector) == TrainSettings(image_size=128)


def test_the_command_takes_a_detector_without_a_record_at_that_size_and_says_so(monkeypatch):
    from duet.update_command import _settings, _without_record

    detector = load_pretrained("fcos-tiny.yaml").with_classes(("a",), 0)
    detector._image_size = 96
    monkeypatch.setattr("duet.artefact.open_artefact", lambda path, trust: Artefact(detector, None))
    has_record, settings = _settings(Path("d.pt"), None, ["train.epochs=7"], False)
    assert not has_record and (settings["train"].image_size, settings["train"].epochs) == (96, 7)
    said = _without_record(Update("d.pt", None, "night", ("b",), "out", **settings))
    assert said.startswith("d.pt keeps no record of tasks: it learns by method duet, 7 epochs at 96 pixels")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("joint", "method 'joint' needs pictures of earlier tasks"),
        ("replay", "method 'replay' needs pictures of earlier tasks"),
        ("restart", "method 'restart' trains each task anew"),
        ("individual", "method 'individual' trains each task anew"),
        ("ewc", "needs the Fisher information of earlier tasks"),
    ],
)
def test_methods_that_need_what_no_artefact_has_are_refused(name, message):
    from duet.update import _config, _guessed_record

    detector = load_pretrained("fcos-tiny.yaml").with_classes(("a",), 0)
    update = Update("d.pt", None, "night", ("b",), "out", method=METHODS[name])
    with pytest.raises(InputError, match=message):
        _config(update, _guessed_record(detector, update))


@pytest.fixture(scope="module")
def deployed(tmp_path_factory, pretrained_weights, shared_cache):
    """A run of two tasks, one of three, and the folders of the domains."""
    folder = tmp_path_factory.mktemp("deployed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DUET_CACHE", str(shared_cache))
        whole = folder / "three.yaml"
        whole.write_text(yaml.safe_dump(SERIES))
        domains = open_domains(find_series(str(whole)))
        data = {name: domains[name].train()[0].path.parents[2] for name in domains}
        described = {
            name: {
                "classes": str(data[name] / "classes.txt"),
                "train": split(data[name], "train"),
                "test": split(data[name], "test"),
            }
            for name in ("clear", "night")
        }
        two = folder / "two.yaml"
        without = {key: value for key, value in SERIES.items() if key != "scenes"}
        two.write_text(yaml.safe_dump({**without, "domains": described, "tasks": TASKS[:2]}))
        for name, path in (("three", whole), ("two", two)):
            options = {"series": str(path), "detector": str(pretrained_weights), "method": "duet"}
            config = resolve_config(None, options, parse_assignments(["evaluation.reference=none"]))
            Learner(config, folder / name).run()
    return folder, data


def split(folder, name):
    return {"images": str(folder / name / "images"), "labels": str(folder / name / "labels")}


def request(deployed, out, **changes):
    folder, data = deployed
    values = {
        "detector": folder / "two",
        "data": open_folder(data["fog"]),
        "domain": "fog",
        "classes": ("6", "7"),
        "out": out,
        "unlabelled_images": "keep",
    }
    return Update(**{**values, **changes})


@pytest.mark.slow
def test_an_update_is_the_run_that_was_not_interrupted(deployed, tmp_path):
    folder, data = deployed
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name in ("detector.safetensors", "detector.json", "detector.pt", "MODEL_CARD.md"):
        shutil.copy(folder / "two" / name, moved)
    validation = {"clear": open_folder(data["clear"])}
    document = update_detector(request(deployed, tmp_path / "out", detector=moved, validation=validation))
    found = restore_detector(tmp_path / "out" / "detector.safetensors").state()
    expected = restore_detector(folder / "three" / "detector.safetensors").state()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    record = open_artefact(tmp_path / "out").record
    assert [task.domain for task in record.tasks] == ["clear", "night", "fog"]
    assert record.tasks == open_artefact(folder / "three").record.tasks
    assert {item["kind"] for item in document["scores"]} == {"old", "new"}
    assert json.loads((tmp_path / "out" / "update.json").read_text()) == json.loads(json.dumps(document))
    assert not list(tmp_path.glob(".out*"))


@pytest.mark.slow
def test_a_plain_checkpoint_without_pretrained_weights_is_measured_from_itself(deployed, tmp_path):
    folder, data = deployed
    plain = tmp_path / "field.pt"
    detector = restore_detector(folder / "two" / "detector.safetensors")
    detector.model.yaml["yaml_file"] = "our-own.yaml"
    detector.save_checkpoint(plain)
    train = open_artefact(folder / "two").record.train
    document = update_detector(request(deployed, tmp_path / "out", detector=plain, train=train))
    assert document["measured_from"] == {"name": str(plain), "is_the_checkpoint_itself": True}
    assert not any("dc" in epoch for epoch in document["losses"])
    plain.unlink()  # the next update needs the artefact only
    artefact = open_artefact(tmp_path / "out")
    assert artefact.detector.classes == ("0", "1", "2", "3", "4", "6", "7")
    again = request(
        deployed,
        tmp_path / "more",
        detector=tmp_path / "out",
        data=open_folder(data["night"]),
        domain="night-2",
        classes=("8",),
        train=train,
    )
    assert update_detector(again)["classes"] == ["8"]


@pytest.mark.slow
def test_an_update_by_pseudo_labels_is_the_runs(deployed, tmp_path, monkeypatch):
    """Its old classes are labelled by the deployed detector, and the files show which."""
    method = METHODS["pseudo-label"].model_copy(update={"pseudo_labels": PseudoLabelSettings(confidence=0.05)})
    seen = {}

    def keep(images, labelled, *arguments):
        seen.update(classes=labelled, labels={name for image in images for name in image.labels})
        return write_training_set(images, labelled, *arguments)

    monkeypatch.setattr("duet.update.write_training_set", keep)
    update_detector(request(deployed, tmp_path / "out", method=method))
    found = json.loads((tmp_path / "out" / "pseudo-labels.json").read_text())
    assert found and set(found) <= {"0", "1", "2", "3", "4"}
    assert (tmp_path / "out" / "pseudo-labels.png").stat().st_size > 10_000
    assert seen == {"classes": ("0", "1", "2", "3", "4", "6", "7"), "labels": {"6", "7", *found}}


@pytest.mark.slow
def test_a_failing_update_leaves_nothing(deployed, tmp_path, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("epoch 1: box_loss is not finite")

    monkeypatch.setattr("duet.update.later_stage", broken)
    with pytest.raises(RuntimeError, match="not finite"):
        update_detector(request(deployed, tmp_path / "out"))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": ("3",)}, "knows class '3' already"),
        ({"classes": ("cat",)}, "no class 'cat'"),
        ({"domain": "night"}, "has learned in a domain 'night' already"),
    ],
)
def test_what_cannot_be_learned_is_refused(deployed, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        update_detector(request(deployed, tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_other_pretrained_weights_are_not_taken_for_the_records(deployed, tmp_path, monkeypatch):
    def other(name):
        detector = load_pretrained(name)
        state = detector.state()
        first = next(iter(state))
        detector.load_state({**state, first: state[first] + 1})
        return detector

    monkeypatch.setattr("duet.update.load_pretrained", other)
    with pytest.raises(InputError, match="not here with the same content"):
        update_detector(request(deployed, tmp_path / "out"))


@pytest.mark.slow
def test_the_command_prints_before_and_after_and_fails_below(deployed, tmp_path):
    folder, data = deployed
    arguments = [
        "update", str(folder / "two"), "--data", str(data["fog"]), "--classes", "6", "--classes", "7",
        "--domain", "fog", "--out", str(tmp_path / "out"), "--unlabelled", "keep",
        "--val", f"clear={data['clear']}", "--fail-below", "new=1.1",
    ]  # fmt: skip
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1, result.output
    assert "Verdict: not good enough" in result.output
    document = json.loads((tmp_path / "out" / "update.json").read_text())
    assert math.isfinite(document["indices"]["new"])
    assert "| 3 | fog | 6, 7 | 24 |" in (tmp_path / "out" / "MODEL_CARD.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fail-below", "kepd=0.5"], "unknown index 'kepd'; did you mean 'kept'"),
        (["--fail-below", "kept=high", "--val", "a=b"], "expected INDEX=NUMBER"),
        (["--fail-below", "kept=0.5"], "needs something to score on"),
        (["--unlabelled", "maybe"], "expected drop or keep"),
        (["--set", "model.x=1"], "expected a key of train, method or evaluation"),
        (["--val", "folder"], "expected NAME=FOLDER"),
    ],
)
def test_bad_options_are_one_sentence(arguments, message, tmp_path, pretrained_weights):
    given = ["update", str(pretrained_weights), "--data", str(tmp_path), "--classes", "x", "--domain", "d", "--out",
             str(tmp_path / "out"), *arguments]  # fmt: skip
    result = CliRunner().invoke(app, given)
    assert isinstance(result.exception, InputError)
    assert message in str(result.exception)
