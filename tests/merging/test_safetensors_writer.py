"""What is written has a good layout, and is there complete or not at all."""

import errno
import json
import os
import subprocess
import sys

import pytest
import torch
from merging_cases import leftovers
from safetensors import safe_open
from safetensors.torch import load_file, save_model

import merging
from merging.safetensors_reader import SafetensorsSource


def test_tied_tensors_are_stored_once_and_come_back(tmp_path):
    class Tied(torch.nn.Module):
        def __init__(self, value):
            super().__init__()
            self.embed = torch.nn.Linear(2, 2, bias=False)
            self.head = torch.nn.Linear(2, 2, bias=False)
            self.head.weight = self.embed.weight
            torch.nn.init.constant_(self.embed.weight, value)

    paths = [tmp_path / f"{value}.safetensors" for value in (0, 2, 4)]
    for path, value in zip(paths, (0, 2, 4)):
        save_model(Tied(value), str(path))
    assert SafetensorsSource(paths[0]).tied == {"head.weight": "embed.weight"}
    out = tmp_path / "out.safetensors"
    merging.merge_files("averaging", paths[0], paths[1:], out)
    with safe_open(out, "pt") as file:
        assert list(file.keys()) == ["embed.weight"]
        assert file.metadata() == {"format": "pt", "head.weight": "embed.weight"}
    assert SafetensorsSource(out).tied == {"head.weight": "embed.weight"}
    merged = merging.merge("averaging", paths[0], paths[1:]).state
    assert merged["head.weight"] is merged["embed.weight"]
    assert merged["head.weight"].unique().tolist() == [3]


def test_every_tensor_is_aligned_to_its_own_size(tmp_path):
    base = {"a": torch.ones(3).bool(), "b": torch.ones(3).half(), "c": torch.ones(3), "d": torch.ones(3).long()}
    merging.merge_files("averaging", base, [base], tmp_path / "o.safetensors")
    content = (tmp_path / "o.safetensors").read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    for key, tensor in base.items():
        assert (8 + size + header[key]["data_offsets"][0]) % tensor.element_size() == 0


def started(*_):
    raise AssertionError("work began")


def test_an_existing_output_is_kept_unless_asked(family, tmp_path):
    paths, _ = family
    for out in (tmp_path / "out.safetensors", tmp_path / "folder"):
        merging.merge_files("averaging", paths[0], [paths[1]], out)
        with pytest.raises(FileExistsError, match=f"{out}: exists already"):
            merging.merge_files("averaging", paths[0], [paths[2]], out, progress=started)
        merging.merge_files("averaging", paths[0], [paths[2]], out, overwrite=True)
        merged = load_file(out if out.is_file() else out / "model.safetensors")
        assert torch.equal(merged["0.weight"], load_file(paths[2])["0.weight"])
    with pytest.raises(FileNotFoundError, match=r"no such folder to write out\.safetensors into"):
        merging.merge_files("averaging", paths[0], [paths[1]], tmp_path / "no" / "out.safetensors")


def test_the_model_is_moved_into_place_after_its_provenance(family, tmp_path, monkeypatch):
    paths, _ = family
    moved = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda source, target: (moved.append(target.name), replace(source, target)))
    for name in ("out.safetensors", "a.safetensors"):
        merging.merge_files("averaging", paths[0], [paths[1]], tmp_path / name)
    assert moved == ["out.provenance.json", "out.safetensors", "a.provenance.json", "a.safetensors"]


def test_an_interruption_leaves_nothing_and_keeps_the_old_output(family, tmp_path):
    paths, _ = family
    out = tmp_path / "folder"
    merging.merge_files("averaging", paths[0], [paths[1]], out)
    before = os.listdir(tmp_path)

    def interrupt(phase, done, total):
        if phase == "merge":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merging.merge_files("averaging", paths[0], [paths[2]], out, overwrite=True, progress=interrupt)
    assert leftovers(tmp_path, before) == []
    assert torch.equal(load_file(out / "model.safetensors")["0.weight"], load_file(paths[1])["0.weight"])


@pytest.mark.parametrize("call", ["posix_fallocate", "pwrite", "fsync"])
def test_no_space_left_is_one_sentence_and_leaves_nothing(call, family, tmp_path, monkeypatch):
    paths, _ = family
    before = os.listdir(tmp_path)

    def refuse(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for out in (tmp_path / "out.safetensors", tmp_path / "folder"):
        with monkeypatch.context() as patch:
            patch.setattr(os, call, refuse)
            with pytest.raises(OSError, match=f"^{out}: cannot be written: no space left on the device") as caught:
                merging.merge_files("averaging", paths[0], paths[1:], out)
        assert caught.value.errno == errno.ENOSPC
        assert "\n" not in str(caught.value)
    assert leftovers(tmp_path, before) == []


def test_an_error_of_the_device_that_is_told_once_is_not_missed(family, tmp_path, monkeypatch):
    """A failed sync clears the error: the next sync of the same file succeeds."""
    paths, _ = family
    calls = []

    def refuse_first(handle):
        calls.append(handle)
        if len(calls) == 1:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", refuse_first)
    with pytest.raises(OSError, match="cannot be written: Input/output error; nothing was left behind"):
        merging.merge_files("averaging", paths[0], paths[1:], tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_a_limit_of_the_system_leaves_nothing(family, tmp_path):
    """A real refusal of the kernel in the middle of a file, not a simulated one."""
    paths, _ = family
    before = os.listdir(tmp_path)
    code = (
        "import resource, signal, sys, merging\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (700, 700))\n"
        "merging.merge_files('averaging', sys.argv[1], sys.argv[2:4], sys.argv[4])\n"
    )
    out = tmp_path / "out.safetensors"
    done = subprocess.run([sys.executable, "-c", code, *map(str, paths), str(out)], capture_output=True, text=True)
    assert done.returncode == 1
    assert f"OSError: {out}: cannot be written: File too large; nothing was left behind" in done.stderr
    assert leftovers(tmp_path, before) == []


def snapshot(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_overwriting_never_takes_what_no_merge_wrote(family, tmp_path):
    paths, _ = family
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    (tmp_path / "plain").mkdir()
    (tmp_path / "link").symlink_to(mine)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder.safetensors").mkdir()
    before = snapshot(tmp_path)
    for name, message in (
        ("mine", "holds thesis.txt, which no merge wrote"),
        ("plain", "has no provenance.json"),
        ("link", "is a symbolic link"),
        ("file", "is a file"),
        ("folder.safetensors", "no merge wrote it|is a folder"),
    ):
        with pytest.raises(FileExistsError, match=message):
            merging.merge_files("averaging", paths[0], [paths[2]], tmp_path / name, overwrite=True)
    assert snapshot(tmp_path) == before


def test_an_output_that_is_or_holds_an_input_is_refused(family, tmp_path):
    paths, _ = family
    before = snapshot(tmp_path)
    held = next(path for path in paths if path.is_file())
    for target in (held, held.parent):
        with pytest.raises(FileExistsError, match=r"is or holds the input|no merge wrote"):
            merging.merge_files("averaging", paths[0], list(paths[1:]), target, overwrite=True)
    assert snapshot(tmp_path) == before
