"""A briefly trained demo detector: the same detections under ONNX Runtime, the same mAP in Ultralytics' validation."""

import pytest
import yaml
from typer.testing import CliRunner
from ultralytics import YOLO

from duet.cli import app
from duet.config import EvaluationSettings, parse_assignments
from duet.datasets.domain import open_domains
from duet.datasets.series_file import find_series
from duet.detectors.families import load_pretrained
from duet.evaluation.run import score_domain
from duet.export_command import check_export
from duet.learner import Learner
from duet.monitor import Monitor
from duet.resolve import resolve_config

pytestmark = pytest.mark.slow

CONFIDENCE = 0.05  # after so few steps
SERIES = {
    "name": "brief",
    "scenes": {"seed": 11, "train_scenes": 64, "test_scenes": 13},
    "other_labels": "drop",
    "unlabelled_images": "keep",
    "train": {"epochs": 3, "image_size": 160, "fliplr": 0.0, "batch": 8, "threads": 1, "workers": 0},
    "tasks": [
        {"domain": "clear", "classes": ["0", "1", "2"]},
        {"domain": "night", "classes": ["3", "4", "5"]},
        {"domain": "fog", "classes": ["6", "7"]},
        {"domain": "comic", "classes": ["8", "9"]},
    ],
}


@pytest.fixture(scope="module")
def brief(pretrained_weights, shared_cache, tmp_path_factory):
    """The run folder, and the test images of all domains."""
    folder = tmp_path_factory.mktemp("brief")
    (folder / "brief.yaml").write_text(yaml.safe_dump(SERIES))
    options = {"series": str(folder / "brief.yaml"), "detector": str(pretrained_weights), "method": "joint"}
    given = parse_assignments(["evaluation.reference=none", "evaluation.bootstrap=0"])
    Learner(resolve_config(None, options, given), folder / "run").run()
    domains = open_domains(find_series(options["series"])).values()
    return folder / "run", [image for domain in domains for image in domain.test()]


def test_the_same_detections_in_fifty_scenes(brief, tmp_path):
    pytest.importorskip("onnxruntime")
    run, images = brief
    pictures = [image.path for image in images][:50]
    exported, detector = tmp_path / "demo.onnx", str(run / "detector.pt")
    arguments = ["export", detector, "--out", str(exported), "--confidence", str(CONFIDENCE)]
    for picture in pictures:
        arguments += ["--images", str(picture)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    parity = check_export(load_pretrained(detector), exported, pictures, 160, CONFIDENCE, False, Monitor())
    assert (parity.pictures, parity.only_one) == (50, ())
    assert parity.detections > 50
    assert parity.score_difference < 1e-3
    assert parity.passed


def test_the_map_of_ultralytics_own_validation(brief, tmp_path):
    run, images = brief
    checkpoint = run / "detector.pt"
    detector = load_pretrained(str(checkpoint))
    folders = sorted({str(image.path.parent) for image in images})
    data = {"path": str(tmp_path), "train": folders, "val": folders, "names": dict(enumerate(detector.classes))}
    (tmp_path / "data.yaml").write_text(yaml.safe_dump(data))
    theirs = YOLO(checkpoint).val(
        data=tmp_path / "data.yaml", imgsz=160, rect=False, plots=False, workers=0, project=tmp_path, verbose=False
    )
    ours, single = (
        score_domain(detector, "all", images, detector.classes, 160, EvaluationSettings(multi_label=several)).score(
            detector.classes
        )
        for several in (True, False)
    )
    assert theirs.box.map50 > 0.1
    assert ours["map50"] == pytest.approx(theirs.box.map50, abs=0.01)
    assert ours["map50_95"] == pytest.approx(theirs.box.map, abs=0.01)
    assert single["map50"] < theirs.box.map50 - 0.01  # a box's best class alone is not what Ultralytics counts
