"""Series whose images are generated."""

from __future__ import annotations

import pytest
import yaml

from duet.datasets.domain import open_domains
from duet.datasets.glyphs import CLASS_NAMES
from duet.datasets.series_file import SeriesFile, find_series
from duet.errors import InputError

TASK = {"domain": "glyphs", "classes": ["A", "B"]}


@pytest.fixture
def series(tmp_path, monkeypatch):
    monkeypatch.setenv("DUET_CACHE", str(tmp_path / "cache"))

    def write(**section):
        path = tmp_path / "mine.yaml"
        path.write_text(yaml.safe_dump({"name": "mine", "tasks": [TASK], **section}))
        return SeriesFile(path)

    return write


def test_letters_are_generated_for_a_series(series):
    domains = open_domains(series(glyphs={"train_scenes": 3, "test_scenes": 2, "shifts": ["clear", "snow"]}))
    assert list(domains) == ["glyphs"]
    assert len(domains["glyphs"].train()) == 3
    test = domains["glyphs"].test()
    assert len(test) == 2
    assert all(set(image.labels) <= set(CLASS_NAMES) and image.labels for image in test)


def test_digits_are_generated_for_a_series(series):
    task = {"domain": "fog", "classes": ["3"]}
    domains = open_domains(series(scenes={"train_scenes": 10, "test_scenes": 5}, tasks=[task]))
    assert len(domains["fog"].train()) == 10


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"glyphs": {"shifts": ["snwo"]}}, "shift 'snwo' is unknown.*'snow'"),
        ({"glyphs": {}, "tasks": [{"domain": "night", "classes": ["A"]}]}, "domain 'night' is not among glyphs"),
        ({"glyphs": {}, "tasks": [{"domain": "glyphs", "classes": ["7"]}]}, "class '7' is not among A, B, C"),
        ({"scenes": {}, "tasks": [{"domain": "fog", "classes": ["A"]}]}, "class 'A' is not among 0, 1, 2"),
        ({"scenes": {"seed": -1}, "tasks": [{"domain": "fog", "classes": ["1"]}]}, "seed of at least 0, not -1"),
    ],
)
def test_what_cannot_be_generated_is_refused(series, section, message):
    with pytest.raises(InputError, match=rf"mine\.yaml: .*{message}"):
        open_domains(series(**section))


def test_sources_of_images_exclude_each_other(series, tmp_path):
    with pytest.raises(InputError, match="scenes and glyphs exclude each other"):
        series(scenes={}, glyphs={})
    series(glyphs={})
    with pytest.raises(InputError, match="--root has no meaning"):
        SeriesFile(tmp_path / "mine.yaml", tmp_path)


def test_a_domain_must_be_described_where_nothing_is_generated(series):
    with pytest.raises(InputError, match="domain 'glyphs' is used by a task and not described"):
        series()


def test_identity_tells_letters_apart(series):
    assert series(glyphs={"seed": 0}).identity() != series(glyphs={"seed": 1}).identity()


def test_the_pretraining_series_shares_no_shift_with_the_demo():
    pretraining, demo = find_series("glyphs"), find_series("demo")
    assert set(pretraining.section.glyphs.shifts) & set(demo.series.domains) == {"clear"}
    assert pretraining.series.classes == CLASS_NAMES
