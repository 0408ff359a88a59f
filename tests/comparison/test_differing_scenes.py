"""The pictures that are shown are those on which the methods differ most, with what each found on them."""

import logging

import numpy as np
import pytest
import yaml
from data_trees import voc_tree

from duet.comparison.scenes import differing_scenes
from duet.detectors.base import Detections
from duet.evaluation.stored import store_detections
from duet.report.compared import ComparedRun

BOX = (4, 4, 20, 20)
DOMAINS = {"day": ("car",), "night": ("bus",)}
# Per domain four test pictures; the last has a difficult object only, the third none.
OBJECTS = {
    "day": ([("car", BOX)], [("car", BOX), ("bus", (22, 5, 36, 25))], [], [("car", BOX, 1)]),
    "night": ([("bus", BOX)], [("bus", BOX)], [("car", BOX)], [("bus", BOX)]),
}
NOTHING = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), ())


def sees(*found, score=0.9):
    """Detections of (label, box) pairs; VOC counts pixels from 1."""
    boxes = np.array([(x0 - 1, y0 - 1, x1, y1) for _, (x0, y0, x1, y1) in found], np.float32).reshape(-1, 4)
    return Detections(boxes, np.full(len(found), score, np.float32), tuple(label for label, _ in found))


@pytest.fixture
def series_file(tmp_path):
    domains = {}
    for name, pictures in OBJECTS.items():
        images = {f"{name}{number}": objects for number, objects in enumerate(pictures)}
        voc_tree(tmp_path / "data" / name, images, {"test": list(images), "train": list(images)[:1]})
        splits = {part: {"folder": f"data/{name}", "split": part} for part in ("train", "test")}
        domains[name] = {"format": "voc", "classes": ["car", "bus"], **splits}
    tasks = [{"domain": name, "classes": list(classes)} for name, classes in DOMAINS.items()]
    path = tmp_path / "series.yaml"
    path.write_text(yaml.safe_dump({"name": "two", "domains": domains, "tasks": tasks}))
    return path


@pytest.fixture
def make_run(series_file, tmp_path):
    """A run folder with detections; by default it finds every true object."""

    def make(label, seed=0, joint=False, **changed):
        folder = tmp_path / f"{label}-{seed}"
        folder.mkdir()
        config = {"series": str(series_file), "root": str(tmp_path)}
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        found = {name: [sees(*((o[0], o[1]) for o in objects)) for objects in OBJECTS[name]] for name in OBJECTS}
        for place, detections in changed.items():
            name, number = place.split("_")
            found[name][int(number)] = detections
        stage = "joint" if joint else "2"
        store_detections(found, ("car", "bus"), folder / "stages" / stage / "detections.safetensors")
        tasks = [{"task": n, "domain": d, "classes": list(c)} for n, (d, c) in enumerate(DOMAINS.items(), start=1)]
        stages = [{"task": 0}] if joint else [{"task": 1}, {"task": 2}]
        results = {"stages": stages, "series": {"classes": ["car", "bus"], "tasks": tasks}}
        kind = "joint" if joint else "method"
        return ComparedRun("two", "yolo11n", label, seed, "finished", folder, results, kind=kind)

    return make


def test_the_picture_with_the_largest_spread_is_chosen_in_each_domain(make_run):
    half = sees(("car", BOX))
    runs = [make_run("good"), make_run("bad", day_0=half, day_1=half, night_1=NOTHING), make_run("joint", joint=True)]
    scenes = differing_scenes(runs)
    assert [(scene.domain, scene.seed, set(scene.found)) for scene in scenes] == [
        ("day", 0, {"good", "bad", "joint"}),
        ("night", 0, {"good", "bad", "joint"}),
    ]
    assert [box.label for box in scenes[0].ground_truth] == ["car", "bus"]  # day1, where one is missed
    assert [box.label for box in scenes[0].found["bad"]] == ["car"]
    assert scenes[1].found["bad"] == [] and len(scenes[1].found["good"]) == 1
    assert scenes[0].image_rgb.shape == (30, 40, 3)


def test_false_objects_count_too_and_weak_ones_do_not(make_run):
    ghost = ("bus", (1, 1, 12, 12))
    strong, weak = sees(("bus", BOX), ghost), sees(("bus", BOX), ghost, score=0.2)
    scenes = differing_scenes([make_run("good"), make_run("ghosts", night_3=strong)])
    assert [scene.domain for scene in scenes] == ["night"]  # on the day pictures they agree
    assert len(scenes[0].found["ghosts"]) == 2
    weak_runs = [make_run("good", 1), make_run("weak", 1, night_3=weak)]
    assert differing_scenes(weak_runs)[0].found["weak"] == []


def test_several_pictures_per_domain_by_falling_spread(make_run):
    runs = [make_run("good"), make_run("bad", day_0=NOTHING, day_1=NOTHING)]
    scenes = [scene for scene in differing_scenes(runs, per_domain=5) if scene.domain == "day"]
    assert [len(scene.ground_truth) for scene in scenes] == [2, 1]


def test_seed_is_the_one_that_most_methods_have(make_run):
    runs = [make_run("good", 0), make_run("good", 1), make_run("bad", 1, day_0=NOTHING)]
    assert {scene.seed for scene in differing_scenes(runs)} == {1}


def test_joint_model_does_not_decide_and_one_method_has_nothing_to_differ_from(make_run):
    runs = [make_run("good"), make_run("joint", joint=True, day_0=NOTHING)]
    assert differing_scenes(runs) == []
    assert differing_scenes(runs[:1]) == [] and differing_scenes([]) == []


def test_runs_without_detections_are_left_out(make_run, tmp_path):
    runs = [make_run("good"), make_run("bad", day_0=NOTHING), make_run("old")]
    (runs[2].folder / "stages" / "2" / "detections.safetensors").unlink()
    pending = ComparedRun("two", "yolo11n", "later", 0, "pending", tmp_path / "none")
    assert set(differing_scenes([*runs, pending])[0].found) == {"good", "bad"}


def test_data_that_changed_or_is_gone_is_said(make_run, tmp_path, caplog):
    runs = [make_run("good"), make_run("bad", day_0=NOTHING)]
    lists = tmp_path / "data" / "night" / "ImageSets" / "Main" / "test.txt"
    lists.write_text("night0\nnight1\n")
    with caplog.at_level(logging.WARNING):
        assert differing_scenes(runs) == []
    assert "domain 'night': good kept detections of 4 test images, but two has 2 now" in caplog.text
    (tmp_path / "series.yaml").unlink()
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert differing_scenes(runs) == []
    assert "two · yolo11n: no example pictures" in caplog.text and "no such series file" in caplog.text
