"""Intervals of a run folder: made of the detections it keeps, or a sentence why there are none."""

import numpy as np
import pytest
from random_run import make_run
from safetensors.numpy import load_file

from duet.config import EvaluationSettings, RunConfig
from duet.errors import InputError
from duet.evaluation.stored import store_detections
from duet.methods import METHODS
from duet.monitor import Monitor
from duet.state import RunState
from duet.uncertainty import lacks_intervals, write_intervals


class Counting(Monitor):
    """Keeps what it was told."""

    def __init__(self):
        self.begun, self.done = [], []

    def begin(self, title, total):
        self.begun.append((title, total))

    def advance(self, done, text=""):
        self.done.append(done)


@pytest.fixture(scope="module")
def run():
    return make_run()


def folder_of(run, folder, role="detections"):
    """A run folder with the run's detections."""
    state = RunState(folder, "fingerprint")
    for number, found in enumerate(run.found.stages, start=1):
        path = folder / "stages" / str(number) / "detections.safetensors"
        store_detections(found, run.results["series"]["classes"], path)
        state.finish_stage({role: path})
    if run.found.reference:
        reference = folder / "reference-detections.safetensors"
        store_detections(run.found.reference, run.results["series"]["classes"], reference)
    return state


def write(run, state, resamples=20, monitor=None, **settings):
    settings = EvaluationSettings(bootstrap=resamples, **settings)
    return write_intervals(run.results, state, run.images, settings, monitor or Monitor())


def test_intervals_and_replicates_are_written(run, tmp_path):
    state, monitor = folder_of(run, tmp_path / "run"), Counting()
    document = write(run, state, monitor=monitor)
    values = load_file(tmp_path / "run" / "bootstrap.safetensors")
    assert values["map50/overall"].shape == (20,)
    low, high = np.nanpercentile(values["map50/overall"], [2.5, 97.5])
    assert document["intervals"]["indices"]["map50"]["overall"] == pytest.approx([low, high])
    assert {key: value for key, value in document.items() if key != "intervals"} == run.results
    assert "intervals" not in run.results
    assert monitor.begun == [("confidence intervals", 12)]
    assert monitor.done == list(range(1, 13))
    assert write(run, state)["intervals"] == document["intervals"]


@pytest.mark.parametrize("kind", ["individual", "none"])
def test_every_kind_of_reference(kind, tmp_path):
    run = make_run(seed=2, kind=kind)
    block = write(run, folder_of(run, tmp_path / "run"))["intervals"]["indices"]["map50"]
    assert (block["rai"] is None) == (kind == "none")
    assert block["avg_ri"] is not None


def test_the_runs_choice_of_images_is_kept(tmp_path):
    run = make_run(seed=4, own_images=True)
    state = folder_of(run, tmp_path / "run")
    assert write(run, state, drop_images_without_class=True)["intervals"]
    with pytest.raises(InputError, match="the detections give map50"):
        write(run, state)


def test_without_detections_there_is_a_sentence_and_no_file(run, tmp_path):
    old = folder_of(run, tmp_path / "old", role="model")
    with pytest.raises(InputError, match="stage 1 was made before detections were kept"):
        write(run, old)
    assert not (tmp_path / "old" / "bootstrap.safetensors").exists()
    state = folder_of(run, tmp_path / "run")
    (tmp_path / "run" / "reference-detections.safetensors").write_bytes(b"no")
    with pytest.raises(InputError, match="damaged"):
        write(run, state)
    (tmp_path / "run" / "reference-detections.safetensors").unlink()
    with pytest.raises(InputError, match=r"missing; without reference\.json and results\.json"):
        write(run, state)
    (tmp_path / "run" / "stages" / "2" / "detections.safetensors").unlink()
    with pytest.raises(InputError, match="missing, although stage 2 is recorded as finished"):
        write(run, state)


def test_what_a_run_lacks(tmp_path):
    assert lacks_intervals({}, tmp_path, 1000)
    assert not lacks_intervals({}, tmp_path, 0)
    document = {"intervals": {"resamples": 1000}}
    assert lacks_intervals(document, tmp_path, 1000)  # no replicates
    (tmp_path / "bootstrap.safetensors").write_bytes(b"")
    assert not lacks_intervals(document, tmp_path, 1000)
    assert lacks_intervals(document, tmp_path, 200)
    assert not lacks_intervals(document, tmp_path, 0)


def test_the_number_of_resamples_decides_nothing_that_is_trained():
    few, many = (
        RunConfig(method=METHODS["duet"], evaluation=EvaluationSettings(bootstrap=number)) for number in (0, 500)
    )
    assert few.deciding() == many.deciding()
    assert "bootstrap" not in few.deciding()["evaluation"]
    assert few.deciding()["evaluation"]["iou"] == 0.7
