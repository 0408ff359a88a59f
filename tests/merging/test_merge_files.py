"""Merging from disk to disk: equal to memory bit for bit, complete or not there at all."""

import errno
import hashlib
import json
import os
import subprocess
import sys

import pytest
import torch
from merging_cases import network, options_for, same_bits, tuned
from safetensors import safe_open
from safetensors.torch import load_file, save_file, save_model

import merging
from merging import blocks
from merging.safetensors_reader import SafetensorsSource


@pytest.fixture
def family(tmp_path):
    """Paths of a base and two models, single files, and their states."""
    states = [network(0), tuned(network(0), 1), tuned(network(0), 2)]
    paths = [tmp_path / name for name in ("base.safetensors", "one.safetensors", "two.safetensors")]
    for path, state in zip(paths, states):
        save_file(state, path)
    return paths, states


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


def leftovers(folder, before):
    return sorted(set(os.listdir(folder)) - set(before))


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


def test_every_tensor_is_aligned_to_its_own_size(tmp_path):
    base = {"a": torch.ones(3).bool(), "b": torch.ones(3).half(), "c": torch.ones(3), "d": torch.ones(3).long()}
    merging.merge_files("averaging", base, [base], tmp_path / "o.safetensors")
    content = (tmp_path / "o.safetensors").read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    for key, tensor in base.items():
        assert (8 + size + header[key]["data_offsets"][0]) % tensor.element_size() == 0


def test_the_plan_is_had_without_writing(family, tmp_path):
    paths, _ = family
    before = os.listdir(tmp_path)
    plan = merging.plan_files("ties", paths[0], paths[1:], density=0.5)
    assert plan.table().startswith("merged     8 tensors")
    with pytest.raises(ValueError, match="unknown option of ties 'densit'"):
        merging.plan_files("ties", paths[0], paths[1:], densit=0.5)
    assert os.listdir(tmp_path) == before


def damaged(path, change):
    content = bytearray(path.read_bytes())
    path.write_bytes(change(content))


def header_of(change):
    """Rewrite the JSON header of a safetensors file."""

    def rewrite(content):
        size = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + size])
        change(header)
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + content[8 + size :]

    return rewrite


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content[:-1], "truncated: the header describes"),
        (lambda content: content + b"x", "damaged: the header describes"),
        (lambda content: content[:5], "no safetensors file, or truncated"),
        (lambda content: b"", "no safetensors file, or truncated"),
        (lambda content: b"\xff" * 64, "no safetensors file, or truncated"),
        (lambda content: content[:8] + b"}" + content[9:], "damaged JSON"),
        (header_of(lambda h: h["3.bias"].update(shape=[3])), "'3.bias' lies at bytes"),
        (header_of(lambda h: h["3.bias"].update(shape=[-2])), "the header's entry for '3.bias' is damaged"),
        (header_of(lambda h: h["3.bias"].pop("dtype")), "the header's entry for '3.bias' is damaged"),
        (header_of(lambda h: h["3.bias"].update(dtype="C64")), "'3.bias' has dtype C64, which cannot be merged"),
        (header_of(lambda h: h.pop("3.bias")), "lies at bytes"),
        (header_of(lambda h: h.update({"3.bias": [1]})), "the header's entry for '3.bias' is damaged"),
    ],
)
def test_damaged_files_are_refused_by_name(family, tmp_path, change, message):
    paths, _ = family
    damaged(paths[2], change)
    before = os.listdir(tmp_path)
    with pytest.raises(ValueError, match=f"^{paths[2]}: .*{message}|^{paths[2]}: {message}"):
        merging.merge_files("averaging", paths[0], paths[1:], tmp_path / "out.safetensors")
    assert leftovers(tmp_path, before) == []


def test_a_file_that_shrinks_meanwhile_is_told(family):
    paths, _ = family
    source = SafetensorsSource(paths[1])
    os.truncate(paths[1], paths[1].stat().st_size - 4)
    last = max(source._places, key=lambda key: source._places[key].offset)
    with pytest.raises(ValueError, match=f"ends inside '{last}'; the file is truncated"):
        source.read(last, 0, source.specs[last].numel)


@pytest.fixture
def shards(family, tmp_path):
    paths, _ = family
    merging.merge_files("averaging", paths[0], [paths[1]], tmp_path / "shards", max_shard_bytes=100)
    return tmp_path / "shards"


def edit_index(folder, change):
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))


def test_index_and_shards_must_agree(shards):
    first, second = (path.name for path in sorted(shards.glob("*.safetensors"))[:2])
    key = next(iter(load_file(shards / first)))
    edit_index(shards, lambda weights: weights.update({key: second}))
    with pytest.raises(ValueError, match=f"the index puts '{key}' in {second}, but it is in {first}"):
        SafetensorsSource(shards)
    edit_index(shards, lambda weights: weights.update({key: first, "ghost": first}))
    with pytest.raises(ValueError, match=f"the index puts 'ghost' in {first}, which does not hold it"):
        SafetensorsSource(shards)


def test_shards_must_exist_inside_the_folder(shards):
    edit_index(shards, lambda weights: weights.update(ghost="other.safetensors"))
    with pytest.raises(FileNotFoundError, match=r"shard 'other\.safetensors' does not exist"):
        SafetensorsSource(shards)
    edit_index(shards, lambda weights: weights.update(ghost="../base.safetensors"))
    with pytest.raises(ValueError, match=r"shard '\.\./base\.safetensors' is outside the index's folder"):
        SafetensorsSource(shards)
    (shards / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ValueError, match="expected a 'weight_map'"):
        SafetensorsSource(shards)


def test_a_tensor_in_two_shards_is_refused(shards):
    files = sorted(shards.glob("*.safetensors"))
    state = load_file(files[0])
    save_file({**load_file(files[1]), **state}, files[1])
    with pytest.raises(ValueError, match=f"is also in {files[0].name}"):
        SafetensorsSource(shards)


def test_folders_without_one_model_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no safetensors file"):
        SafetensorsSource(tmp_path)
    for name in ("a", "b"):
        save_file({"w": torch.ones(1)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(
        ValueError, match=r"holds 2 safetensors files without an index \(a.safetensors, b.safetensors\)"
    ):
        SafetensorsSource(tmp_path)


@pytest.mark.parametrize("name", ["model.txt", "nothing.safetensors", "nothing.pt"])
def test_paths_that_are_no_models_are_refused(name, family, tmp_path):
    (tmp_path / "model.txt").write_text("x")
    with pytest.raises(
        (ValueError, FileNotFoundError), match=f"{name}: (expected a folder or a file ending in|no such file)"
    ):
        merging.merge("averaging", family[0][0], [tmp_path / name])


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


def test_memory_grows_neither_with_the_tensor_nor_with_the_models(tmp_path):
    """Tensors of 64 MB in up to five models, and far less than one of them in memory."""
    paths = [tmp_path / f"{number}.safetensors" for number in range(5)]
    for path in paths:
        save_file({"w": torch.randn(16, 1 << 20)}, path)
    code = (
        "import re, sys, merging\n"
        "def peak():\n"
        "    return int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]) / 1024\n"
        "before = peak()\n"
        "for method, count in (('averaging', 4), ('task_arithmetic', 4), ('duet', 2), ('ties', 4)):\n"
        "    models = sys.argv[2 : 2 + count]\n"
        "    merging.merge_files(method, sys.argv[1], models, method + '.safetensors', hash_inputs=False, workers=2)\n"
        "    print(method, peak() - before)\n"
    )
    command = [sys.executable, "-c", code, *map(str, paths)]
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    peaks = {name: float(number) for name, number in (line.split() for line in done.stdout.splitlines())}
    assert list(peaks) == ["averaging", "task_arithmetic", "duet", "ties"]
    assert max(peaks.values()) < 48, peaks
