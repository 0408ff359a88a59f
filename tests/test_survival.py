"""Killed at any instant, a run, an update, a merge and an export leave the old state or the new one."""

import hashlib
import json
import random
import shutil
import sys

import pytest
import yaml
from killed import KILLED, Forge
from safetensors import safe_open

from duet.artefact import artefact_is_whole
from duet.config import parse_assignments
from duet.datasets.domain import open_domains
from duet.datasets.series_file import find_series
from duet.resolve import resolve_config

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="processes are forked and killed by their handles"),
]

INSTANTS = 30
SERIES = {
    "name": "tiny",
    "scenes": {"seed": 9, "train_scenes": 4, "test_scenes": 2},
    "other_labels": "drop",
    "unlabelled_images": "keep",
    "train": {"epochs": 1, "image_size": 64, "fliplr": 0.0, "batch": 4, "threads": 1, "workers": 0},
    "tasks": [{"domain": "clear", "classes": ["0", "1", "2"]}, {"domain": "night", "classes": ["3", "4"]}],
}
DETECTOR = {"family": "fcos", "blocks": [1, 1, 1, 1], "channels": 32, "convolutions": 1}


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


def timeless(value):
    """Without durations, and without hashes of files whose headers have no order."""
    if isinstance(value, dict):
        left_out = ("timing", "sha256", "seconds")
        return {key: timeless(inner) for key, inner in value.items() if key not in left_out}
    return [timeless(inner) for inner in value] if isinstance(value, list) else value


def content_of(path):
    if path.suffix == ".safetensors":
        with safe_open(path, framework="numpy") as stream:
            tensors = {key: stream.get_tensor(key) for key in stream.keys()}  # noqa: SIM118
            hashes = {key: hashlib.sha256(value.tobytes()).hexdigest() for key, value in tensors.items()}
            return hashes, stream.metadata()
    if path.suffix == ".json":
        return timeless(json.loads(path.read_text()))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def content(folder):
    """What a folder holds, by name; hidden files too, so that leftovers show."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name not in (".lock", "state.json")]
    return {path.relative_to(folder).as_posix(): content_of(path) for path in files}


def recorded(out):
    """state.json without the hashes."""
    record = json.loads((out / "state.json").read_text())
    return {**record, "files": sorted(record["files"])}


def goes_on(forge, config, out, cache, undisturbed):
    """Start the same run again and compare its end with the undisturbed one."""
    assert forge.run("train", config, out, cache=cache)[0] == 0
    assert content(out) == content(undisturbed)
    assert recorded(out) == recorded(undisturbed)
    assert artefact_is_whole(out)


def start_killed(forge, config, out, cache, kill):
    shutil.rmtree(out, ignore_errors=True)
    shutil.rmtree(cache / "trainings", ignore_errors=True)
    return forge.run("train", config, out, cache=cache, kill=kill)[0]


def test_a_run_killed_at_every_renaming_ends_as_if_nothing_had_been(forge, config, place, undisturbed):
    out, cache, kills = place / "renamed", place / "cache", 0
    while start_killed(forge, config, out, cache, {"rename": kills + 1}) == KILLED:
        kills += 1
        goes_on(forge, config, out, cache, undisturbed[0])
    assert kills > 25


def test_a_run_killed_at_random_instants_ends_as_if_nothing_had_been(forge, config, place, undisturbed):
    out, cache, chance, kills = place / "instants", place / "cache", random.Random(8), 0
    for _ in range(INSTANTS):
        seconds = chance.uniform(0, undisturbed[1])
        kills += start_killed(forge, config, out, cache, {"seconds": seconds}) == KILLED
        goes_on(forge, config, out, cache, undisturbed[0])
    assert kills > INSTANTS // 2
