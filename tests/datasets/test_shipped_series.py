"""The paper's series against its Tables S1 and S4 to S6, written out here by hand."""

from collections import Counter

import pytest

from duet.config import EvaluationSettings, TrainSettings, validate
from duet.datasets.series_file import find_series
from duet.series import Series, Task

PASCAL = (
    "bicycle", "bird", "car", "cat", "dog", "person", "aeroplane", "boat", "bottle", "bus",
    "chair", "cow", "diningtable", "horse", "motorbike", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
WEATHER = ("bike", "bus", "car", "motor", "person", "rider", "truck")
DOMAINS = {
    "VOC": "voc", "Clipart": "clipart", "Watercolor": "watercolor", "Comic": "comic",
    "DS": "daytime-sunny", "NS": "night-sunny", "DF": "daytime-foggy", "NR": "night-rainy",
}  # fmt: skip

# Per task: new; old; unseen.
SLICES = {
    "pascal-voc-clipart": [
        ("VOC[1:10]", "", ""),
        ("Clipart[11:20]", "VOC[1:10]", "VOC[11:20] Clipart[1:10]"),
    ],
    "pascal-clipart-voc": [
        ("Clipart[1:10]", "", ""),
        ("VOC[11:20]", "Clipart[1:10]", "Clipart[11:20] VOC[1:10]"),
    ],
    "pascal-four": [
        ("Watercolor[1:3]", "", ""),
        ("Comic[4:6]", "Watercolor[1:3]", "Watercolor[4:6] Comic[1:3]"),
        ("Clipart[7:13]", "Watercolor[1:3] Comic[4:6]", "Watercolor[4:6] Comic[1:3] Clipart[1:6]"),
        (
            "VOC[14:20]",
            "Watercolor[1:3] Comic[4:6] Clipart[7:13]",
            "Watercolor[4:6] Comic[1:3] Clipart[1:6] VOC[1:13]",
        ),
    ],
    "weather-ds-ns": [("DS[1:4]", "", ""), ("NS[5:7]", "DS[1:4]", "DS[5:7] NS[1:4]")],
    "weather-ns-ds": [("NS[1:4]", "", ""), ("DS[5:7]", "NS[1:4]", "NS[5:7] DS[1:4]")],
    "weather-three": [
        ("NS[1:2]", "", ""),
        ("DS[3:4]", "NS[1:2]", "NS[3:4] DS[1:2]"),
        ("DF[5:7]", "NS[1:2] DS[3:4]", "NS[3:4] DS[1:2] DF[1:4]"),
    ],
    "weather-ds-nr": [("DS[1:4]", "", ""), ("NR[5:7]", "DS[1:4]", "DS[5:7] NR[1:4]")],
}
ORDERS = {
    "weather-order-1": "NS[5:7] DS[1:2] DF[3:4]",
    "weather-order-2": "NS[3:4] DS[5:7] DF[1:2]",
    "weather-order-3": "NS[1:2] DS[3:4] DF[5:7]",
    "weather-order-4": "DF[1:2] NS[3:4] DS[5:7]",
    "weather-order-5": "DS[1:2] DF[3:4] NS[5:7]",
}
# Unseen (class, domain) terms of Avg GI: 2 for two tasks, 5 and 9 for the longer series.
TERMS = {"pascal-four": 9, "weather-three": 5}
COUNTS = {
    "voc": (16551, 4952), "clipart": (500, 500), "watercolor": (1000, 1000), "comic": (1000, 1000),
    "daytime-sunny": (19317, 8289), "night-sunny": (25868, 7756), "daytime-foggy": (1829, 688), "night-rainy": (0, 0),
}  # fmt: skip


def parsed(text, names):
    """``VOC[1:10]`` as domain and class names."""
    domain, numbers = text.rstrip("]").split("[")
    first, last = map(int, numbers.split(":"))
    return DOMAINS[domain], names[first - 1 : last]


def names_of(name):
    return PASCAL if name.startswith("pascal") else WEATHER


@pytest.mark.parametrize("name", SLICES)
def test_slices_are_those_of_table_s1(name):
    series = find_series(name).series
    expected = [
        [
            (role, *parsed(text, names_of(name)))
            for role, row in zip(("new", "old", "unseen"), task)
            for text in row.split()
        ]
        for task in SLICES[name]
    ]
    found = [
        [(item.role.value, item.slice.domain, item.slice.classes) for item in series.slices(number)]
        for number in range(1, len(series) + 1)
    ]
    assert [Counter(task) for task in found] == [Counter(task) for task in expected]
    assert len(series.unseen_slices()) == TERMS.get(name, 2)


@pytest.mark.parametrize("name", ORDERS)
def test_orders_are_those_of_table_s4(name):
    series = find_series(name).series
    assert [(task.domain, task.classes) for task in series.tasks] == [
        parsed(text, WEATHER) for text in ORDERS[name].split()
    ]
    assert len(series.unseen_slices()) == 5


@pytest.mark.parametrize("name", [*SLICES, *ORDERS])
def test_the_written_slices_are_those_of_the_rule(name):
    series = find_series(name).series
    ruled = Series("ruled", tuple(Task(task.domain, task.classes) for task in series.tasks))
    for number in range(1, len(series) + 1):
        assert series.slices(number) == ruled.slices(number)


@pytest.mark.parametrize("name", [*SLICES, *ORDERS])
def test_places_counts_and_settings(name, tmp_path):
    source = find_series(name, tmp_path)
    validate(TrainSettings, source.section.train, name)
    settings = validate(EvaluationSettings, source.section.evaluation, name)
    assert settings.drop_images_without_class and settings.reference == "individual"
    assert source.section.name == name
    for domain, section in source.section.domains.items():
        counted = tuple(sum(part.count or 0 for part in parts) for parts in (section.train, section.test))
        assert counted == COUNTS[domain]
        expected = WEATHER if names_of(name) is WEATHER else PASCAL[: 6 if domain in ("watercolor", "comic") else 20]
        assert section.classes == expected
        (first, *_) = source.domain(domain).test
        assert first.format == "voc"
        assert first.images == first.labels.parent / "JPEGImages"
        assert first.labels.is_relative_to(tmp_path)


def test_voc_is_2007_and_2012_together():
    section = find_series("pascal-voc-clipart").section.domains["voc"]
    assert [part.list for part in section.train] == [
        "VOCdevkit/VOC2007/ImageSets/Main/trainval.txt",
        "VOCdevkit/VOC2012/ImageSets/Main/trainval.txt",
    ]
    assert [part.list for part in section.test] == ["VOCdevkit/VOC2007/ImageSets/Main/test.txt"]


@pytest.mark.parametrize(
    ("name", "domains"), [("two", ["photographs", "comic"]), ("four", ["photographs", "night", "fog", "watercolour"])]
)
def test_photographs_have_the_papers_class_order_and_settings_are_chosen_on_their_training_images(
    name, domains, tmp_path
):
    series, chosen_on = (find_series(f"photographs-{name}{part}", tmp_path) for part in ("", "-validation"))
    assert [task.domain for task in series.series.tasks] == domains
    assert sum((task.classes for task in series.series.tasks), ()) == PASCAL
    assert series.series.tasks == chosen_on.series.tasks
    assert series.section.train == chosen_on.section.train
    for domain in domains:
        (trained,), (tested,) = series.domain(domain).train, series.domain(domain).test
        (fitted,), (validated,) = chosen_on.domain(domain).train, chosen_on.domain(domain).test
        names = [source.listed.stem for source in (trained, tested, fitted, validated)]
        assert names == ["train", "test", "train-train", "train-val"]


def test_eight_tasks_learn_the_classes_of_four_from_the_same_kind_of_scenes():
    four, eight = find_series("demo"), find_series("demo-eight")
    assert four.series.classes == eight.series.classes
    assert set(four.series.domains) < set(eight.series.domains)
    assert (len(four.series), len(eight.series)) == (4, 8)
    assert {**four.section.model_dump(), "name": "", "tasks": ()} == {
        **eight.section.model_dump(),
        "name": "",
        "tasks": (),
    }
