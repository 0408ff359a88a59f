"""Whatever lies in a file, a reader gives a result or one clear error, never anything else."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from duet.config import RunConfig, parse_assignments, validate
from duet.datasets.coco import CocoFile
from duet.datasets.series_file import SeriesFile
from duet.datasets.source import Source
from duet.datasets.voc import parse_voc
from duet.datasets.yolo import parse_yolo, read_class_names, read_data_yaml
from duet.detectors.archives import foreign_name
from duet.detectors.ultralytics_layout import checked_layout
from duet.documents import read_json, read_yaml
from duet.errors import InputError
from duet.state import RunState

pytestmark = pytest.mark.slow

many = settings(
    max_examples=2000, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
SOURCE = Source("yolo", Path("images"), Path("labels"), ("cat", "dog"), rename={"hound": "dog", "none": None})
SIZE_HW = (40, 60)

numbers = st.one_of(st.integers(-5, 70), st.floats(), st.sampled_from([0, 1, 0.5, 10**30, "1e400", "nan", "-0"]))
plain = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)),
    max_leaves=12,
)
# Text that a reader takes for its own for longer than it takes random bytes.
yaml_like = st.lists(
    st.sampled_from(["a: ", "- ", "{", "}", "[", "]", "&x ", "*x", "!!python/object:os.system ", "? ", ": ", "\n", "  ",
                     "|", ">", "'", '"', "1", "2026-13-45", "0x", "~", "n", "\t", "<<: ", "%", "---", "...", "\x00"]),
    max_size=30,
).map("".join)  # fmt: skip
content = st.one_of(st.binary(max_size=80), yaml_like.map(str.encode))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


def one_clear_error(function, *arguments):
    """Call it; an InputError must be one line that says something."""
    try:
        return function(*arguments)
    except InputError as error:
        assert str(error).strip()
        assert "Traceback" not in str(error)
        return None


@many
@given(content)
def test_yaml(place, data):
    path = place / "x.yaml"
    path.write_bytes(data)
    found = one_clear_error(read_yaml, path)
    assert found is None or isinstance(found, dict)


@many
@given(st.one_of(content, plain.map(lambda value: json.dumps(value).encode())))
def test_json(place, data):
    path = place / "x.json"
    path.write_bytes(data)
    one_clear_error(read_json, path)


@many
@given(st.dictionaries(st.sampled_from(["series", "method", "train", "seed", "evaluation", "detector", "x"]), plain))
def test_run_configuration(values):
    one_clear_error(validate, RunConfig, values, "run.yaml")


@many
@given(st.lists(st.text(max_size=20), max_size=3))
def test_assignments(items):
    one_clear_error(parse_assignments, items)


SERIES = {
    "name": "s",
    "domains": {"day": {"classes": ["cat"], "train": {"images": "i", "labels": "l"}, "test": {"images": "i"}}},
    "tasks": [{"domain": "day", "classes": ["cat"]}],
    "train": {"epochs": 3},
    "evaluation": {},
}


def places_in(value, path=()):
    """Every place in nested values."""
    yield path
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield from places_in(inner, (*path, key))


def replaced(value, path, new):
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(value[path[0]], path[1:], new)
    return copy


@many
@given(st.sampled_from(sorted(places_in(SERIES), key=str)), plain)
def test_series_file(place, path, value):
    file = place / "series.yaml"
    try:
        file.write_text(yaml.safe_dump(replaced(SERIES, path, value), allow_unicode=True), encoding="utf-8")
    except (UnicodeEncodeError, yaml.YAMLError):
        return
    one_clear_error(SeriesFile, file)


label_lines = st.lists(
    st.one_of(st.lists(numbers.map(str), max_size=7).map(" ".join), st.text(max_size=20)), max_size=5
).map(lambda lines: "\n".join(lines).encode("utf-8", "replace"))


def rows_are_sound(rows):
    height, width = SIZE_HW
    for row in rows:
        x1, y1, x2, y2 = row.box
        assert 0 <= x1 < x2 <= width
        assert 0 <= y1 < y2 <= height
        assert row.label in ("cat", "dog")


@many
@given(st.one_of(label_lines, st.binary(max_size=60)))
def test_yolo_labels(data):
    faults = []
    rows_are_sound(parse_yolo(data, "x.txt", SIZE_HW, SOURCE, faults.append))
    assert all(str(fault.what).strip() for fault in faults)


xml_number = numbers.map(str)
xml_object = st.builds(
    "<object><name>{}</name><difficult>{}</difficult><bndbox>{}</bndbox></object>".format,
    st.sampled_from(["cat", "dog", "hound", "none", "bird", "", "<x/>"]),
    st.sampled_from(["0", "1", "", "x"]),
    st.lists(
        st.builds("<{0}>{1}</{0}>".format, st.sampled_from(["xmin", "ymin", "xmax", "ymax", "x"]), xml_number),
        max_size=5,
    ).map("".join),
)
xml = st.builds(
    "{}<annotation>{}{}</annotation>".format,
    st.sampled_from(["", "<?xml version='1.0'?>", "<!DOCTYPE a [<!ENTITY x 'y'><!ENTITY z '&x;&x;'>]>", "\x00"]),
    st.sampled_from(["", "<size><width>60</width><height>40</height></size>", "<size><width>a</width></size>", "&z;"]),
    st.lists(xml_object, max_size=3).map("".join),
).map(str.encode)


@many
@given(st.one_of(xml, st.binary(max_size=60)))
def test_voc_annotations(data):
    faults = []
    rows_are_sound(parse_voc(data, "x.xml", SIZE_HW, SOURCE, faults.append))
    assert all(str(fault.what).strip() for fault in faults)


coco_image = st.fixed_dictionaries(
    {}, optional={"id": plain, "file_name": st.one_of(st.just("a.png"), plain), "height": plain, "width": plain}
)
coco_annotation = st.fixed_dictionaries(
    {},
    optional={
        "id": plain,
        "image_id": st.one_of(st.just(1), plain),
        "category_id": st.one_of(st.just(1), plain),
        "bbox": st.one_of(st.lists(numbers, min_size=4, max_size=4), plain),
        "iscrowd": plain,
        "difficult": plain,
    },
)
good_image = {"id": 1, "file_name": "a.png", "height": 40, "width": 60}
coco = st.fixed_dictionaries(
    {
        "images": st.one_of(st.lists(coco_image, max_size=2).map(lambda items: [good_image, *items]), plain),
        "annotations": st.one_of(st.lists(coco_annotation, max_size=3), plain),
        "categories": st.one_of(
            st.just([{"id": 1, "name": "cat"}]), st.lists(st.fixed_dictionaries({"id": plain, "name": plain})), plain
        ),
    }
).map(lambda value: json.dumps(value).encode())


@many
@given(st.one_of(coco, content))
def test_coco_annotations(data):
    faults = []
    file = one_clear_error(CocoFile, data, Path("x.json"), faults.append)
    for name in file.images if file else ():
        rows_are_sound(file.rows(name, SIZE_HW, SOURCE, faults.append))
    assert all(str(fault.what).strip() for fault in faults)


@many
@given(st.one_of(content, plain.map(lambda value: yaml.safe_dump({"names": value, "train": "images"}).encode())))
def test_data_yaml(place, data):
    path = place / "data.yaml"
    path.write_bytes(data)
    one_clear_error(read_data_yaml, path)


@many
@given(content)
def test_class_names(place, data):
    path = place / "classes.txt"
    path.write_bytes(data)
    one_clear_error(read_class_names, path)


state = st.fixed_dictionaries(
    {
        "fingerprint": st.one_of(st.just("f"), plain),
        "files": st.one_of(st.dictionaries(st.sampled_from(["a", "../b", "/c", "a/../../d"]), plain), plain),
        "stages": st.one_of(
            st.lists(
                st.dictionaries(st.sampled_from(["model", "metrics"]), st.one_of(st.just("a"), plain)), max_size=2
            ),
            plain,
        ),
    }
)


@many
@given(st.one_of(content, state.map(lambda value: json.dumps(value).encode())))
def test_state_of_a_run(place, data):
    folder = place / "run"
    folder.mkdir(exist_ok=True)
    (folder / "state.json").write_bytes(data)
    found = one_clear_error(RunState, folder, "f")
    if found is not None:
        one_clear_error(found.verify)
        for number in range(1, found.finished_stages + 1):
            one_clear_error(found.stage_file, number, "model")
    assert sorted(path.name for path in place.iterdir() if path.name in ("b", "d")) == []


layer = st.tuples(
    plain, plain, st.one_of(st.sampled_from(["Conv", "nn.SiLU", "open", "yaml_model_load"]), plain), plain
)
layout = st.fixed_dictionaries(
    {"backbone": st.one_of(st.lists(layer.map(list), max_size=2), plain), "head": st.one_of(st.lists(plain), plain)},
    optional={"activation": st.one_of(st.sampled_from(["nn.SiLU()", "nn.", "print()", "nn.SiLU(print())"]), plain)},
)


@many
@given(st.one_of(layout, plain))
def test_architecture(value):
    one_clear_error(checked_layout, value)


@many
@given(
    st.one_of(content, plain.map(pickle.dumps), st.binary(max_size=60).map(lambda tail: b"\x80\x04\x8c\x02os" + tail))
)
def test_names_in_a_pickle(place, data):
    path = place / "x.pt"
    path.write_bytes(data)
    assert foreign_name(path) is None or isinstance(foreign_name(path), str)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 10_000, "nested too deeply|not YAML"),
        ("a: " + "[" * 60 + "]" * 60, "nested too deeply"),
        ("a: &a [x]\n" + "".join(f"{n}: &n{n} [{', '.join(['*a' if n == 0 else f'*n{n - 1}'] * 10)}]\n"
                                 for n in range(9)), "too large, its aliases"),
    ],
)  # fmt: skip
def test_bombs_are_refused(place, text, message):
    path = place / "bomb.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_yaml(path)
    deep = place / "deep.json"
    deep.write_text("[" * 200_000)
    with pytest.raises(InputError, match=r"nested too deeply|not JSON"):
        read_json(deep)


def test_a_file_that_is_too_large_is_not_read(place, monkeypatch):
    path = place / "large.yaml"
    path.write_text("a: 1\n" * 10)
    monkeypatch.setattr("duet.documents.MOST_YAML_BYTES", 20)
    with pytest.raises(InputError, match="too large, 50 bytes"):
        read_yaml(path)
