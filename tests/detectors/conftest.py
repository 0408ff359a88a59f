import numpy as np
import pytest
import yaml
from PIL import Image

from duet.config import MethodSettings, TrainSettings
from duet.detectors.base import StageRequest

TRAIN = TrainSettings(epochs=1, batch=4, image_size=64, workers=0, threads=1, amp=False, lr0=1e-2)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    paths = []
    for number in range(6):
        size = (64, 64) if number % 2 else (96, 64)
        path = folder / f"{number}.png"
        Image.fromarray(generator.integers(0, 255, (*size, 3), dtype=np.uint8)).save(path)
        paths.append(path)
    return paths


@pytest.fixture
def make_request(tmp_path, pictures):
    """Build the request of a stage in which every picture shows one box of one class."""

    def build(detector, index, folder="stage", **options):
        data = _training_set(tmp_path / folder / "data", pictures, detector.classes, index)
        method = options.pop("method", MethodSettings(name="test"))
        epochs = options.pop("epochs", 1)
        return StageRequest(data, tmp_path / folder / "train", 3, TRAIN, method, epochs, **options)

    return build


def _training_set(folder, pictures, classes, index):
    (folder / "images").mkdir(parents=True)
    (folder / "labels").mkdir()
    for path in pictures:
        (folder / "images" / path.name).symlink_to(path)
        (folder / "labels" / f"{path.stem}.txt").write_text(f"{index} 0.5 0.5 0.6 0.5\n")
    layout = {"path": str(folder), "train": "images", "val": "images", "names": dict(enumerate(classes))}
    (folder / "data.yaml").write_text(yaml.safe_dump(layout))
    return folder / "data.yaml"
