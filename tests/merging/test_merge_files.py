"""Merging from disk to disk: equal to memory bit for bit, in little memory."""

import hashlib
import json
import os
import subprocess
import sys

import pytest
import torch
from merging_cases import leftovers, network, options_for, same_bits, tuned
from safetensors.torch import load_file, save_file

import merging
from merging import blocks


def load_shards(folder):
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    state = {}
    for name in sorted(set(index["weight_map"].values())):
        part = load_file(folder / name)
        assert all(index["weight_map"][key] == name for key in part)
        state.update(part)
    assert index["metadata"]["total_size"] == sum(t.numel() * t.element_size() for t in state.values())
    assert set(state) == set(index["weight_map"])
    return state


def assert_same(state, expected):
    assert same_bits({key: state[key] for key in expected}, dict(expected))
    assert set(state) == set(expected)


@pytest.mark.parametrize("method", merging.METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_the_merge_in_memory_bit_for_bit(method, dtype, tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 7)
    states = [
        {key: t.to(dtype) if t.is_floating_point() else t for key, t in state.items()}
        for state in (network(0), tuned(network(0), 1), tuned(network(0), 2))
    ]
    paths = [tmp_path / f"{number}.safetensors" for number in range(3)]
    for path, state in zip(paths, states):
        save_file(state, path)
    options = options_for(method, states[1:])
    expected = merging.merge(method, states[0], states[1:], **options).state
    if method == "fisher":
        for number, fisher in enumerate(options["fishers"]):
            save_file(fisher, tmp_path / f"fisher{number}.safetensors")
        options = {"fishers": [tmp_path / f"fisher{number}.safetensors" for number in range(2)]}
    out = tmp_path / "out.safetensors"
    done = merging.merge_files(method, paths[0], paths[1:], out, workers=2, **options)
    assert_same(load_file(out), expected)
    assert done.path == out
    in_memory = merging.merge(method, paths[0], [str(path) for path in paths[1:]], **options)
    assert_same(in_memory.state, expected)
    sharded = tmp_path / "folder"
    merging.merge_files(method, paths[0], paths[1:], sharded, max_shard_bytes=150, **options)
    assert len(list(sharded.glob("*.safetensors"))) > 2
    assert_same(load_shards(sharded), expected)


def test_sharded_models_are_read_through_their_index(family, tmp_path):
    paths, states = family
    folders = [tmp_path / name for name in ("a", "b")]
    for folder, path in zip(folders, paths[1:]):
        merging.merge_files("averaging", paths[0], [path], folder, max_shard_bytes=100)
    expected = merging.merge(
        "ties",
        states[0],
        [{**state, "1.num_batches_tracked": states[0]["1.num_batches_tracked"]} for state in states[1:]],
    ).state
    out = tmp_path / "out"
    for models in (folders, [folder / "model.safetensors.index.json" for folder in folders]):
        merging.merge_files("ties", paths[0], models, out, overwrite=True)
        assert_same(load_file(out / "model.safetensors"), expected)
    assert sorted(os.listdir(out)) == ["model.safetensors", "provenance.json"]


def test_the_provenance_says_how_it_came_about(family, tmp_path):
    paths, _ = family
    done = merging.merge_files("ties", paths[0], paths[1:], tmp_path / "out.safetensors", density=0.5)
    record = json.loads((tmp_path / "out.provenance.json").read_text())
    assert done.provenance_path == tmp_path / "out.provenance.json"
    assert record == done.provenance
    assert record["method"] == "ties"
    assert "Yadav" in record["paper"]
    assert record["options"] == {"density": 0.5, "scaling_factor": 1.0, "merge_function": "mean", "scope": "model"}
    assert (record["policy"], record["batch_norm"], record["output_dtype"]) == ("error", "method", None)
    digest = hashlib.sha256(paths[2].read_bytes()).hexdigest()
    assert record["models"][1] == {"name": str(paths[2]), "files": [{"path": str(paths[2]), "sha256": digest}]}
    assert record["base"]["files"][0]["path"] == str(paths[0])
    assert record["versions"]["torch"] == torch.__version__
    again = merging.merge_files("ties", paths[0], paths[1:], tmp_path / "b.safetensors", density=0.5, hash_inputs=False)
    assert again.provenance["models"][1]["files"][0]["sha256"] is None


def test_mappings_and_files_can_be_mixed(family, tmp_path):
    paths, states = family
    merging.merge_files("averaging", states[0], [paths[1], states[2]], tmp_path / "o.safetensors")
    assert_same(load_file(tmp_path / "o.safetensors"), merging.merge("averaging", states[0], states[1:]).state)


def test_empty_and_scalar_tensors_survive(tmp_path):
    base = {
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(1.0),
        "flag": torch.tensor([True]),
        "odd": torch.ones(3).half(),
    }
    save_file(base, tmp_path / "a.safetensors")
    save_file({**base, "scalar": torch.tensor(3.0)}, tmp_path / "b.safetensors")
    merging.merge_files(
        "averaging", tmp_path / "a.safetensors", [tmp_path / "b.safetensors"], tmp_path / "o.safetensors"
    )
    assert_same(load_file(tmp_path / "o.safetensors"), {**base, "scalar": torch.tensor(3.0)})


def test_the_plan_is_had_without_writing(family, tmp_path):
    paths, _ = family
    before = os.listdir(tmp_path)
    plan = merging.plan_files("ties", paths[0], paths[1:], density=0.5)
    assert plan.table().startswith("merged     8 tensors")
    with pytest.raises(ValueError, match="unknown option of ties 'densit'"):
        merging.plan_files("ties", paths[0], paths[1:], densit=0.5)
    assert os.listdir(tmp_path) == before


def test_a_base_that_is_also_a_model_is_refused(family, tmp_path):
    paths, _ = family
    out = tmp_path / "out.safetensors"
    with pytest.raises(ValueError, match=f"^{paths[0]} is given as base and as model"):
        merging.merge_files("averaging", paths[0], [paths[1], paths[0]], out)
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(paths[0].read_bytes())
    with pytest.raises(ValueError, match=f"^{copy} is a copy of the base {paths[0]}"):
        merging.merge_files("averaging", paths[0], [paths[1], copy], out)
    assert not out.exists()


def test_no_models_no_output(family, tmp_path):
    with pytest.raises(ValueError, match="expected at least one model to merge, got none"):
        merging.merge_files("averaging", family[0][0], [], tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def poison(path):
    state = load_file(path)
    state["3.weight"].view(-1)[-1] = float("nan")
    save_file(state, path)


def test_errors_in_the_middle_leave_nothing(family, tmp_path):
    paths, _ = family
    poison(paths[2])
    before = os.listdir(tmp_path)
    for out in (tmp_path / "out.safetensors", tmp_path / "folder"):
        for method in ("averaging", "ties", "task_arithmetic"):
            with pytest.raises(ValueError, match=f"^{paths[2]}: '3.weight' holds nan; expected finite numbers only"):
                merging.merge_files(method, paths[0], paths[1:], out)
    assert leftovers(tmp_path, before) == []


PEAKS = """
import pathlib, re, sys, merging

def memory(name):
    return int(re.search(name + r":\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1]) / 1024

def run(method, base, models):
    merging.merge_files(method, base, models, "out.safetensors", hash_inputs=False, overwrite=True, workers=2)

small, large = ([f"{size}{number}.safetensors" for number in range(7)] for size in ("small", "large"))
for method in ("averaging", "task_arithmetic", "duet", "ties"):
    run(method, small[0], small[1:3])  # libraries are loaded, threads have had their first memory
for method, count in (("averaging", 2), ("averaging", 6), ("task_arithmetic", 2), ("task_arithmetic", 6), ("duet", 2),
                      ("ties", 2), ("ties", 6)):
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = memory("VmRSS")
    run(method, large[0], large[1 : 1 + count])
    print(method, count, memory("VmHWM") - before)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="peak memory is read from Linux's /proc")
def test_memory_grows_neither_with_the_tensor_nor_with_the_models(tmp_path):
    """Models of one tensor of 64 MB, and a fraction of it in memory, however many they are."""
    generator = torch.Generator().manual_seed(0)
    for size, rows in (("small", 1 << 12), ("large", 1 << 20)):
        for number in range(7):
            save_file({"w": torch.randn(16, rows, generator=generator)}, tmp_path / f"{size}{number}.safetensors")
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    command = [sys.executable, "-c", PEAKS]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    peaks = {tuple(line.split()[:2]): float(line.split()[2]) for line in done.stdout.splitlines()}
    assert len(peaks) == 7
    assert max(peaks.values()) < 48, peaks
    for method in ("averaging", "task_arithmetic"):
        assert peaks[method, "6"] < peaks[method, "2"] + 8, peaks
