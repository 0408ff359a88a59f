"""`duet merge` on whole Ultralytics checkpoints: opened safely, merged by the core, written as one that YOLO opens."""

import errno
import hashlib
import json
import os
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from duet import merge_checkpoints
from duet.detectors.ultralytics_checkpoint import build_architecture, open_checkpoint


@pytest.fixture(scope="module")
def network():
    return build_architecture("yolo11n.yaml").with_classes(("cat", "dog"), seed=0)


@pytest.fixture(scope="module")
def stored(network, tmp_path_factory):
    """A base and two fine-tuned checkpoints."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for number, name in enumerate(("base", "one", "two")):
        detector = network.clone()
        state = {key: t + number if t.is_floating_point() else t for key, t in detector.state().items()}
        detector.load_state(state)
        detector.save_checkpoint(folder / f"{name}.pt")
    return folder


@pytest.fixture
def run(stored, merge_command, tmp_path):
    """Merge by averaging; the checkpoints lie in the working folder."""
    for path in stored.iterdir():
        os.link(path, tmp_path / path.name)

    def call(*models, out, options=(), base="base.pt", method="averaging"):
        return merge_command(method, "--base", base, "--models", *models, "--out", out, *options)

    return call


def states(folder):
    return [open_checkpoint(folder / f"{name}.pt").state() for name in ("one", "two")]


def test_checkpoints_become_a_checkpoint_that_yolo_opens(run, tmp_path):
    from ultralytics import YOLO

    code, shown, error = run("one.pt", "two.pt", out="merged.pt")
    assert (code, error) == (0, "")
    assert "Merged: merged.pt" in shown
    opened = YOLO(tmp_path / "merged.pt")
    assert opened.names == {0: "cat", 1: "dog"}
    one, two = states(tmp_path)
    merged = {key: tensor.float() for key, tensor in opened.model.state_dict().items()}
    assert set(merged) == set(one)
    for key, tensor in one.items():
        expected = (tensor.double() + two[key].double()) / 2 if tensor.is_floating_point() else tensor
        assert torch.equal(merged[key], expected.float()), key
    assert opened.predict(torch.zeros(1, 3, 64, 64), verbose=False)[0].boxes is not None
    record = json.loads((tmp_path / "merged.provenance.json").read_text())
    digest = hashlib.sha256((tmp_path / "two.pt").read_bytes()).hexdigest()
    assert record["models"][1] == {"name": "two.pt", "files": [{"path": "two.pt", "sha256": digest}]}
    assert sorted(os.listdir(tmp_path)) == ["base.pt", "merged.provenance.json", "merged.pt", "one.pt", "two.pt"]


def test_checkpoints_become_safetensors_and_mix_with_them(run, tmp_path):
    one, two = states(tmp_path)
    save_file(two, tmp_path / "two.safetensors")
    assert run("one.pt", "two.safetensors", out="mixed.safetensors")[0] == 0
    assert run("one.pt", "two.pt", out="plain.safetensors")[0] == 0
    mixed, plain = (load_file(tmp_path / f"{name}.safetensors") for name in ("mixed", "plain"))
    assert all(torch.equal(mixed[key], plain[key]) for key in one)
    code, _, error = run("one.pt", "two.safetensors", out="mixed.pt")
    assert code == 2
    assert error == (
        "Error: two.safetensors: no Ultralytics checkpoint, as mixed.pt needs; ask for a .safetensors output\n"
    )


def test_the_plan_and_the_comparison_take_checkpoints_too(run, merge_command, tmp_path):
    before = sorted(os.listdir(tmp_path))
    code, shown, _ = run("one.pt", "two.pt", out="merged.pt", options=["--dry-run"])
    assert code == 0
    assert shown.startswith("merged     ")
    code, shown, _ = merge_command("diff", "one.pt", "two.pt", "--base", "base.pt")
    assert code == 0
    assert shown.splitlines()[-1].split()[-2:] == ["1.0000", "0.00%"]  # all move up: cosine and sign conflict
    assert sorted(os.listdir(tmp_path)) == before


def test_heads_of_different_size_need_a_policy(run, network, tmp_path):
    network.with_classes(("a", "b", "c"), 0).save_checkpoint(tmp_path / "three.pt")
    before = sorted(os.listdir(tmp_path))
    code, _, error = run("one.pt", "three.pt", out="merged.pt")
    assert code == 2
    assert error == (
        "Error: one.pt has 2 classes and three.pt has 3, so that their heads do not fit; --set policy=base goes on "
        "with the base's class rows, --set policy=intersection without class rows\n"
    )
    code, _, error = run("one.pt", "three.pt", out="merged.pt", options=["--set", "policy=intersection"])
    assert code == 2
    assert error.startswith("Error: merged.pt: a checkpoint needs what policy=intersection leaves out")
    assert sorted(os.listdir(tmp_path)) == before
    assert run("three.pt", "one.pt", out="merged.pt", options=["--set", "policy=base"])[0] == 0
    merged = open_checkpoint(tmp_path / "merged.pt")
    assert merged.classes == ("cat", "dog")
    base = open_checkpoint(tmp_path / "base.pt").state()
    row = "model.23.cv3.0.2.weight"
    assert torch.equal(merged.state()[row], base[row])
    assert run("three.pt", "one.pt", out="m.safetensors", options=["--set", "policy=intersection"])[0] == 0
    assert row not in load_file(tmp_path / "m.safetensors")


def test_rows_of_different_classes_are_not_merged(run, network, tmp_path):
    network.with_classes(("cat", "bird"), 0).save_checkpoint(tmp_path / "other.pt")
    code, _, error = run("one.pt", "other.pt", out="merged.safetensors")
    assert code == 2
    assert error.startswith("Error: class 1 is 'dog' in one.pt and 'bird' in other.pt: rows of different classes")
    assert not (tmp_path / "merged.safetensors").exists()
    assert run("one.pt", "two.pt", base="other.pt", out="merged.pt")[0] == 0  # only tensors of the base count
    assert open_checkpoint(tmp_path / "merged.pt").classes == ("cat", "dog")


class Malice:
    """Runs a command when it is unpickled."""

    def __reduce__(self):
        return (os.system, ("touch ran.txt",))


@pytest.mark.parametrize("disguise", ["ultralytics.nn.tasks", "nothing"])
@pytest.mark.parametrize("out", ["merged.pt", "merged.safetensors"])
def test_a_pickle_that_runs_code_is_refused_and_creates_nothing(run, tmp_path, disguise, out):
    torch.save({"model": Malice(), "note": disguise}, tmp_path / "bad.pt")
    before = sorted(os.listdir(tmp_path))
    for models, base in ((["one.pt", "bad.pt"], "base.pt"), (["one.pt"], "bad.pt")):
        code, shown, error = run(*models, base=base, out=out)
        assert (code, shown) == (2, "")
        assert error.startswith("Error: bad.pt: ")
        assert error.count("\n") == 1
        assert "Traceback" not in error
    assert sorted(os.listdir(tmp_path)) == before
    (tmp_path / "raw.pt").write_bytes(pickle.dumps({"model": Malice()}))
    assert run("one.pt", "raw.pt", out=out)[0] == 2
    assert not (tmp_path / "ran.txt").exists()


def test_truncated_checkpoints_are_refused_by_name(run, tmp_path):
    content = (tmp_path / "two.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(content[: len(content) // 2])
    before = sorted(os.listdir(tmp_path))
    code, _, error = run("one.pt", "cut.pt", out="merged.pt")
    assert code == 2
    assert error.startswith("Error: cut.pt: damaged")
    assert sorted(os.listdir(tmp_path)) == before


def test_a_checkpoint_is_there_complete_or_not_at_all(run, tmp_path, monkeypatch):
    before = sorted(os.listdir(tmp_path))

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def refused_by_torch(*_, **__):
        raise RuntimeError("PytorchStreamWriter failed writing file data/1: file write failed")

    for patched, name, failure in ((os, "pwrite", full), (os, "replace", full), (torch, "save", refused_by_torch)):
        with monkeypatch.context() as patch:
            patch.setattr(patched, name, failure)
            code, _, error = run("one.pt", "two.pt", out="merged.pt")
        assert code == 2
        assert error.startswith("Error: merged.pt: cannot be written")
        assert error.endswith("nothing was left behind\n")
        assert sorted(os.listdir(tmp_path)) == before


def test_an_existing_checkpoint_is_kept_unless_told(run, tmp_path, monkeypatch):
    (tmp_path / "merged.pt").write_text("mine")
    with monkeypatch.context() as patch:
        patch.setattr(merge_checkpoints, "merge_files", None)  # refused before any work
        assert run("one.pt", "two.pt", out="merged.pt")[0] == 2
    assert (tmp_path / "merged.pt").read_text() == "mine"
    assert run("one.pt", "two.pt", out="merged.pt", options=["--overwrite"])[0] == 0
    assert open_checkpoint(tmp_path / "merged.pt").classes == ("cat", "dog")
