from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from duet.datasets import glyphs, pasting
from duet.datasets.domains import apply_shift
from duet.datasets.glyphs import CLASS_NAMES, GlyphSettings, render_glyphs
from duet.datasets.scene_folder import content_hash, write_scenes
from duet.datasets.scenes import SceneSettings

SMALL = GlyphSettings(train_scenes=4, test_scenes=2, shifts=("clear", "rain"))


def test_layout_and_names(tmp_path):
    folder = write_scenes(tmp_path, SMALL)
    assert folder.name.startswith("glyphs-")
    assert (folder / "glyphs" / "classes.txt").read_text().split() == list(CLASS_NAMES)
    assert sorted(path.name for path in (folder / "glyphs" / "train" / "images").iterdir()) == [
        "0000.png", "0001.png", "0002.png", "0003.png",
    ]  # fmt: skip
    rows = np.loadtxt(folder / "glyphs" / "test" / "labels" / "0001.txt", ndmin=2)
    scene = render_glyphs(SMALL, "test", 1)
    assert rows[:, 0].astype(int).tolist() == scene.classes.tolist()
    assert content_hash(write_scenes(tmp_path / "again", SMALL)) == content_hash(folder)


def test_no_class_is_a_digit_or_drawn_like_one():
    assert len(CLASS_NAMES) == 24
    assert not {"I", "O"} & set(CLASS_NAMES)
    assert not any(name.isdigit() for name in CLASS_NAMES)


def test_small_letters_that_look_like_digits_are_not_drawn(monkeypatch):
    drawn = set()
    upright = glyphs._upright

    def spy(character, font):
        drawn.add(character)
        return upright(character, font)

    monkeypatch.setattr(glyphs, "_upright", spy)
    rng = np.random.default_rng(0)
    for letter in CLASS_NAMES:
        for _ in range(20):
            glyphs._drawn(letter, rng, 30.0)
    assert not drawn & set("ilo0123456789")
    assert {"A", "a", "L"} <= drawn


def test_every_font_has_every_letter_apart_from_the_others():
    for font in glyphs._FONTS:
        shapes = {glyphs._upright(letter, font).tobytes() for letter in CLASS_NAMES}
        assert len(shapes) == len(CLASS_NAMES), font
        for letter in CLASS_NAMES:
            for character in (letter, letter.lower()):
                picture = glyphs._upright(character, font)
                assert picture.max() > 0.9
                assert picture[[0, -1]].max() == 0
                assert picture[:, [0, -1]].max() == 0


def test_a_scene_depends_on_seed_split_and_index_alone():
    first = render_glyphs(SMALL, "train", 3)
    render_glyphs(SMALL, "train", 0)
    again = render_glyphs(replace(SMALL, train_scenes=99), "train", 3)
    assert np.array_equal(first.image_bgr, again.image_bgr)
    others = [
        render_glyphs(SMALL, "test", 3),
        render_glyphs(SMALL, "train", 2),
        render_glyphs(replace(SMALL, seed=1), "train", 3),
    ]
    assert len({scene.boxes_xyxy.tobytes() for scene in (first, *others)}) == 4


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"image_size": 128}, {"train_scenes": 5}, {"test_scenes": 3}, {"shifts": ("rain",)}]
)
def test_every_setting_changes_the_folder(change):
    assert replace(SMALL, **change).folder_name != SMALL.folder_name


def test_the_generator_version_changes_the_folder(monkeypatch):
    before = SMALL.folder_name
    monkeypatch.setattr(glyphs, "GENERATOR_VERSION", glyphs.GENERATOR_VERSION + 1)
    assert SMALL.folder_name != before


def test_letters_are_distinct_inside_and_inked(monkeypatch):
    monkeypatch.setattr(pasting, "_texture", lambda rng, size: np.full((size, size, 3), 0.5, np.float32))
    settings = replace(SMALL, shifts=("clear",))
    counts, letters = Counter(), Counter()
    for index in range(80):
        scene = render_glyphs(settings, "train", index)
        counts[len(scene.classes)] += 1
        letters.update(scene.classes.tolist())
        assert len(set(scene.classes.tolist())) == len(scene.classes)
        assert scene.boxes_xyxy.min() >= 2
        assert scene.boxes_xyxy.max() <= 158
        for left, top, right, bottom in scene.boxes_xyxy:
            ink = np.abs(scene.image_bgr[top:bottom, left:right].astype(int) - 128)
            assert ink.max() > 60
    assert set(counts) == {2, 3, 4, 5, 6, 7}
    assert set(letters) == set(range(24))


def test_each_scene_is_drawn_in_one_of_the_shifts(monkeypatch):
    used = Counter()

    def spy(image, name, seed):
        used[name] += 1
        return apply_shift(image, name, seed=seed)

    monkeypatch.setattr(glyphs, "apply_shift", spy)
    for index in range(20):
        render_glyphs(SMALL, "train", index)
    assert set(used) == {"clear", "rain"}
    assert sum(used.values()) == 20


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": -1}, "seed of at least 0, not -1"),
        ({"image_size": 63}, "image_size of at least 64"),
        ({"train_scenes": 0}, "train_scenes of at least 1"),
        ({"shifts": ()}, "distinct shifts, at least one"),
        ({"shifts": ("fog", "fog")}, "distinct shifts"),
        ({"shifts": ("claer",)}, "shift 'claer' is unknown.*'clear'"),
    ],
)
def test_settings_out_of_range(change, message):
    with pytest.raises(ValueError, match=message):
        GlyphSettings(**change)


def test_letters_and_digits_share_no_folder():
    assert GlyphSettings().folder_name.split("-")[0] != SceneSettings().folder_name.split("-")[0]
