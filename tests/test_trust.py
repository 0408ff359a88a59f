"""Files from outside run nothing: whatever is offered, wherever, is refused by name and leaves no trace."""

import json
import pickle

import pytest
import torch
import yaml
from data_trees import picture
from typer.testing import CliRunner

from duet.cli import app
from duet.config import parse_assignments
from duet.datasets.dataset_folder import open_folder
from duet.datasets.faults import refuse
from duet.datasets.voc import parse_voc
from duet.detectors.families import load_pretrained, restore_detector, store_detector
from duet.errors import InputError
from duet.learner import Learner
from duet.paths import stays_inside
from duet.resolve import resolve_config
from duet.state import RunState, write_text
from merging.safetensors_writer import INDEX


class Malicious:
    """Would create a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.fixture
def trap(tmp_path):
    return tmp_path / "trap"


@pytest.fixture
def data(tmp_path):
    """A data set to learn from, so that only the detector is wrong."""
    folder = tmp_path / "data"
    picture(folder / "images" / "1.jpg")
    write_text(folder / "labels" / "1.txt", "0 0.5 0.5 0.5 0.5\n")
    write_text(folder / "classes.txt", "cat\n")
    return folder


def bare(path, trap):
    path.write_bytes(pickle.dumps({"model": Malicious(trap)}))


def zipped(path, trap):
    torch.save({"model": Malicious(trap), "ultralytics.nn": 0}, path)


def old_style(path, trap):
    torch.save({"model": Malicious(trap), "ultralytics.nn": 0}, path, _use_new_zipfile_serialization=False)


def commands(evil, data, out):
    good = str(data.parent / "good.pt")
    return {
        "evaluate": ["evaluate", evil, "--series", "demo"],
        "predict": ["predict", evil, str(data / "images"), "--out", out],
        "export": ["export", evil, "--out", f"{out}.onnx"],
        "inspect": ["inspect", evil],
        "update": ["update", evil, "--data", str(data), "--classes", "cat", "--domain", "d", "--out", out],
        "merge": ["merge", "averaging", "--base", good, "--models", evil, "--models", good, "--out", out],
        "merge base": ["merge", "averaging", "--base", evil, "--models", good, "--models", good, "--out", out],
        "merge diff": ["merge", "diff", evil, good],
        "train": ["train", "--detector", evil, "--out", out],
        "weights": ["weights", "evil", "--from", evil],
    }


@pytest.mark.parametrize("kind", [bare, zipped, old_style])
def test_a_malicious_pickle_is_refused_everywhere_and_does_nothing(kind, data, trap, tmp_path, monkeypatch):
    monkeypatch.setenv("DUET_WEIGHTS", str(tmp_path / "weights"))
    kind(tmp_path / "evil.pt", trap)
    torch.save({"a": torch.zeros(2)}, tmp_path / "good.pt")
    before = sorted(tmp_path.rglob("*"))
    for name, arguments in commands(str(tmp_path / "evil.pt"), data, str(tmp_path / "out")).items():
        result = CliRunner().invoke(app, arguments)
        assert isinstance(result.exception, InputError), (name, result.exception)
        assert "evil.pt" in str(result.exception), name
        if not name.startswith("merge"):
            assert "it holds 'io.open'" in str(result.exception) or "'_io.open'" in str(result.exception), name
    assert not trap.exists()
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("kind", [bare, zipped])
def test_a_malicious_pickle_as_state_of_a_run_is_refused(kind, trap, tmp_path):
    for name in ("model.safetensors", "metrics.json", "detector.safetensors"):
        kind(tmp_path / name, trap)
    with pytest.raises(InputError, match="not a readable safetensors file"):
        restore_detector(tmp_path / "model.safetensors")
    for command in (["inspect", str(tmp_path)], ["summary", str(tmp_path)]):
        kind(tmp_path / "results.json", trap)
        result = CliRunner().invoke(app, command)
        assert isinstance(result.exception, InputError)
    kind(tmp_path / "state.json", trap)
    with pytest.raises(InputError, match=r"state\.json"):
        RunState(tmp_path, "f")
    assert not trap.exists()


def test_trust_opens_what_is_refused_otherwise(trap, tmp_path):
    zipped(tmp_path / "evil.pt", trap)
    result = CliRunner().invoke(app, ["inspect", str(tmp_path / "evil.pt"), "--trust"])
    assert trap.exists()  # the user said so
    assert "expected a detection model" in str(result.exception)


def test_a_checkpoint_with_parallel_heads_is_opened(tmp_path):
    detector = load_pretrained("yolo11n.yaml").with_classes(("a", "b"), 0).grown(("c",), 0, "parallel")
    detector.save_checkpoint(tmp_path / "detector.pt")
    assert load_pretrained(str(tmp_path / "detector.pt")).classes == ("a", "b", "c")


LAYOUT = {"nc": 1, "backbone": [[-1, 1, "Conv", [16, 3, 2]]], "head": [[[0], 1, "Detect", ["nc"]]]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation": "open('TRAP', 'w')"}, "key 'activation'"),
        ({"activation": "nn.SiLU(open('TRAP', 'w'))"}, "key 'activation'"),
        ({"activation": "nn.Module.__subclasses__()"}, "key 'activation'"),
        ({"activation": 7}, "key 'activation'"),
        ({"backbone": [[-1, 1, "check_requirements", ["a-package"]]]}, "'check_requirements' is no layer"),
        ({"backbone": [[-1, 1, "attempt_download_asset", ["x"]]]}, "is no layer"),
        ({"backbone": [[-1, 1, "nn.init", []]]}, "is no layer"),
        ({"backbone": [[-1, 1, "DetectionModel", ["x.yaml"]]]}, "is no layer"),
        ({"backbone": [[-1, 1, "TorchVision", [16, "resnet18", "DEFAULT"]]]}, "is no layer"),
        ({"backbone": [[-1, 1, "Conv"]]}, "expected \\[from, repeats, layer, arguments\\]"),
        ({"backbone": 3}, "expected a list of layers"),
    ],
)
def test_an_architecture_is_built_and_not_run(change, message, trap, tmp_path):
    layout = {**LAYOUT, **change}
    if isinstance(layout.get("activation"), str):
        layout["activation"] = layout["activation"].replace("TRAP", str(trap))
    write_text(tmp_path / "evil.yaml", yaml.safe_dump(layout))
    with pytest.raises(InputError, match=message):
        load_pretrained(str(tmp_path / "evil.yaml"))
    stored = load_pretrained("yolo11n.yaml")
    stored.model.yaml = layout
    store_detector(stored, tmp_path / "evil.safetensors")
    with pytest.raises(InputError, match=message):
        load_pretrained(str(tmp_path / "evil.safetensors"))
    assert not trap.exists()


def test_a_stored_architecture_is_no_address_and_no_file(tmp_path):
    stored = load_pretrained("yolo11n.yaml")
    for place in ("https://example.invalid/a.yaml", "/etc/a.yaml"):
        stored.describe = lambda place=place: type(load_pretrained("yolo11n.yaml").describe())(
            "yolo", ("object",), {"yaml": place, "tower_classes": 80, "heads": [1]}
        )
        store_detector(stored, tmp_path / "evil.safetensors")
        with pytest.raises(InputError, match="expected a mapping with backbone and head, found str"):
            restore_detector(tmp_path / "evil.safetensors")
    with pytest.raises(InputError, match="none is fetched"):
        load_pretrained("https://example.invalid/a.yaml")


def test_activations_and_layers_that_are_meant_are_built(tmp_path):
    for activation in ("nn.ReLU()", "torch.nn.LeakyReLU(0.1)", "nn.Hardswish(inplace=True)"):
        write_text(tmp_path / "good.yaml", yaml.safe_dump({**LAYOUT, "activation": activation}))
        assert load_pretrained(str(tmp_path / "good.yaml")).classes == ("0",)


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/passwd", "..", "a/..", "C:\\x", "..\\x", "", "a\0b"])
def test_a_state_that_names_files_outside_its_folder_is_refused(name, tmp_path):
    assert not stays_inside(name)
    (tmp_path / "run").mkdir()
    for files, stages in (({name: "00"}, []), ({}, [{"model": name}])):
        (tmp_path / "run" / "state.json").write_text(json.dumps({"fingerprint": "f", "files": files, "stages": stages}))
        with pytest.raises(InputError, match="not inside the run folder"):
            RunState(tmp_path / "run", "f")


def data_yaml(folder, **values):
    write_text(folder / "data.yaml", yaml.safe_dump({"names": ["cat"], **values}))
    return folder / "data.yaml"


@pytest.mark.parametrize(
    "values",
    [
        {"train": "../secret/images"},
        {"train": "images/../../secret/images"},
        {"path": "..", "train": "secret/images"},
        {"path": "/", "train": "secret/images"},
        {"train": "/secret/images"},
        {"train": "images", "val": "../secret/images"},
    ],
)
def test_a_data_file_leads_nowhere_but_into_its_own_folder(values, data, tmp_path):
    picture(tmp_path / "secret" / "images" / "1.jpg")
    with pytest.raises(InputError, match="leads out of the file's folder"):
        open_folder(data_yaml(data, **values))


def test_a_data_file_may_say_its_folder_in_several_ways(data):
    for values in ({"train": "images"}, {"path": str(data), "train": "images"}, {"train": "../images"}):
        assert open_folder(data_yaml(data, **values)).read()["train"][0].labels == ("cat",)


@pytest.mark.parametrize("name", ["../secret.jpg", "/secret.jpg", "a/../../secret.jpg"])
def test_annotations_of_pictures_outside_are_refused(name, tmp_path):
    picture(tmp_path / "secret.jpg")
    picture(tmp_path / "coco" / "images" / "1.jpg")
    image = {"id": 1, "file_name": name, "height": 40, "width": 60}
    document = {"images": [image], "annotations": [], "categories": [{"id": 1, "name": "cat"}]}
    write_text(tmp_path / "coco" / "annotations" / "train.json", json.dumps(document))
    with pytest.raises(InputError, match="not inside the image folder"):
        open_folder(tmp_path / "coco").read()


def test_xml_with_entities_is_refused():
    bomb = b"<!DOCTYPE a [<!ENTITY x 'y'>]><annotation>&x;</annotation>"
    with pytest.raises(InputError, match="declares entities"):
        parse_voc(bomb, "x.xml", (4, 4), None, refuse)


def test_an_index_of_shards_names_no_file_elsewhere(tmp_path):
    torch.save({"a": torch.zeros(2)}, tmp_path / "secret.safetensors")
    folder = tmp_path / "model"
    write_text(folder / INDEX, json.dumps({"weight_map": {"a": "../secret.safetensors"}}))
    out = str(tmp_path / "out")
    result = CliRunner().invoke(
        app, ["merge", "averaging", "--base", str(folder), "--models", str(folder), "--out", out]
    )
    assert isinstance(result.exception, InputError)
    assert "secret.safetensors" in str(result.exception)
    assert not (tmp_path / "out").exists()


def test_a_run_opens_its_weights_without_trust(tmp_path, trap):
    zipped(tmp_path / "evil.pt", trap)
    options = {"series": "demo", "detector": str(tmp_path / "evil.pt"), "method": "duet"}
    config = resolve_config(None, options, parse_assignments([]))
    with pytest.raises(InputError, match="refused as a checkpoint"):
        Learner(config, tmp_path / "run")
    assert not trap.exists() and not (tmp_path / "run").exists()
