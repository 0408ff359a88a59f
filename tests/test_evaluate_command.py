"""``duet evaluate`` on a detector that knows the truth."""

import json

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from duet.cli import app
from duet.config import EvaluationSettings
from duet.datasets.domain import open_domains
from duet.datasets.series_file import find_series
from duet.detectors.base import Detections
from duet.errors import InputError
from duet.evaluate_command import score_grid
from duet.monitor import Monitor

SERIES = {
    "name": "small",
    "scenes": {"seed": 7, "train_scenes": 8, "test_scenes": 8},
    "other_labels": "drop",
    "unlabelled_images": "keep",
    "train": {"image_size": 160},
    "tasks": [{"domain": "clear", "classes": ["0", "1", "2"]}, {"domain": "night", "classes": ["3", "4"]}],
}


@pytest.fixture(scope="module")
def series(tmp_path_factory, shared_cache):
    path = tmp_path_factory.mktemp("series") / "small.yaml"
    path.write_text(yaml.safe_dump(SERIES))
    return path


@pytest.fixture(autouse=True)
def cache(monkeypatch, shared_cache):
    monkeypatch.setenv("DUET_CACHE", str(shared_cache))


class Oracle:
    """Knows the boxes of the test pictures, of some classes only."""

    image_size = None

    def __init__(self, series, classes):
        self.classes = classes
        domains = open_domains(find_series(str(series)))
        self.truth = {image.path: image for name in domains for image in domains[name].test()}

    def predict(self, images, image_size, settings):
        assert image_size == 160
        for path in images:
            truth = self.truth[path]
            kept = [index for index, name in enumerate(truth.labels) if name in self.classes]
            boxes = np.asarray(truth.boxes_xyxy, dtype=np.float32).reshape(-1, 4)[kept]
            labels = tuple(truth.labels[index] for index in kept)
            yield path, Detections(boxes, np.full(len(kept), 0.9, dtype=np.float32), labels)


def grid(document):
    return {(cell["domain"], cell["task"]): cell["map50"] for cell in document["stages"][0]["grid"]}


def test_who_knows_everything_scores_one_everywhere(series):
    document = score_grid(
        Oracle(series, ("0", "1", "2", "3", "4")), str(series), None, None, EvaluationSettings(), Monitor()
    )
    assert set(grid(document).values()) == {1.0}
    assert document["stages"][0]["task"] == 2


def test_who_knows_the_first_task_scores_there_in_every_domain(series):
    document = score_grid(Oracle(series, ("0", "1", "2")), str(series), None, None, EvaluationSettings(), Monitor())
    assert document["stages"][0]["task"] == 1
    assert grid(document)[("clear", 1)] == grid(document)[("night", 1)] == 1.0
    assert grid(document)[("clear", 2)] == 0.0


def test_who_knows_none_of_the_classes_is_told_so(series):
    with pytest.raises(InputError, match="knows no task of series 'small' whole; its classes: cat"):
        score_grid(Oracle(series, ("cat",)), str(series), None, None, EvaluationSettings(), Monitor())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.pt"], "nowhere.pt: no such weights file"),
        (["nowhere.pt", "--set", "train.epochs=3"], "only keys of evaluation count"),
        (["nowhere.pt", "--set", "evaluation.ioux=3"], "unknown key 'ioux'"),
    ],
)
def test_bad_arguments_are_one_sentence(arguments, message, series):
    result = CliRunner().invoke(app, ["evaluate", *arguments, "--series", str(series)])
    assert isinstance(result.exception, InputError)
    assert message in str(result.exception)


def test_the_command_prints_the_grid_and_writes_the_numbers(series, monkeypatch, tmp_path):
    oracle = Oracle(series, ("0", "1", "2", "3", "4"))
    monkeypatch.setattr("duet.detectors.families.load_pretrained", lambda name, trust=False: oracle)
    arguments = ["evaluate", "oracle", "--series", str(series), "--json", str(tmp_path / "grid.json")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "1.000" in result.output
    document = json.loads((tmp_path / "grid.json").read_text())
    assert set(grid(document).values()) == {1.0}
    assert document["settings"]["evaluation"]["multi_label"] is True
