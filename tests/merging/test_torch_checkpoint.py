"""Plain state dicts of torch are opened; anything that could run code is refused by name."""

import collections
import pickle

import pytest
import torch
from merging_cases import network, same_bits, tuned
from torch import nn

import merging
from merging.torch_checkpoint import open_torch_checkpoint


@pytest.mark.parametrize("zipped", [True, False])
def test_state_dicts_of_torch_are_merged(tmp_path, zipped):
    states = [network(0), tuned(network(0), 1), tuned(network(0), 2)]
    paths = [tmp_path / f"{number}.pt" for number in range(3)]
    for path, state in zip(paths, states):
        torch.save(collections.OrderedDict(state), path, _use_new_zipfile_serialization=zipped)
    merged = merging.merge("averaging", paths[0], paths[1:]).state
    assert same_bits(merged, merging.merge("averaging", states[0], states[1:]).state)


def test_tied_tensors_of_torch_stay_tied(tmp_path):
    shared = torch.ones(2)
    torch.save({"embed": shared, "head": shared}, tmp_path / "a.pt")
    assert open_torch_checkpoint(tmp_path / "a.pt").tied == {"head": "embed"}


class Marker:
    """Leaves a trace when it is unpickled."""

    def __reduce__(self):
        return (open, ("marker.txt", "w"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: nn.Linear(1, 1), "holds torch.nn.modules.linear.Linear, which is not opened: expected a state dict"),
        (lambda: {"model": nn.Linear(1, 1)}, "holds torch.nn.modules.linear.Linear"),
        (lambda: Marker(), "holds .*open, which is not opened"),
        (lambda: {"epoch": 3, "w": torch.ones(1)}, "expected tensors only, got int under 'epoch'"),
        (lambda: {"state_dict": {"w": torch.ones(1)}}, "expected tensors only, got dict under 'state_dict'"),
        (lambda: {1: torch.ones(1)}, "expected tensors only, got Tensor under 1"),
        (lambda: [torch.ones(1)], "expected a state dict, got list"),
    ],
)
def test_anything_else_is_refused_by_name(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.pt"
    torch.save(content(), path)
    with pytest.raises(ValueError, match=f"^{path}: {message}"):
        open_torch_checkpoint(path)
    assert not (tmp_path / "marker.txt").exists()


def test_what_others_have_allowed_is_refused_all_the_same(tmp_path):
    torch.save(nn.Linear(1, 1), tmp_path / "model.pt")
    with torch.serialization.safe_globals([nn.Linear]):
        before = torch.serialization.get_safe_globals()
        with pytest.raises(ValueError, match=r"holds torch\.nn\.modules\.linear\.Linear"):
            open_torch_checkpoint(tmp_path / "model.pt")
        assert set(torch.serialization.get_safe_globals()) == set(before)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("content", [b"", b"text", pickle.dumps(3)[:-1], b"PK\x03\x04broken"])
def test_damaged_files_are_refused_by_name(tmp_path, content):
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^{path}: (damaged, or no file of torch.save|expected a state dict)"):
        open_torch_checkpoint(path)


def test_truncated_files_are_refused_by_name(tmp_path):
    path = tmp_path / "model.pt"
    torch.save({"w": torch.ones(1000)}, path)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(ValueError, match=f"^{path}: damaged, or no file of torch.save"):
        open_torch_checkpoint(path)
