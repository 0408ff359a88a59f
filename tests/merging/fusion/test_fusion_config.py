"""The configuration of a fusion: the shipped ones are valid, and what is wrong is told in one sentence."""

import pytest

from duet.fuse_command import _values
from duet.paths import data_folder
from merging.fusion.config import MethodSettings, parse_fusion
from merging.fusion.methods import METHODS

SHIPPED = sorted(path.stem for path in data_folder("fusion").glob("*.yaml"))


def test_the_shipped_configurations_are_there():
    assert SHIPPED == ["clip-vit-b32-eight", "embedded-pictures", "embedded-texts", "flan-t5-base-glue"]


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_configurations_are_valid(name):
    settings = parse_fusion(*_values(name))
    assert settings.name == name
    if not name.startswith("embedded"):
        assert len(settings.tasks) == 8
        mask = settings.methods.concrete_adamerging_layer_wise
        assert (mask.steps, mask.learning_rate, mask.temperature, mask.batch) == (2000, 1e-3, 0.5, 16)
        assert (mask.inner_learning_rate, mask.coefficient_steps, mask.scaling_factor) == (1.0, 1000, 0.3)


def test_every_method_has_a_section_and_every_section_a_method():
    assert list(MethodSettings.model_fields) == list(METHODS)


DATA = {"path": "a.tsv", "format": "tsv"}


def one_task(**task):
    """A configuration with one task."""
    given = {"name": "t", "model": "m", "classes": ["no", "yes"], "unlabelled": DATA, "test": DATA, **task}
    return {"name": "a", "kind": "text2text", "pretrained": "p", "tasks": [given]}


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"kind": "embedded-texts"}, "name: field required"),
        ({"name": "a", "kind": "clip"}, "needs a pretrained model and at least one task"),
        ({"name": "a", "kind": "embedded-texts", "pretrained": "b"}, "brings its own tasks"),
        ({"name": "a", "kind": "embedded-texts", "seed": True}, "seed: expected a number"),
        ({"name": "a", "kind": "b", "pretraind": "c"}, "unknown key 'pretraind'; did you mean 'pretrained'?"),
        (
            {"name": "a", "kind": "embedded-texts", "methods": {"ties": {"densty": 0.2}}},
            "unknown key 'methods.ties.densty'; did you mean 'density'?",
        ),
        (
            {"name": "a", "kind": "embedded-texts", "methods": {"ties": {"density": 2}}},
            "methods.ties.density: .*found 2",
        ),
        (
            {"name": "a", "kind": "embedded-texts", "methods": {"concrete_task_arithmetic": {"temperature": 0}}},
            "temperature: .*greater than 0",
        ),
        ({"name": "a", "kind": "embedded-texts", "seed": -1}, "seed: .*found -1"),
        (one_task(classes=[False, True]), "tasks.0.classes: a name is a truth value to YAML .*put it in quotes"),
        (one_task(class_names=["a", {}]), "tasks.0.class_names: expected names, found {}"),
        (one_task(classes="folder"), "tasks.0.classes: expected a list of names, found 'folder'"),
        (one_task(classes=["no", "no"]), "tasks.0.classes: 'no' is given twice"),
        (one_task(prompt="say yes or no"), "tasks.0: the prompt has no {text}"),
        (one_task(prompt="{text} {text_pair}"), "tasks.0: the prompt has {text_pair}, but"),
        (one_task(name=" "), "tasks.0.name: expected a name in one line"),
        (one_task(name="a|b"), "tasks.0.name: expected a name in one line without '|', found 'a|b'"),
        ({"name": "../esc", "kind": "embedded-texts"}, "name: expected a name without slashes .*found '../esc'"),
        ({"name": "a/b", "kind": "embedded-texts"}, "name: expected a name without slashes"),
        (
            {"name": "a", "kind": "embedded-texts", "methods": dict.fromkeys(METHODS)},
            "methods: every method is null; expected at least one",
        ),
        (one_task(head={"templates": []}), "tasks.0.head.templates: .*at least 1 item"),
    ],
)
def test_faults_are_one_sentence(values, match):
    with pytest.raises(ValueError, match=match) as caught:
        parse_fusion(values, "file.yaml")
    assert str(caught.value).startswith("file.yaml: ") and "\n" not in str(caught.value)


def test_numbers_are_class_names():
    task = parse_fusion(one_task(classes=[0, 1], class_names=[2.5, "x"]), "file.yaml").tasks[0]
    assert (task.classes, task.class_names) == (("0", "1"), ("2.5", "x"))
