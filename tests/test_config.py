from typing import Any

import pytest
import yaml
from tiny_series import SERIES

from duet.config import MethodSettings, RunConfig, overlay, parse_assignments, refuse_switches, validate
from duet.documents import read_yaml
from duet.errors import InputError
from duet.methods import METHODS, method_settings
from duet.resolve import resolve_config, what_differs


def test_layers_lie_over_one_another_in_order(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("seed: 4\ntrain: {epochs: 3, batch: 4}\nmethod: {name: duet, calibration_epochs: 1}\n")
    config = resolve_config(path, {"seed": 7}, parse_assignments(["train.batch=2", "method.distillation.weight=0.25"]))
    assert config.seed == 7  # option over file
    assert config.train.epochs == 3  # file over series (8)
    assert config.train.batch == 2  # --set over file
    assert config.train.image_size == 160  # series over default (640)
    assert config.method.calibration_epochs == 1
    assert config.method.distillation.weight == 0.25
    assert config.method.distillation.kind == METHODS["duet"].distillation.kind


def test_another_merger_starts_from_its_own_options():
    config = resolve_config(None, {}, parse_assignments(["method.merge.name=ties", "method.merge.options.density=0.5"]))
    assert config.method.merge.model_dump() == {"name": "ties", "options": {"density": 0.5}}
    same = resolve_config(None, {}, parse_assignments(["method.merge.options.gamma=0.3"]))
    assert same.method.merge.options == {**METHODS["duet"].merge.options, "gamma": 0.3}


def test_the_resolved_configuration_resolves_to_itself(tmp_path):
    config = resolve_config(None, {"method": "duet-paper"})
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    assert resolve_config(path, {}) == config


def test_the_method_option_replaces_the_files_method(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("method: {name: duet, calibration_epochs: 5}\n")
    assert resolve_config(path, {"method": "sequential"}).method == METHODS["sequential"]


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (["train.epoch=3"], "unknown key 'train.epoch'; did you mean 'epochs'"),
        (["trian.epochs=3"], "unknown key 'trian'; did you mean 'train'"),
        (["method.distillation.wieght=1"], "did you mean 'weight'"),
        (["train.epochs=0"], "key 'train.epochs' is 0"),
        (["train.image_size=100"], "key 'train.image_size' is 100"),
        (["train.lr0=fast"], "key 'train.lr0' is 'fast'"),
        (["seed=-1"], "key 'seed' is -1"),
        (["method.name=dute"], "unknown method 'dute'; did you mean 'duet'"),
        (["series=dema"], "unknown series 'dema'; did you mean 'demo'"),
        (["method.merge.name=tise"], "did you mean 'ties'"),
        (["method.merge.options.gama=1"], "did you mean 'gamma'"),
        (["method.merge.options.gamma=-1"], "key 'method.merge': option 'gamma': expected"),
        (["method.merge.options.alpha_base=true"], "key 'method.merge': option 'alpha_base': expected a number"),
        (["method.merge.name=ties", "method.merge.options.density=7"], "option 'density': expected"),
        (["method.merge.name=fisher", "method.merge.options.floor=-3"], "option 'floor': expected"),
        (["method.merge.name=averaging", "method.merge.options.weights=[1, 1, 1]"], "key 'method.merge': "),
        (["train.lr0=.inf"], "key 'train.lr0' is inf"),
        (["train.scale=5"], "key 'train.scale' is 5"),
        (["train.device=banana"], "key 'train.device' is 'banana'"),
        (["train.device='0;1'"], "key 'train.device' is '0;1'"),
        (["seed=5000000000"], "key 'seed' is 5000000000"),
        (["train=5"], "key 'train' is 5"),
    ],
)
def test_a_wrong_key_or_value_is_named(assignments, message):
    with pytest.raises(InputError, match=message):
        resolve_config(None, {}, parse_assignments(assignments))


@pytest.mark.parametrize("text", ["train.epochs", "=3", "train..epochs=3", "train.epochs=[1"])
def test_a_malformed_assignment_is_refused(text):
    with pytest.raises(InputError, match="--set"):
        parse_assignments([text])


def test_assignments_read_numbers_and_null():
    values = parse_assignments(["a.b=1e-3", "a.c=null", "a.d=true", "e=text"])
    assert values == {"a": {"b": 0.001, "c": None, "d": True}, "e": "text"}


@pytest.mark.parametrize("text", ["train.device=0", "train.device='0'", "train.device=cpu", "train.device=cuda:1"])
def test_a_device_may_be_a_number(text):
    device = resolve_config(None, {}, parse_assignments([text])).train.device
    assert device == text.partition("=")[2].strip("'")


def test_overlay_changes_neither():
    base, top = {"a": {"b": 1, "c": 2}}, {"a": {"b": 3}}
    assert overlay(base, top) == {"a": {"b": 3, "c": 2}}
    assert base == {"a": {"b": 1, "c": 2}}


def test_a_broken_yaml_names_file_and_line(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("a: 1\nb: [\n")
    with pytest.raises(InputError, match=r"x\.yaml, line 3"):
        read_yaml(path)
    path.write_text("- 1\n")
    with pytest.raises(InputError, match="expected a mapping"):
        read_yaml(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_yaml(tmp_path / "absent.yaml")


def test_every_method_is_registered_under_its_name():
    assert {name: settings.name for name, settings in METHODS.items()} == {name: name for name in METHODS}
    with pytest.raises(InputError, match="did you mean 'sequential'"):
        method_settings("sequental")


def test_duet_paper_is_the_paper():
    paper = METHODS["duet-paper"]
    assert paper.merge.options == {"gamma": 0.1, "alpha_base": 0.5}
    assert (paper.distillation.kind, paper.distillation.weight) == ("paper", 0.01)
    assert (paper.directional_consistency.granularity, paper.directional_consistency.weight) == ("scalar", 0.01)
    assert paper.weight_decay == 0.001
    assert paper.shared_lr_factor == 1.0


def test_sections_are_immutable_and_refuse_nonsense():
    settings = validate(MethodSettings, {"name": "x"}, "here")
    with pytest.raises(ValueError, match="frozen"):
        settings.name = "y"
    with pytest.raises(InputError, match="here: key 'method' is missing"):
        validate(RunConfig, {}, "here")


@pytest.mark.parametrize("name", METHODS)
def test_a_written_configuration_gives_the_same_settings_when_it_is_read(name, tmp_path):
    taken_away = {"method": {"new_rows": "random", "row_lr_factor": 1.0, "appearance": None}}
    config = resolve_config(None, {"series": "demo", "method": name}, taken_away)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    assert resolve_config(tmp_path / "config.yaml", {}).method == config.method


def test_one_process_in_place_of_the_series_two_is_written_down(tmp_path):
    (tmp_path / "series.yaml").write_text(yaml.safe_dump({**SERIES, "train": {"processes": 2}}))
    config = resolve_config(None, {"series": str(tmp_path / "series.yaml")}, {"train": {"processes": 1}})
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    assert resolve_config(tmp_path / "config.yaml", {}).train.process_count == 1


def test_what_there_was_no_choice_of_is_in_a_key_only_where_it_is_not_as_it_was():
    """So that earlier runs and trainings keep their fingerprints."""
    later = {"new_rows", "row_lr_factor", "appearance"}
    plain, changed = (resolve_config(None, {"series": "demo", "method": name}) for name in ("sequential", "duet"))
    assert not later & set(plain.deciding()["method"]) and not later & set(plain.method.of_training())
    assert later <= set(plain.settings()["method"])
    assert changed.deciding()["method"]["row_lr_factor"] == changed.method.of_training()["row_lr_factor"] == 5.0


@pytest.mark.parametrize(
    ("options", "images", "batch"),
    [
        ([], 10, 16),
        (["method.min_steps=100"], 10_000, 16),  # enough of them: as the series says
        (["method.min_steps=100"], 400, 16),
        (["method.min_steps=100"], 384, 15),
        (["method.min_steps=100"], 130, 5),
        (["method.min_steps=100"], 10, 4),  # smaller makes no sense
        (["method.min_steps=100", "train.batch=2"], 10, 2),
        (["method.min_steps=23"], 88, 16),  # six batches an epoch, the last one not whole
        (["method.min_steps=100", "train.processes=2"], 130, 4),
        (["method.min_steps=100", "train.batch=18", "train.processes=3"], 10, 6),
        (["method.min_steps=100", "train.processes=4"], 10, 8),  # two for each: one could not be re-coloured by halves
        (["method.min_steps=100", "train.processes=16"], 10, 16),
    ],
)
def test_a_later_stage_with_few_pictures_takes_smaller_batches(options, images, batch):
    start = ["method.min_steps=null", "train.batch=16", "train.epochs=4"]
    config = resolve_config(None, {"series": "demo"}, parse_assignments([*start, *options]))
    assert config.later_train(images).batch == batch


@pytest.mark.parametrize("key", ["train.batch", "train.mosaic", "method.min_steps", "method.distillation.weight"])
def test_true_is_no_number(key):
    with pytest.raises(InputError, match=r"is True: expected a number"):
        resolve_config(None, {}, parse_assignments([f"{key}=true"]))
    assert resolve_config(None, {}, parse_assignments(["train.amp=false"])).train.amp is False


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (int, True),
        (float | None, False),
        (tuple[int, int], [True, 1200]),
        (tuple[tuple[float, ...], ...] | None, [[1.0], [2.0, False]]),
        (dict[str, float], {"a": True}),
    ],
)
def test_switches_are_no_numbers_however_deep(annotation, value):
    with pytest.raises(ValueError, match="expected a number"):
        refuse_switches(annotation, value)


@pytest.mark.parametrize("annotation", [bool, bool | None, int | bool, dict[str, Any], Any, str])
def test_switches_stay_where_they_belong(annotation):
    for value in (True, [True], {"a": False}):
        assert refuse_switches(annotation, value) is value


def test_smaller_batches_have_at_least_the_steps_that_were_asked_for():
    config = resolve_config(None, {}, parse_assignments(["method.min_steps=70", "train.epochs=3"]))
    for images in range(94, 2000):  # down to the smallest batch
        assert config.train.epochs * -(-images // config.later_train(images).batch) >= 70


IDLE = [
    ("joint", "shared_lr_factor=0.1", "joint: true"),
    ("individual", "calibration_epochs=2", "start: pretrained"),
    ("restart", "distillation.weight=1", "start: pretrained"),
    ("joint", "merge.name=ties", "joint: true"),
    ("frozen", "unseen_lr_factor=0.1", "freeze_shared: true"),
    ("frozen", "layer_decay=0.5", "freeze_shared: true"),
    ("frozen", "directional_consistency.weight=0.01", "freeze_shared: true"),
    ("frozen", "tower_lr_factor=0.3", "freeze_towers: true"),
    ("individual", "min_steps=100", "start: pretrained"),
]


@pytest.mark.parametrize(("name", "option", "reason"), IDLE)
def test_an_option_that_does_nothing_is_refused(name, option, reason):
    key = option.split("=")[0].split(".")[0]
    with pytest.raises(InputError, match=rf"key 'method\.{key}' has no meaning with 'method\.{reason}'"):
        resolve_config(None, {"method": name}, parse_assignments([f"method.{option}"]))


@pytest.mark.parametrize("name", ["erd", "duet"])
@pytest.mark.parametrize("option", ["new_rows=mean", "row_lr_factor=5"])  # what `duet` itself sets for rows
def test_parallel_heads_have_no_rows_to_start_or_to_speed_up(name, option):
    with pytest.raises(InputError, match=r"has no meaning with 'method\.head: parallel'"):
        resolve_config(None, {"method": name}, parse_assignments(["method.head=parallel", f"method.{option}"]))


def test_a_frozen_backbone_has_no_direction_unless_towers_are_shared():
    config = resolve_config(None, {}, parse_assignments(["method.freeze_shared=true"]))
    assert (config.method.directional_consistency, config.method.unseen_lr_factor) == (None, None)
    config = resolve_config(None, {}, parse_assignments(["method.freeze_shared=true", "method.towers=shared"]))
    assert config.method.directional_consistency is not None


def test_the_rate_where_nothing_is_seen_is_the_lower_one():
    sentence = (
        r"key 'method\.unseen_lr_factor' is 0\.1: expected at most 'method\.shared_lr_factor', which is 0\.05; null"
    )
    with pytest.raises(InputError, match=sentence):
        resolve_config(None, {}, parse_assignments(["method.shared_lr_factor=0.05"]))
    with pytest.raises(InputError, match=r"'method\.unseen_tower_lr_factor' is 0\.5: expected at most"):
        changes = ["method.tower_lr_factor=0.3", "method.unseen_tower_lr_factor=0.5"]
        resolve_config(None, {}, parse_assignments(changes))


def test_what_differs_between_a_runs_configuration_and_another(tmp_path):
    config = resolve_config(None, {}, parse_assignments(["evaluation.multi_label=false"]))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    assert what_differs(tmp_path / "config.yaml", config) == "its series or its pretrained weights are others"
    other = resolve_config(None, {"seed": 3})
    named = what_differs(tmp_path / "config.yaml", other)
    assert named == "seed is 0 there and 3 here; evaluation.multi_label is false there and true here"
    far = resolve_config(None, {"method": "erd", "detector": "rtdetr-tiny"})
    assert what_differs(tmp_path / "config.yaml", far).endswith(" more")
    assert what_differs(tmp_path / "absent.yaml", other) == "its config.yaml says which"


def test_parallel_heads_of_duet_take_its_options_for_rows_away_and_its_file_can_be_read_again(tmp_path):
    config = resolve_config(None, {}, parse_assignments(["method.head=parallel"]))
    assert (config.method.new_rows, config.method.row_lr_factor) == ("random", 1.0)
    assert config.method.shared_lr_factor == METHODS["duet"].shared_lr_factor
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    assert resolve_config(tmp_path / "config.yaml", {}) == config
