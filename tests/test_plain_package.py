"""detector.pt in an environment without this package: Ultralytics alone loads it, predicts with it and exports it."""

import json
import os
import subprocess
import sys

import cv2
import numpy as np
import pytest
from sklearn.datasets import load_sample_image

from duet.config import EvaluationSettings
from duet.detectors.families import load_pretrained

pytestmark = pytest.mark.slow

ALONE = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("duet", "merging"):
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)

sys.meta_path.insert(0, Absent())
import json
import torch
import ultralytics

torch.set_num_threads(1)
checkpoint, picture, kind = sys.argv[1:]
model = getattr(ultralytics, kind)(checkpoint)
options = {"conf": 0.01, "imgsz": 320, "verbose": False}
found = model.predict(picture, **options)[0].boxes
exported = model.export(format="torchscript", imgsz=320, verbose=False)
torch.jit.load(exported)
again = ultralytics.YOLO(exported, task="detect").predict(picture, **options)[0].boxes if kind == "YOLO" else found
assert not [name for name in sys.modules if name.partition(".")[0] in ("duet", "merging")]
print(json.dumps({
    "names": model.names,
    "boxes": found.xyxy.tolist(), "scores": found.conf.tolist(), "labels": found.cls.tolist(),
    "exported_scores": again.conf.tolist(),
}))
"""


def alone(checkpoint, picture, kind, folder):
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment.update(YOLO_AUTOINSTALL="false", OMP_NUM_THREADS="1")
    command = [sys.executable, "-I", "-c", ALONE, str(checkpoint), str(picture), kind]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(("name", "kind", "new"), [("yolo11n", "YOLO", "digit"), ("rtdetr-tiny", "RTDETR", "digit")])
def test_ultralytics_alone_finds_what_we_find(name, kind, new, tmp_path, request):
    weights = str(request.getfixturevalue("pretrained_weights")) if name == "yolo11n" else name
    detector = load_pretrained(weights).grown((new,), 0, "rows")
    detector.save_checkpoint(tmp_path / "detector.pt")
    picture = load_sample_image("china.jpg")[..., ::-1]
    if kind == "RTDETR":  # pretrained on letters
        picture = cv2.putText(np.full((320, 320, 3), 90, np.uint8), "ABK", (20, 200), 0, 4, (240, 240, 240), 9)
    (tmp_path / "picture.png").write_bytes(cv2.imencode(".png", picture)[1].tobytes())
    found = alone(tmp_path / "detector.pt", tmp_path / "picture.png", kind, tmp_path)
    assert list(found["names"].values()) == list(detector.classes)
    settings = EvaluationSettings(confidence=0.01)
    ((_, ours),) = load_pretrained(str(tmp_path / "detector.pt")).predict_pictures([(0, picture)], 320, settings)
    assert len(ours.scores) > 0
    np.testing.assert_allclose(found["boxes"], ours.boxes_xyxy, atol=1e-2)
    np.testing.assert_allclose(found["scores"], ours.scores, atol=1e-4)
    assert [detector.classes[int(label)] for label in found["labels"]] == list(ours.labels)
    if kind == "YOLO":  # its export pads to a square, which moves scores; that it finds anything is what counts
        assert max(found["exported_scores"]) > 0.01
