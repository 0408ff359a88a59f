"""Killed at any instant, a run, an update, a merge and an export leave the old state or the new one."""

import json
import random
import re
import shutil
import sys

import numpy as np
import pytest
import torch
import yaml
from killed import KILLED, Forge
from safetensors.numpy import save_file
from tiny_series import DETECTOR, SERIES, content, content_of

from duet.artefact import artefact_is_whole
from duet.config import parse_assignments
from duet.datasets.domain import open_domains
from duet.datasets.series_file import find_series
from duet.detectors.families import load_pretrained
from duet.resolve import resolve_config

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="processes are forked and killed by their handles"),
]

INSTANTS = 30


@pytest.fixture(scope="module")
def forge():
    made = Forge()
    yield made
    made.close()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("survival")


@pytest.fixture(scope="module")
def config(place):
    """The configuration of a run as a file; its scenes are in the cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DUET_CACHE", str(place / "cache"))
        (place / "tiny.yaml").write_text(yaml.safe_dump(SERIES))
        (place / "nano.yaml").write_text(yaml.safe_dump(DETECTOR))
        options = {"series": str(place / "tiny.yaml"), "detector": str(place / "nano.yaml"), "method": "duet"}
        made = resolve_config(None, options, parse_assignments(["evaluation.reference=none"]))
        open_domains(find_series(options["series"]))
    (place / "config.json").write_text(made.model_dump_json())
    return place / "config.json"


@pytest.fixture(scope="module")
def undisturbed(forge, config, place):
    """A run that nothing disturbs, and the seconds it takes."""
    out, cache = place / "undisturbed", place / "cache"
    assert forge.run("train", config, place / "first", cache=cache)[0] == 0  # from here on indexes are in the cache
    shutil.rmtree(cache / "trainings")
    status, seconds = forge.run("train", config, out, cache=cache)
    assert status == 0
    return out, seconds


def recorded(out):
    """state.json without the hashes."""
    record = json.loads((out / "state.json").read_text())
    return {**record, "files": sorted(record["files"])}


def ends_alike(out, undisturbed):
    assert content(out) == content(undisturbed)
    assert recorded(out) == recorded(undisturbed)
    assert artefact_is_whole(out)


def put(source, target):
    """Make a folder what it was."""
    shutil.rmtree(target, ignore_errors=True)
    if source.is_dir():
        shutil.copytree(source, target, symlinks=True)


def test_a_run_killed_at_any_renaming_ends_as_if_nothing_had_been(forge, config, place, undisturbed):
    out, trainings, shots = place / "renamed", place / "cache" / "trainings", place / "shots"
    shutil.rmtree(trainings)
    kill = {"snapshots": [str(shots), str(out), str(trainings)]}
    assert forge.run("train", config, out, cache=place / "cache", kill=kill)[0] == 0
    ends_alike(out, undisturbed[0])
    numbers = sorted(int(shot.name) for shot in shots.iterdir())
    assert len(numbers) > 25 and numbers == list(range(numbers[0], numbers[-1] + 1))
    for number in numbers:
        put(shots / str(number) / out.name, out)
        put(shots / str(number) / "trainings", trainings)
        assert forge.run("train", config, out, cache=place / "cache")[0] == 0, number
        ends_alike(out, undisturbed[0])


def test_a_kill_leaves_what_a_copy_shows(forge, config, place, undisturbed):
    out, trainings, shots = place / "dead", place / "cache" / "trainings", place / "shots-of-dead"
    shutil.rmtree(trainings, ignore_errors=True)
    kill = {"snapshots": [str(shots), str(out), str(trainings)]}
    assert forge.run("train", config, out, cache=place / "cache", kill=kill)[0] == 0
    for number in (12, 27):
        shutil.rmtree(out)
        shutil.rmtree(trainings, ignore_errors=True)
        assert forge.run("train", config, out, cache=place / "cache", kill={"rename": number})[0] == KILLED
        assert names(out) == names(shots / str(number) / out.name)


def names(folder):
    """Paths in a folder, without the numbers of processes."""
    return {re.sub(r"\.\d+\.part$", "", path.relative_to(folder).as_posix()) for path in folder.rglob("*")}


def test_a_run_killed_at_random_instants_ends_as_if_nothing_had_been(forge, config, place, undisturbed):
    """Each run is killed twice, and goes on twice."""
    out, cache, chance, kills = place / "instants", place / "cache", random.Random(8), 0
    for _ in range(INSTANTS // 2):
        shutil.rmtree(out, ignore_errors=True)
        shutil.rmtree(cache / "trainings", ignore_errors=True)
        for _ in range(2):
            kill = {"seconds": chance.uniform(0, undisturbed[1])}
            kills += forge.run("train", config, out, cache=cache, kill=kill)[0] == KILLED
        assert forge.run("train", config, out, cache=cache)[0] == 0
        ends_alike(out, undisturbed[0])
    assert kills > INSTANTS // 3


@pytest.fixture(scope="module")
def fog(place, config):
    """Pictures to learn the next task from."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DUET_CACHE", str(place / "cache"))
        series = {**SERIES, "tasks": [{"domain": "fog", "classes": ["6", "7"]}]}
        (place / "fog.yaml").write_text(yaml.safe_dump(series))
        domains = open_domains(find_series(str(place / "fog.yaml")))
    return domains["fog"].train()[0].path.parents[2]


def test_a_killed_update_leaves_nothing_or_everything(forge, place, undisturbed, fog):
    cache, chance = place / "cache", random.Random(3)
    arguments = (undisturbed[0], fog, "6,7", "fog")
    status, seconds = forge.run("update", *arguments, place / "updated", cache=cache)
    assert status == 0
    before = content(undisturbed[0])
    out = place / "update"
    kills = [{"rename": number} for number in (1, 3, 6)] + [{"seconds": chance.uniform(0, seconds)} for _ in range(6)]
    for kill in kills:
        assert forge.run("update", *arguments, out, cache=cache, kill=kill)[0] in (KILLED, 0)
        finished = out.exists()
        if finished:
            assert content(out) == content(place / "updated")
        assert forge.run("update", *arguments, out, cache=cache)[0] == (1 if finished else 0)  # never replaced
        assert content(out) == content(place / "updated")
        assert [path.name for path in place.glob(".update*")] == []
        shutil.rmtree(out)
    assert content(undisturbed[0]) == before


def test_a_killed_merge_leaves_the_old_model_or_the_new_one(forge, place, undisturbed):
    chance, files = random.Random(4), {}
    for number in range(3):
        generator = np.random.default_rng(number)
        files[number] = place / f"{number}.safetensors"
        save_file({f"w{key}": generator.standard_normal((200, 2000)).astype("f4") for key in range(6)}, files[number])
    for name in ("merged", "merged.safetensors"):
        out, versions, seconds = place / name, [], 0.0
        for scale in (0.5, 1.0):
            status, seconds = forge.run("merge", *files.values(), scale, out, cache=place / "cache")
            assert status == 0
            versions.append(tensors_of(out))
        kills = [{"rename": 1}, {"rename": 2}, *({"seconds": chance.uniform(0, 1.2 * seconds)} for _ in range(6))]
        for kill in kills:
            assert forge.run("merge", *files.values(), 0.5, out, cache=place / "cache", kill=kill)[0] in (KILLED, 0)
            assert tensors_of(out) in versions
            record = place / "merged.provenance.json" if out.is_file() else out / "provenance.json"
            scales = [json.loads(record.read_text())["options"]["scaling_factor"]] if record.exists() else []
            assert scales in ([], [(0.5, 1.0)[versions.index(tensors_of(out))]])
            assert forge.run("merge", *files.values(), 1.0, out, cache=place / "cache")[0] == 0
            assert tensors_of(out) == versions[1]
            assert [path.name for path in place.glob(".merged*")] == []


def tensors_of(out):
    return content_of(out if out.is_file() else out / "model.safetensors")[0]


def test_a_killed_export_leaves_the_old_file_or_the_new_one(forge, place, undisturbed):
    detector, out = place / "field.pt", place / "field.torchscript"
    load_pretrained("yolo11n.yaml").with_classes(("0",), 0).save_checkpoint(detector)
    status, seconds = forge.run("export", detector, out, cache=place / "cache")
    assert status == 0
    chance = random.Random(5)
    for kill in [{"rename": 1}, *({"seconds": chance.uniform(0.5, 1) * seconds} for _ in range(2))]:
        out.write_bytes(b"old")
        status, _ = forge.run("export", detector, out, cache=place / "cache", kill=kill)
        assert status in (KILLED, 0)
        if status == 0 or out.read_bytes() != b"old":
            torch.jit.load(out)
