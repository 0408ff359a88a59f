"""Photographs and street scenes in ../shared/data, where they are."""

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml

from duet.config import parse_assignments
from duet.datasets.check import check_series
from duet.datasets.convert import write_dataset
from duet.datasets.dataset_folder import open_folder
from duet.datasets.series_file import find_series
from duet.datasets.shifted import Shift, draw_shifted
from duet.learner import Learner
from duet.resolve import resolve_config

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is absent")]

TRAIN, TEST = 60, 30  # pictures of the two-task series


@pytest.fixture(scope="module")
def photographs():
    return open_folder(SHARED / "voc_small")


def test_photographs_have_the_boxes_of_their_annotations(photographs):
    splits = photographs.read()
    assert {name: len(images) for name, images in splits.items()} == {"train": 1000, "test": 500}
    difficult = 0
    for image in (*splits["train"], *splits["test"]):
        root = ElementTree.parse(SHARED / "voc_small" / "Annotations" / f"{image.path.stem}.xml").getroot()
        objects = root.findall("object")
        edges = [
            [int(item.find(f"bndbox/{edge}").text) for edge in ("xmin", "ymin", "xmax", "ymax")] for item in objects
        ]
        expected = np.array(edges, dtype=float) - [1, 1, 0, 0]
        np.testing.assert_array_equal(image.boxes_xyxy, np.maximum(expected, 0))
        assert list(image.labels) == [item.find("name").text for item in objects]
        assert image.difficult.tolist() == [item.find("difficult").text == "1" for item in objects]
        difficult += image.difficult.sum()
    assert difficult > 500


def test_the_yolo_labels_beside_them_are_the_same_without_difficult_ones(photographs):
    from duet.datasets.index import read_source
    from duet.datasets.source import Source

    folder = SHARED / "voc_small"
    names = tuple((folder / "classes.txt").read_text().split())
    listed = folder / "ImageSets" / "Main" / "test.txt"
    labelled = read_source(Source("yolo", folder / "JPEGImages", folder / "labels", names, listed))
    for one, other in zip(photographs.read()["test"], labelled, strict=True):
        kept = one.chosen(~one.ignored)
        assert kept.labels == other.labels
        np.testing.assert_allclose(kept.boxes_xyxy, other.boxes_xyxy, atol=0.01)


def write_small_series(folder, photographs):
    """VOC[1:10] as photographed → VOC[11:20] drawn as comic, and street scenes in fog that are only evaluated."""
    read = photographs.read()
    taken = {"photo": slice(0, None, 8), "comic": slice(4, None, 8)}  # different pictures for the two domains
    for domain, part in taken.items():
        splits = {"train": list(read["train"][part])[:TRAIN], "test": list(read["test"][part])[:TEST]}
        if domain == "comic":
            (folder / "drawn").mkdir()
            splits = {name: draw_shifted(images, Shift("comic"), folder / "drawn") for name, images in splits.items()}
        write_dataset(splits, photographs.names, folder / domain, "voc")

    def described(domain):
        parts = {split: {"folder": domain, "split": split} for split in ("train", "test")}
        return {"format": "voc", "classes": list(photographs.names), **parts}

    fog = SHARED / "dawn_fog"
    values = {
        "name": "photo-comic",
        "other_labels": "drop",
        "domains": {
            "photo": described("photo"),
            "comic": described("comic"),
            "fog": {
                "classes": str(fog / "classes.txt"),
                "rename": {"motorcycle": "motorbike", "truck": None},
                "test": {"images": str(fog / "images"), "labels": str(fog / "labels")},
            },
        },
        "train": {"epochs": 1, "image_size": 256, "lr0": 0.0005, "threads": 1, "workers": 0},
        "evaluation": {"reference": "none"},
        "tasks": [
            {"domain": "photo", "classes": list(photographs.names[:10])},
            {"domain": "comic", "classes": list(photographs.names[10:])},
        ],
    }
    (folder / "series.yaml").write_text(yaml.safe_dump(values))
    return folder / "series.yaml"


@pytest.fixture(scope="module")
def series(photographs, tmp_path_factory):
    return write_small_series(tmp_path_factory.mktemp("photo-comic"), photographs)


def test_the_series_passes_its_check(series):
    result = check_series(find_series(str(series)))
    assert result.errors == ()
    fog = next(item for item in result.counts if item.domain == "fog")
    assert fog.images == 300
    assert "motorbike" in fog.boxes and "truck" not in fog.boxes


@pytest.mark.parametrize("method", ["duet", "sequential"])
def test_photographs_then_comic_train_and_the_fog_is_only_evaluated(series, method, pretrained_weights, tmp_path):
    options = {"series": str(series), "detector": str(pretrained_weights), "method": method}
    results = Learner(resolve_config(None, options, parse_assignments([])), tmp_path / "run").run()
    roles = [{item["role"] for item in stage["slices"]} for stage in results["stages"]]
    assert roles == [{"new", "extra"}, {"new", "old", "unseen", "extra"}]
    (extra,) = [item for item in results["stages"][1]["slices"] if item["role"] == "extra"]
    assert (extra["domain"], extra["images"]) == ("fog", 300)
    assert set(extra["classes"]) == {"bicycle", "bus", "car", "motorbike", "person"}
    assert extra["map50"] > 0
    assert results["series"]["domains"] == ["photo", "comic"]
    assert {cell["domain"] for cell in results["stages"][1]["grid"]} == {"photo", "comic"}
    assert results["stages"][0]["slices"][0]["map50"] > 0.05
    assert results["indices"]["map50"]["avg_ri"] > 0
    report = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "Fewer than 10 test boxes in" in report
    assert ">fog<" in report or "fog[" in report
