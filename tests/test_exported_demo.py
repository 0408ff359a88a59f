"""A briefly trained demo detector under ONNX Runtime: the same detections in fifty scenes."""

import pytest
import yaml
from typer.testing import CliRunner

from duet.cli import app
from duet.config import parse_assignments
from duet.datasets.domain import open_domains
from duet.datasets.series_file import find_series
from duet.detectors.families import load_pretrained
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


def test_the_same_detections_in_fifty_scenes(pretrained_weights, cache, tmp_path):
    pytest.importorskip("onnxruntime")
    (tmp_path / "brief.yaml").write_text(yaml.safe_dump(SERIES))
    options = {"series": str(tmp_path / "brief.yaml"), "detector": str(pretrained_weights), "method": "sequential"}
    given = parse_assignments(["evaluation.reference=none", "evaluation.confidence=0.05"])
    Learner(resolve_config(None, options, given), tmp_path / "run").run()
    domains = open_domains(find_series(options["series"])).values()
    pictures = [image.path for domain in domains for image in domain.test()][:50]
    exported, detector = tmp_path / "demo.onnx", str(tmp_path / "run" / "detector.pt")
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
