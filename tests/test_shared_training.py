"""Trainings that runs share are made once: by key, by one process at a time, and never taken when damaged."""

import threading
from pathlib import Path

import pytest
import torch
import yaml
from filelock import FileLock
from tiny_series import SERIES

from duet.datasets.domain import content_digest, open_domains
from duet.datasets.series_file import find_series
from duet.detectors.base import StageOutcome
from duet.detectors.families import load_pretrained
from duet.detectors.fcos import FcosDetector
from duet.monitor import Monitor
from duet.resolve import resolve_config
from duet.shared_training import SharedTrainer


@pytest.fixture
def trained(monkeypatch):
    """Trainings that were made, in place of training: the weights move by the seed."""
    made = []

    def train_stage(self, request):
        made.append((request.seed, self.classes))
        self.load_state({key: value + request.seed for key, value in self.state().items()})
        return StageOutcome(({"loss": float(request.seed)},), 12.5)

    monkeypatch.setattr(FcosDetector, "train_stage", train_stage)
    return made


@pytest.fixture
def make_trainer(tmp_path, monkeypatch):
    """A trainer of a method and seed, with a cache of the test's own."""
    monkeypatch.setenv("DUET_CACHE", str(tmp_path / "cache"))
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(SERIES))

    def make(method="duet", seed=0, monitor=None, settings=None, **train):
        options = {"series": str(tmp_path / "tiny.yaml"), "detector": "fcos-tiny", "method": method, "seed": seed}
        config = resolve_config(None, options, {"train": train, "method": settings or {}})
        source = find_series(config.series)
        domains = open_domains(source)
        digests = {name: content_digest(domains[name].train()) for name in source.series.domains}
        start = load_pretrained("fcos-tiny")
        return SharedTrainer(source, domains, digests, config, start, "start", monitor or Monitor())

    return make


def folders(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "cache" / "trainings").iterdir() if not path.name.startswith(".")]


def same(one, other) -> bool:
    first, second = one.detector.state(), other.detector.state()
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_methods_of_one_seed_share_their_first_stage_to_the_bit(trained, make_trainer, tmp_path):
    first = make_trainer("duet")
    assert not first.has_alone(1)
    made = first.alone(1)
    second = make_trainer("sequential")
    assert second.has_alone(1)
    fetched = second.alone(1)
    assert trained == [(1, ("0", "1", "2"))] and len(folders(tmp_path)) == 1
    assert same(made, fetched) and fetched.outcome == StageOutcome(({"loss": 1.0},), 12.5)


@pytest.mark.parametrize("other", [{"seed": 1}, {"epochs": 2}, {"image_size": 96}])
def test_what_decides_the_numbers_makes_another_training(trained, make_trainer, other):
    make_trainer().alone(1)
    make_trainer(**other).alone(1)
    assert len(trained) == 2


def test_a_method_that_varies_appearance_has_a_first_stage_of_its_own_and_the_same_references(
    make_trainer, monkeypatch
):
    made = []

    def train_stage(self, request):
        made.append((len(self.classes), request.method.appearance and request.method.appearance.share))
        return StageOutcome(({"loss": 1.0},), 1.0)

    monkeypatch.setattr(FcosDetector, "train_stage", train_stage)
    plain, half, quarter = (
        make_trainer(settings={"appearance": varied}) for varied in (None, {"share": 0.5}, {"share": 0.25})
    )
    plain.alone(1)
    assert not half.has_alone(1)
    for trainer in (half, quarter, plain, half):
        trainer.alone(1)
    plain.joint()
    half.joint()
    assert made == [(3, None), (3, 0.5), (3, 0.25), (5, None)]


def test_the_number_of_loading_workers_does_not(trained, make_trainer):
    make_trainer(workers=0).alone(1)
    make_trainer(workers=3).alone(1)
    assert len(trained) == 1


def test_tasks_and_references_are_trainings_of_their_own(trained, make_trainer, tmp_path):
    trainer = make_trainer()
    trainer.alone(1)
    trainer.alone(2)
    trainer.joint()
    assert [classes for _, classes in trained] == [("0", "1", "2"), ("3", "4"), ("0", "1", "2", "3", "4")]
    assert len(folders(tmp_path)) == 3


def test_a_damaged_training_is_made_again(trained, make_trainer, tmp_path):
    made = make_trainer().alone(1)
    path = folders(tmp_path)[0] / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert same(make_trainer().alone(1), made) and len(trained) == 2


def test_a_training_that_another_run_makes_is_waited_for(trained, make_trainer, tmp_path):
    class Listening(Monitor):
        def begin(self, title, total):
            begun.append(title)
            if title.startswith("wait"):
                waiting.set()

    begun, waiting, results = [], threading.Event(), []
    make_trainer().alone(1)
    folder = folders(tmp_path)[0]
    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    with lock:
        thread = threading.Thread(target=lambda: results.append(make_trainer(monitor=Listening()).alone(1)))
        thread.start()
        assert waiting.wait(60) and results == []
    thread.join(60)
    assert len(results) == 1 and len(trained) == 1
    assert begun == ["wait for another run: stage 1/2: clear"]


def test_a_training_that_fails_leaves_nothing_to_be_taken(make_trainer, monkeypatch, tmp_path):
    def train_stage(self, request):
        raise RuntimeError("no")

    monkeypatch.setattr(FcosDetector, "train_stage", train_stage)
    with pytest.raises(RuntimeError, match="no"):
        make_trainer().alone(1)
    assert folders(tmp_path) == [] and not make_trainer().has_alone(1)
