"""`duet merge` on small files: what it writes, prints and refuses."""

import errno
import json
import math
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from duet.cli import _repeated
from duet.merge_command import METHOD_NAMES
from merging import METHODS


@pytest.fixture
def files(tmp_path):
    states = {"base": [1.0, 2.0, 3.0], "one": [2.0, 2.0, 3.0], "two": [1.0, 4.0, 3.0]}
    for name, values in states.items():
        save_file(
            {"layer.weight": torch.tensor(values), "layer.count": torch.tensor(3)}, tmp_path / f"{name}.safetensors"
        )
    return tmp_path


@pytest.fixture
def run(files, merge_command):
    return merge_command


def merge_arguments(method, *rest, out="out.safetensors"):
    models = ["--models", "one.safetensors", "two.safetensors"]
    return (method, "--base", "base.safetensors", *models, "--out", out, *rest)


def test_task_arithmetic_by_hand_with_its_provenance(run, files):
    code, shown, _ = run(*merge_arguments("task_arithmetic", "--set", "scaling_factor=0.5"))
    assert code == 0
    assert "Merged: " in shown
    merged = load_file(files / "out.safetensors")
    assert merged["layer.weight"].tolist() == [1.5, 3.0, 3.0]
    assert merged["layer.count"].item() == 3
    record = json.loads((files / "out.provenance.json").read_text())
    assert record["method"] == "task_arithmetic"
    assert record["options"]["scaling_factor"] == 0.5
    assert len(record["models"]) == 2


def test_a_dry_run_prints_the_plan_and_writes_nothing(run, files):
    before = sorted(files.iterdir())
    code, shown, _ = run(*merge_arguments("ties", "--dry-run"))
    assert code == 0
    assert "merged     1 tensors, 3 scalars" in shown
    assert sorted(files.iterdir()) == before


def test_diff_prints_every_layer_and_draws(run, files):
    code, shown, _ = run(
        "diff", "one.safetensors", "two.safetensors", "--base", "base.safetensors", "--out", "plot.png"
    )
    assert code == 0
    assert "layer" in shown
    assert "total" in shown
    assert (files / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_bad_input_is_one_sentence_and_leaves_nothing(run, files):
    save_file({"layer.weight": torch.zeros(2)}, files / "small.safetensors")
    (files / "broken.safetensors").write_bytes(b"broken")
    before = sorted(files.iterdir())
    cases = [
        (merge_arguments("tise"), "did you mean 'ties'"),
        (merge_arguments("ties", "--set", "densty=0.2"), "density"),
        (merge_arguments("ties", "--set", "density=2"), "density"),
        (("ties", "--base", "base.safetensors", "--out", "o.safetensors"), "expected --base"),
        (("ties", "--base", "base.safetensors", "--models", "one.safetensors"), "--out is missing"),
        (("ties", "--base", "base.safetensors", "--models", "absent.safetensors", "--out", "o.safetensors"), "absent"),
        (("ties", "--base", "base.safetensors", "--models", "small.safetensors", "--out", "o.safetensors"), "layer"),
        (("ties", "--base", "base.safetensors", "--models", "broken.safetensors", "--out", "o.safetensors"), "broken"),
        (("diff", "one.safetensors"), "expected two models"),
    ]
    for arguments, part in cases:
        code, _, error = run(*arguments)
        assert code == 2, arguments
        assert error.startswith("Error: "), arguments
        assert part in error, arguments
        assert "Traceback" not in error
        assert sorted(files.iterdir()) == before, arguments


WEIGHTS = torch.tensor([2.0, 2.0, 3.0])


@pytest.mark.parametrize(
    ("state", "problem"),
    [
        ({"layer.count": torch.tensor(3)}, "bad.safetensors: 'layer.weight' is missing (the base has shape (3,))"),
        (
            {"layer.weight": WEIGHTS[:2], "layer.count": torch.tensor(3)},
            "bad.safetensors: 'layer.weight' has shape (2,), expected (3,) as in the base",
        ),
        (
            {"layer.weight": WEIGHTS / 0.0, "layer.count": torch.tensor(3)},
            "bad.safetensors: 'layer.weight' holds inf; expected finite numbers only",
        ),
        (
            {"layer.weight": WEIGHTS * math.nan, "layer.count": torch.tensor(3)},
            "bad.safetensors: 'layer.weight' holds nan; expected finite numbers only",
        ),
        (
            {"layer.weight": torch.tensor([1.0, 2.0, 3.0]), "layer.count": torch.tensor(3)},
            "bad.safetensors is a copy of the base base.safetensors: its task vector would be zero",
        ),
    ],
)
@pytest.mark.parametrize("method", ["averaging", "task_arithmetic", "ties", "duet"])
def test_a_model_that_cannot_be_merged_is_named_with_its_key(run, files, method, state, problem):
    save_file(state, files / "bad.safetensors")
    before = sorted(files.iterdir())
    for out in ("out.safetensors", "folder"):
        code, shown, error = run(
            method, "--base", "base.safetensors", "--models", "one.safetensors", "bad.safetensors", "--out", out
        )
        assert (code, shown, error) == (2, "", f"Error: {problem}\n")
        assert sorted(files.iterdir()) == before


def test_a_truncated_file_and_the_base_itself_are_named(run, files):
    content = (files / "two.safetensors").read_bytes()
    (files / "bad.safetensors").write_bytes(content[:-4])
    before = sorted(files.iterdir())
    for bad, problem in (
        ("bad.safetensors", "bad.safetensors: truncated: the header describes 20 bytes of tensors, the file has 16"),
        ("base.safetensors", "base.safetensors is given as base and as model: its task vector would be zero"),
    ):
        code, _, error = run("ties", "--base", "base.safetensors", "--models", bad, "--out", "out.safetensors")
        assert (code, error) == (2, f"Error: {problem}\n")
    assert sorted(files.iterdir()) == before


def test_a_full_device_is_one_sentence_and_leaves_nothing(run, files, monkeypatch):
    before = sorted(files.iterdir())

    def refuse(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for out in ("out.safetensors", "folder"):
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", refuse)
            code, _, error = run(*merge_arguments("ties", out=out))
        assert code == 2
        assert error.startswith(f"Error: {out}: cannot be written: no space left on the device (")
        assert error.count("\n") == 1
        assert sorted(files.iterdir()) == before


def test_an_existing_output_is_kept_unless_told(run, files):
    assert run(*merge_arguments("averaging"))[0] == 0
    assert run(*merge_arguments("averaging"))[0] == 2
    assert run(*merge_arguments("averaging", "--overwrite"))[0] == 0


def test_names_in_the_help_are_those_of_the_table():
    assert tuple(METHODS) == METHOD_NAMES


def test_models_may_be_listed_behind_one_option():
    given = ["ties", "--base", "a", "--models", "b", "c", "--out", "d"]
    assert _repeated("--models", given) == ["ties", "--base", "a", "--models", "b", "--models", "c", "--out", "d"]
    assert _repeated("--models", ["train", "x"]) == ["train", "x"]


def test_brackets_in_names_are_no_markup(run, files):
    for number, name in enumerate(("one", "two"), 1):
        save_file({"layer[/x].weight": torch.ones(2) * number}, files / f"{name}.safetensors")
    code, shown, _ = run("diff", "one.safetensors", "two.safetensors")
    assert code == 0
    assert "layer[/x]" in shown
    (files / "o[").mkdir()
    code, shown, _ = run(
        "averaging", "--base", "one.safetensors", "--models", "two.safetensors", "--out", "o[/q].safetensors"
    )
    assert code == 0
    assert "o[/q].safetensors" in shown


@pytest.mark.parametrize(
    ("method", "assignment", "message"),
    [
        ("task_arithmetic", f"scaling_factor=1{'0' * 400}", "expected a finite number"),
        ("averaging", "weights=[1.7e+308, 1.7e+308]", "their sum is larger than any float"),
    ],
)
def test_numbers_that_no_float_holds_are_refused(run, files, method, assignment, message):
    code, _, error = run(*merge_arguments(method, "--set", assignment))
    assert code == 2
    assert message in error
    assert not (files / "out.safetensors").exists()
