from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from duet.datasets import pasting, scene_folder, scenes
from duet.datasets.domains import apply_shift
from duet.datasets.scene_folder import content_hash, write_scenes
from duet.datasets.scenes import SceneSettings, load_digits, render_scene

SMALL = SceneSettings(train_scenes=10, test_scenes=5, domains=("clear", "fog"))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("cache"), SMALL)


@pytest.fixture(scope="module")
def train_digits() -> scenes.Digits:
    return load_digits(SMALL.train_digits)


@pytest.fixture(scope="module")
def test_digits() -> scenes.Digits:
    return load_digits(SMALL.test_digits)


def _files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_layout(written):
    expected = {"scenes.json"}
    for domain in ("clear", "fog"):
        expected.add(f"{domain}/classes.txt")
        for split, count in (("train", 10), ("test", 5)):
            for index in range(count):
                expected |= {f"{domain}/{split}/images/{index:04d}.png", f"{domain}/{split}/labels/{index:04d}.txt"}
    assert set(_files(written)) == expected
    assert (written / "fog" / "classes.txt").read_text() == "0\n1\n2\n3\n4\n5\n6\n7\n8\n9\n"
    assert cv2.imread(str(written / "fog" / "test" / "images" / "0004.png")).shape == (160, 160, 3)
    assert list(written.parent.iterdir()) == [written]  # no temporary folder is left


def test_index_file(written):
    index = json.loads((written / "scenes.json").read_text())
    assert index["settings"]["train_scenes"] == 10
    assert index["settings"]["domains"] == ["clear", "fog"]
    assert index["sha256"] == content_hash(written)


def test_content_hash_sees_contents_and_names(tmp_path):
    (tmp_path / "a").write_text("1")
    first = content_hash(tmp_path)
    (tmp_path / "scenes.json").write_text("not counted")
    assert content_hash(tmp_path) == first
    (tmp_path / "a").rename(tmp_path / "b")
    renamed = content_hash(tmp_path)
    (tmp_path / "b").write_text("2")
    assert len({first, renamed, content_hash(tmp_path)}) == 3


def test_writing_again_elsewhere_gives_the_same_bytes(written, tmp_path):
    again = write_scenes(tmp_path, SMALL)
    assert again.name == written.name
    assert _files(again) == _files(written)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1}, {"image_size": 128}, {"train_scenes": 11}, {"test_scenes": 6}, {"train_digits": (0, 1100)},
        {"test_digits": (1300, 1797)}, {"domains": ("fog", "clear")},
    ],
)  # fmt: skip
def test_every_setting_changes_the_folder(change):
    assert replace(SMALL, **change).folder_name != SMALL.folder_name


def test_the_generator_version_changes_the_folder(monkeypatch):
    before = SMALL.folder_name
    monkeypatch.setattr(scenes, "GENERATOR_VERSION", scenes.GENERATOR_VERSION + 1)
    assert SMALL.folder_name != before


@pytest.fixture
def sevens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every scene shows one 7, so that scenes differ by their own random choices only."""
    monkeypatch.setattr(scenes, "_classes", lambda seed, domain, split, index: np.array([7]))


def test_another_seed_gives_other_scenes(train_digits, sevens):
    first = render_scene(SMALL, train_digits, "clear", "train", 0)
    other = render_scene(replace(SMALL, seed=1), train_digits, "clear", "train", 0)
    assert not np.array_equal(first.boxes_xyxy, other.boxes_xyxy)
    assert not np.array_equal(first.image_bgr[:20], other.image_bgr[:20])


def test_another_seed_deals_other_classes(train_digits):
    first, other = (
        [render_scene(replace(SMALL, seed=seed), train_digits, "clear", "train", i).classes.tolist() for i in range(4)]
        for seed in (0, 1)
    )
    assert first != other


def test_the_domain_is_applied_to_the_picture(train_digits, monkeypatch):
    foggy = render_scene(SMALL, train_digits, "fog", "train", 3)
    monkeypatch.setattr(scenes, "apply_shift", lambda image, name, seed: image)
    plain = render_scene(SMALL, train_digits, "fog", "train", 3)
    assert np.array_equal(foggy.boxes_xyxy, plain.boxes_xyxy)
    assert np.array_equal(foggy.image_bgr, apply_shift(plain.image_bgr, "fog", seed=SMALL.seed))


def test_a_scene_does_not_depend_on_the_others(train_digits):
    late = render_scene(SMALL, train_digits, "fog", "train", 7)
    for index in (3, 0):
        render_scene(SMALL, train_digits, "fog", "train", index)
    more = replace(SMALL, train_scenes=500, domains=("comic", "fog"))
    again = render_scene(more, train_digits, "fog", "train", 7)
    assert np.array_equal(late.image_bgr, again.image_bgr)
    assert np.array_equal(late.boxes_xyxy, again.boxes_xyxy)


def test_domains_and_splits_show_different_scenes(train_digits, sevens):
    keys = [("clear", "train", 0), ("fog", "train", 0), ("clear", "test", 0), ("clear", "train", 1)]
    shown = [render_scene(SMALL, train_digits, domain, split, index) for domain, split, index in keys]
    assert len({scene.boxes_xyxy.tobytes() for scene in shown}) == 4


def test_labels_are_the_scene_boxes_normalised(written, test_digits):
    for index in range(5):
        scene = render_scene(SMALL, test_digits, "fog", "test", index)
        rows = np.loadtxt(written / "fog" / "test" / "labels" / f"{index:04d}.txt", ndmin=2)
        assert rows[:, 0].astype(int).tolist() == scene.classes.tolist()
        centre, extent = rows[:, 1:3] * 160, rows[:, 3:5] * 160
        assert np.allclose(np.hstack([centre - extent / 2, centre + extent / 2]), scene.boxes_xyxy, atol=1e-3)
        picture = cv2.imread(str(written / "fog" / "test" / "images" / f"{index:04d}.png"))
        assert np.array_equal(picture, scene.image_bgr)


def test_boxes_are_tight_around_the_ink(train_digits, monkeypatch):
    monkeypatch.setattr(pasting, "_texture", lambda rng, size: np.full((size, size, 3), 0.5, np.float32))
    monkeypatch.setattr(scenes, "_classes", lambda seed, domain, split, index: np.array([index % 10]))
    for index in range(60):
        scene = render_scene(SMALL, train_digits, "clear", "train", index)
        ink = np.abs(scene.image_bgr.astype(int) - 128).max(axis=2)
        left, top, right, bottom = scene.boxes_xyxy[0]
        box = ink[top:bottom, left:right]
        # Ink is where a pixel is at least half covered; two grey levels are left for rounding.
        assert min(side.max() for side in (box[0], box[-1], box[:, 0], box[:, -1])) >= ink.max() / 2 - 2
        beyond = ink.copy()
        beyond[top:bottom, left:right] = 0
        assert beyond.max() <= ink.max() / 2 + 2
        ink[top - 2 : bottom + 2, left - 2 : right + 2] = 0
        assert ink.max() == 0


def test_all_ink_lies_within_the_boxes(train_digits, monkeypatch):
    monkeypatch.setattr(pasting, "_texture", lambda rng, size: np.full((size, size, 3), 0.5, np.float32))
    for index in range(40):
        scene = render_scene(SMALL, train_digits, "clear", "train", index)
        ink = np.abs(scene.image_bgr.astype(int) - 128).max(axis=2)
        for left, top, right, bottom in scene.boxes_xyxy:
            assert ink[top:bottom, left:right].max() > 60
        for left, top, right, bottom in scene.boxes_xyxy:
            ink[top - 2 : bottom + 2, left - 2 : right + 2] = 0
        assert ink.max() == 0


@pytest.mark.parametrize("size", [64, 160, 320])
def test_boxes_lie_inside_and_hardly_overlap(train_digits, size):
    counts = Counter()
    for index in range(60):
        scene = render_scene(replace(SMALL, image_size=size), train_digits, "clear", "train", index)
        boxes = scene.boxes_xyxy
        counts[len(boxes)] += 1
        assert boxes.min() >= 2
        assert boxes.max() <= size - 2
        extents = boxes[:, 2:] - boxes[:, :2]
        assert extents.min() >= 3 * size / 160
        assert extents[:, 1].max() <= 0.45 * size  # 35 % of the picture, and what the slant adds
        for i, a in enumerate(boxes):
            for b in boxes[:i]:
                shared = np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0).prod()
                union = (a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - shared
                assert shared / union < 0.1
    assert counts == {1: 12, 2: 12, 3: 12, 4: 12, 5: 12}


def test_classes_are_balanced_exactly_over_ten_scenes(train_digits):
    for domain, split in (("clear", "train"), ("night", "test")):
        drawn = Counter()
        for index in range(20):
            drawn.update(render_scene(SMALL, train_digits, domain, split, index).classes.tolist())
        assert drawn == dict.fromkeys(range(10), 6)


def test_classes_are_the_labels_of_the_digits_shown(train_digits):
    from sklearn.datasets import load_digits as reference

    source = reference()
    for index in range(30):
        scene = render_scene(SMALL, train_digits, "clear", "train", index)
        assert source.target[scene.digits].tolist() == scene.classes.tolist()


def test_each_split_shows_digits_of_its_range_only(train_digits, test_digits):
    for split, digits, (start, stop) in (("train", train_digits, (0, 1200)), ("test", test_digits, (1200, 1797))):
        # Digits outside the range are replaced by solid blocks: no picture may notice.
        poisoned = digits.images.copy()
        poisoned[:start] = 1
        poisoned[stop:] = 1
        for index in range(30):
            scene = render_scene(SMALL, digits, "clear", split, index)
            assert start <= scene.digits.min()
            assert scene.digits.max() < stop
            other = render_scene(SMALL, replace(digits, images=poisoned), "clear", split, index)
            assert np.array_equal(scene.image_bgr, other.image_bgr)


def test_written_splits_take_their_own_digits(tmp_path, monkeypatch):
    used = {}
    render = scenes.render_scene

    def spy(settings, digits, domain, split, index):
        used.setdefault(split, set()).update(np.concatenate(digits.by_class).tolist())
        return render(settings, digits, domain, split, index)

    monkeypatch.setattr(scenes, "render_scene", spy)
    settings = replace(SMALL, domains=("clear",), train_digits=(100, 900), test_digits=(900, 1500))
    write_scenes(tmp_path, settings)
    assert used == {"train": set(range(100, 900)), "test": set(range(900, 1500))}


def test_ink_stands_out_from_the_texture(train_digits):
    for index in range(40):
        scene = render_scene(SMALL, train_digits, "clear", "train", index)
        luma = cv2.cvtColor(scene.image_bgr, cv2.COLOR_BGR2GRAY).astype(float)
        paper = scene.ink.max(axis=0) == 0
        for ink, (left, top, right, bottom) in zip(scene.ink, scene.boxes_xyxy):
            around = luma[top:bottom, left:right][paper[top:bottom, left:right]]
            assert abs(luma[ink == 1].mean() - around.mean()) > 55


def test_textures_are_coloured_and_not_flat(train_digits):
    spreads = []
    for index in range(20):
        scene = render_scene(SMALL, train_digits, "clear", "train", index)
        paper = scene.image_bgr[scene.ink.max(axis=0) == 0].astype(float)
        spreads.append(paper.std(axis=0).max())
        assert np.ptp(paper, axis=1).mean() > 8
    assert min(spreads) > 6


def test_a_complete_folder_is_returned_without_reading_it(written, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a complete folder was written or read again")

    for module, name in ((scenes, "render_scene"), (scenes, "load_digits"), (scene_folder, "content_hash")):
        monkeypatch.setattr(module, name, refuse)
    assert write_scenes(written.parent, SMALL) == written


def test_an_interrupted_run_leaves_nothing_and_can_be_repeated(tmp_path, written):
    def interrupt(done: int, total: int) -> None:
        if done == 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_scenes(tmp_path, SMALL, progress=interrupt)
    assert list(tmp_path.iterdir()) == []
    assert _files(write_scenes(tmp_path, SMALL)) == _files(written)


def test_a_half_written_folder_is_not_taken_for_complete(tmp_path, written):
    half = tmp_path / SMALL.folder_name / "clear" / "train" / "images"
    half.mkdir(parents=True)
    (half / "0000.png").write_bytes(b"cut off")
    (half / "stray.png").write_bytes(b"")
    killed = tmp_path / f".{SMALL.folder_name}-killed"
    killed.mkdir()
    (killed / "scenes.json").write_text("{}")
    assert _files(write_scenes(tmp_path, SMALL)) == _files(written)


def test_another_process_that_finishes_first_wins(tmp_path, written):
    folder = tmp_path / SMALL.folder_name

    def race(done: int, total: int) -> None:
        if done == total:
            (folder / "clear").mkdir(parents=True)
            (folder / "scenes.json").write_text("theirs")

    assert write_scenes(tmp_path, SMALL, progress=race) == folder
    assert (folder / "scenes.json").read_text() == "theirs"
    assert list(tmp_path.iterdir()) == [folder]


def test_progress_counts_every_scene(tmp_path):
    calls = []
    write_scenes(tmp_path, SMALL, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(number, 30) for number in range(1, 31)]


def test_missing_scikit_learn(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ImportError, match=r'pip install "duet-detection\[demo\]"'):
        write_scenes(tmp_path, SMALL)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": -1}, "seed of at least 0, not -1"),
        ({"image_size": 63}, "image_size of at least 64, not 63"),
        ({"train_scenes": 0}, "train_scenes of at least 1"),
        ({"test_scenes": 0}, "test_scenes of at least 1"),
        ({"train_digits": (10, 10)}, "train_digits within 0 to 1797, not 10 to 10"),
        ({"test_digits": (1200, 1798)}, "test_digits within 0 to 1797, not 1200 to 1798"),
        ({"train_digits": (0, 1201)}, "overlap"),
        ({"train_digits": (1796, 1797)}, "overlap"),
        ({"domains": ()}, "distinct domains, at least one"),
        ({"domains": ("fog", "fog")}, "distinct domains"),
        ({"domains": ("clear", "nihgt")}, "'nihgt' is unknown.*'night'"),
    ],
)
def test_settings_out_of_range(change, message):
    with pytest.raises(ValueError, match=message):
        SceneSettings(**change)


def test_ranges_that_touch_do_not_overlap():
    assert SceneSettings(train_digits=(600, 1797), test_digits=(0, 600)).train_digits == (600, 1797)


def test_a_range_without_some_class_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"digits 0 to 9 there is no '9'"):
        write_scenes(tmp_path, SceneSettings(train_digits=(0, 9)))
    assert list(tmp_path.iterdir()) == []
