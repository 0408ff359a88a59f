import os

import pytest
import yaml
from data_trees import voc_tree

from duet.config import EvaluationSettings
from duet.datasets import domain, shifted
from duet.datasets.check import check_series
from duet.datasets.domain import content_digest, open_domains
from duet.datasets.series_file import find_series
from duet.errors import InputError
from duet.resolve import resolve_config
from duet.series import Role

DOG, CAT, HARD = ("dog", (11, 6, 30, 12)), ("cat", (1, 1, 40, 30)), ("cat", (5, 5, 9, 9), 1)


def split(folder, name=None):
    return {"folder": folder, "split": name} if name else {"folder": folder}


@pytest.fixture
def values(tmp_path):
    voc_tree(tmp_path / "a", {"1": [CAT, HARD], "2": [CAT]}, {"train": ["1"], "test": ["2"]})
    voc_tree(tmp_path / "b", {"3": [DOG], "4": [DOG, CAT]})
    voc_tree(tmp_path / "b2", {"5": [("hound", (2, 2, 9, 9))]})
    voc_tree(tmp_path / "x", {"6": [DOG], "7": [CAT, DOG]})
    return {
        "name": "three",
        "domains": {
            "photo": {
                "format": "voc",
                "classes": ["cat", "dog"],
                "train": split("a", "train"),
                "test": split("a", "test"),
            },
            "drawn": {
                "format": "voc",
                "classes": ["cat", "dog"],
                "rename": {"hound": "dog"},
                "train": [split("b"), split("b2")],
                "test": split("b"),
            },
            "extra": {"format": "voc", "classes": ["dog", "cat"], "test": split("x")},
        },
        "evaluation": {"drop_images_without_class": True},
        "tasks": [{"domain": "photo", "classes": ["cat"]}, {"domain": "drawn", "classes": ["dog"]}],
    }


@pytest.fixture
def opened(tmp_path, values):
    def open_(**changes):
        path = tmp_path / "series.yaml"
        path.write_text(yaml.safe_dump({**values, **changes}, allow_unicode=True))
        return find_series(str(path))

    return open_


def test_a_split_may_have_parts_and_names_are_changed(opened):
    domains = open_domains(opened())
    assert [(image.path.name, image.labels) for image in domains["drawn"].train()] == [
        ("3.jpg", ("dog",)),
        ("4.jpg", ("dog", "cat")),
        ("5.jpg", ("dog",)),
    ]


def test_a_shipped_series_of_pictures_asks_where_they_are(tmp_path):
    with pytest.raises(InputError, match="series 'photographs-two' reads pictures of yours: --root names their folder"):
        open_domains(find_series("photographs-two"))
    with pytest.raises(InputError, match="--root names their folder"):
        check_series(find_series("photographs-two"))
    assert set(open_domains(find_series("photographs-two", tmp_path))) == {"photographs", "comic"}


def test_difficult_boxes_are_trained_with_by_choice_and_always_read_for_testing(opened, values):
    assert [image.labels for image in open_domains(opened())["photo"].train()] == [("cat",)]
    values["domains"]["photo"]["difficult"] = "train"
    values["domains"]["photo"]["test"] = split("a")
    domain = open_domains(opened())["photo"]
    assert [image.labels for image in domain.train()] == [("cat", "cat")]
    assert domain.test()[0].difficult.tolist() == [False, True]


def test_a_flag_is_part_of_the_content(opened, values):
    values["domains"]["photo"]["test"] = split("a", "train")
    (marked,) = open_domains(opened())["photo"].test()
    plain = marked.chosen(marked.difficult | True)
    object.__setattr__(plain, "difficult", marked.difficult & False)
    assert content_digest([marked]) != content_digest([plain])


def test_a_domain_without_training_images_is_only_evaluated(opened):
    source = opened()
    series = source.series
    assert (series.domains, series.test_domains) == (("photo", "drawn"), ("photo", "drawn", "extra"))
    extra = [[item.slice.classes for item in series.slices(n) if item.role is Role.EXTRA] for n in (1, 2)]
    assert extra == [[("cat",)], [("cat", "dog")]]
    domain = open_domains(source)["extra"]
    assert len(domain.test()) == 2
    with pytest.raises(InputError, match=r"domains\.extra: key 'train' is missing, the domain is only evaluated"):
        domain.train()


def test_two_runs_may_draw_the_same_domain_at_a_time(opened, values, tmp_path, monkeypatch):
    monkeypatch.setenv("DUET_CACHE", str(tmp_path / "cache"))
    values["domains"]["drawn"]["shift"] = "comic"
    source, draw = opened(), shifted.draw_shifted

    def draw_beside_another(images, shift, folder, progress=None):
        monkeypatch.setattr(domain, "draw_shifted", draw)
        with monkeypatch.context() as other:
            other.setattr(os, "getpid", lambda: -1)
            open_domains(source)["drawn"].train()  # the other one, which ends first
        draw(images, shift, folder, progress)

    monkeypatch.setattr(domain, "draw_shifted", draw_beside_another)
    images = open_domains(source)["drawn"].train()
    assert all(image.path.is_file() for image in images)
    assert [path.name[:5] for path in (tmp_path / "cache" / "domains").iterdir()] == ["drawn"]  # no leftovers


def test_a_task_needs_training_images(opened, values):
    del values["domains"]["drawn"]["train"]
    with pytest.raises(InputError, match=r"domains\.drawn: key 'train' is missing"):
        open_domains(opened())


def test_evaluation_settings_of_the_series_are_below_the_users(opened, tmp_path):
    opened()
    options = {"series": str(tmp_path / "series.yaml")}
    assert resolve_config(None, options).evaluation.drop_images_without_class
    assert not EvaluationSettings().drop_images_without_class
    overruled = resolve_config(None, options, {"evaluation": {"drop_images_without_class": False}})
    assert not overruled.evaluation.drop_images_without_class
    opened(evaluation={"drop_images": True})
    with pytest.raises(InputError, match="series 'three', evaluation: unknown key 'drop_images'"):
        resolve_config(None, options)


@pytest.mark.parametrize(
    ("domain", "change", "message"),
    [
        ("photo", {"formt": "voc"}, r"unknown key 'domains\.photo\.formt'; did you mean 'format'"),
        ("photo", {"format": "pascal"}, r"key 'domains\.photo\.format' is 'pascal'"),
        ("photo", {"classes": 3}, "expected a file with one class name per line, or a list"),
        ("photo", {"classes": [1, 2]}, "in quotes if they are numbers"),
        ("photo", {"classes": ["cat", "cat"]}, "class 'cat' is named twice"),
        ("photo", {"classes": ["dog"]}, "class 'cat' of the task is not named there"),
        ("photo", {"classes": None}, "key 'classes' is missing"),
        ("photo", {"test": None}, "key 'test' is missing"),
        ("photo", {"train": []}, "at least 1 item"),
        ("photo", {"train": {"images": "a"}}, r"key 'domains\.photo\.train\.0\.labels' is missing"),
        ("photo", {"train": {"images": "a", "labels": "a", "lists": "x"}}, "did you mean 'list'"),
        ("photo", {"data": "data.yaml"}, "data stands in place of format, classes, train and test"),
        ("photo", {"difficult": "keep"}, "input should be 'train' or 'drop'"),
    ],
)
def test_what_is_wrong_in_a_description(opened, values, domain, change, message):
    values["domains"][domain].update(change)
    with pytest.raises(InputError, match=message):
        open_domains(opened())


def test_an_ultralytics_data_file(opened, values, tmp_path):
    from data_trees import picture

    for part in ("train", "val"):
        picture(tmp_path / "yolo" / part / "images" / "1.jpg")
        (tmp_path / "yolo" / part / "labels").mkdir()
        (tmp_path / "yolo" / part / "labels" / "1.txt").write_text("1 0.5 0.5 0.5 0.5\n")
    data = {"path": ".", "train": "train/images", "val": "val/images", "names": {0: "cat", 1: "dog"}}
    (tmp_path / "yolo" / "data.yaml").write_text(yaml.safe_dump(data))
    values["domains"]["drawn"] = {"data": "yolo/data.yaml"}
    domain = open_domains(opened())["drawn"]
    assert [image.labels for image in (*domain.train(), *domain.test())] == [("dog",), ("dog",)]
    (tmp_path / "yolo" / "data.yaml").write_text("names: [cat, dog]\ntrain: pictures\n")
    with pytest.raises(InputError, match=r"data\.yaml: key 'train' is 'pictures': expected a folder 'images'"):
        opened()
        open_domains(opened())
    (tmp_path / "yolo" / "data.yaml").write_text("names: {1: cat}\ntrain: images\n")
    with pytest.raises(InputError, match="expected the indices 0 to 0"):
        open_domains(opened())


def test_drawn_images_keep_boxes_and_flags(opened, values):
    values["domains"]["photo"]["test"] = split("a", "train")
    values["domains"]["photo"]["shift"] = "night"
    (image,) = open_domains(opened())["photo"].test()
    assert image.path.suffix == ".jpg" and "night" in image.path.parent.name
    assert image.difficult.tolist() == [False, True]
    assert image.labels == ("cat", "cat")
