"""Files that are damaged, incomplete or no models at all are refused by name."""

import json
import os

import pytest
import torch
from merging_cases import leftovers
from safetensors.torch import load_file, save_file

import merging
from merging.safetensors_reader import SafetensorsSource


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
        (header_of(lambda h: h.update({"__metadata__": "text"})), "its __metadata__ is no mapping of texts"),
        (header_of(lambda h: h.update({"__metadata__": {"a": [1]}})), "its __metadata__ is no mapping of texts"),
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
