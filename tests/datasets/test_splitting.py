import math

import pytest
from data_trees import coco_tree, picture, voc_tree

from duet.datasets.dataset_folder import open_folder
from duet.datasets.splitting import split_names, write_split
from duet.errors import InputError

NAMES = [f"{number:03d}" for number in range(100)]


def test_every_name_is_in_one_split_and_the_seed_decides_which():
    first = split_names(NAMES, {"train": 0.7, "val": 0.1, "test": 0.2}, seed=3)
    assert {name: len(part) for name, part in first.items()} == {"train": 70, "val": 10, "test": 20}
    assert sorted(name for part in first.values() for name in part) == NAMES
    assert first == split_names(NAMES[::-1], {"train": 0.7, "val": 0.1, "test": 0.2}, seed=3)
    assert first != split_names(NAMES, {"train": 0.7, "val": 0.1, "test": 0.2}, seed=4)


@pytest.mark.parametrize(
    "shares", [{"train": 0.7, "test": 0.2}, {"train": 1.2, "test": -0.2}, {"train": 0.0}, {"train": math.nan}]
)
def test_shares_add_up_to_one(shares):
    with pytest.raises(InputError, match="add up to 1"):
        split_names(NAMES, shares, 0)


def test_no_split_is_empty():
    with pytest.raises(InputError, match="split 'test' of 3 images would hold none"):
        split_names(NAMES[:3], {"train": 0.9, "test": 0.1}, 0)


def make(format, folder):
    stems = [f"{number}" for number in range(10)]
    if format == "voc":
        voc_tree(folder, {stem: [("cat", (1, 1, 9, 9))] for stem in stems})
    elif format == "coco":
        folder.mkdir()
        coco_tree(folder, {f"{stem}.jpg": [] for stem in stems}, {1: "cat"})
        return folder / "instances.json"
    else:
        for stem in stems:
            picture(folder / "images" / f"{stem}.jpg")
        (folder / "labels").mkdir()
        (folder / "classes.txt").write_text("cat\n")
    return folder


@pytest.mark.parametrize("format", ["voc", "coco", "yolo"])
def test_the_lists_are_found_again(format, tmp_path):
    place = make(format, tmp_path / "set")
    assert write_split(open_folder(place), {"train": 0.7, "test": 0.3}, 0, False) == {"train": 7, "test": 3}
    read = {name: len(part) for name, part in open_folder(place).read().items()}
    assert read == {"train": 7, "test": 3}
    with pytest.raises(InputError, match="--overwrite replaces it"):
        write_split(open_folder(place), {"train": 0.5, "test": 0.5}, 0, False)
    assert write_split(open_folder(place), {"train": 0.5, "test": 0.5}, 0, True) == {"train": 5, "test": 5}


@pytest.mark.parametrize("format", ["voc", "coco", "yolo"])
def test_one_split_is_divided_and_stays_itself(format, tmp_path):
    place = make(format, tmp_path / "set")
    write_split(open_folder(place), {"train": 0.8, "test": 0.2}, 0, False)
    before = {path.name for path in open_folder(place).splits["train"].listed.parent.glob("*.txt")}
    counts = write_split(open_folder(place), {"train": 0.75, "val": 0.25, "test": 0}, 0, False, of="train")
    assert counts == {"train-train": 6, "train-val": 2}
    folder = open_folder(place).splits["train"].listed.parent
    lists = {path.stem: set(path.read_text().split()) for path in folder.glob("*.txt")}
    assert {f"{name}.txt" for name in lists} - before == {"train-train.txt", "train-val.txt"}
    assert lists["train-train"] | lists["train-val"] == lists["train"]
    assert not lists["train-train"] & lists["train-val"]
    with pytest.raises(InputError, match=r"train-val\.txt: this earlier list would share images with the new ones"):
        write_split(open_folder(place), {"train": 0.5, "test": 0.5, "val": 0}, 0, True, of="train")
    with pytest.raises(InputError, match="no split 'val'; it has train, test"):
        write_split(open_folder(place), {"train": 1.0}, 0, False, of="val")


def test_of_splits_in_folders_one_can_be_divided(tmp_path):
    for part, count in (("train", 4), ("val", 1)):
        for number in range(count):
            picture(tmp_path / part / "images" / f"{part}{number}.jpg")
        (tmp_path / part / "labels").mkdir()
    (tmp_path / "classes.txt").write_text("cat\n")
    with pytest.raises(InputError, match="its splits lie in folders of their own; --of names the one to divide"):
        write_split(open_folder(tmp_path), {"train": 0.5, "test": 0.5}, 0, False)
    assert write_split(open_folder(tmp_path), {"train": 0.75, "val": 0.25}, 0, False, of="train") == {
        "train-train": 3,
        "train-val": 1,
    }
    text = "".join((tmp_path / "train" / f"train-{part}.txt").read_text() for part in ("train", "val"))
    assert sorted(text.split()) == [f"train{number}.jpg" for number in range(4)]
