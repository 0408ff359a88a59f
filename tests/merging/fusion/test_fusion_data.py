"""Image folders and tables of texts, and how faults in them are told."""

import pytest
import tiny_images

from merging.fusion.config import parse_fusion
from merging.fusion.data import task_classes, task_samples


def task(tmp_path, test, unlabelled=None, classes=("no", "yes"), **more):
    values = {
        "name": "t",
        "kind": "text",
        "pretrained": "p",
        "root": str(tmp_path),
        "tasks": [
            {"name": "a", "model": "m", "classes": classes, "unlabelled": unlabelled or test, "test": test, **more}
        ],
    }
    return parse_fusion(values, "test")


def read(settings):
    return task_samples(settings, settings.tasks[0], list)


def write(path, text):
    path.write_text(text, encoding="utf-8")


def test_tables_of_every_format(tmp_path):
    write(tmp_path / "a.tsv", 'label\ttext\nyes\tsay "hello"\n0\ttwo\n')
    write(tmp_path / "a.csv", 'text,label\n"one, two",yes\nthree,no\n')
    write(tmp_path / "a.jsonl", '{"text": "one", "label": 1}\n\n{"text": "two", "label": "no"}\n')
    for form, first in (("tsv", 'say "hello"'), ("csv", "one, two"), ("jsonl", "one")):
        unlabelled, test = read(task(tmp_path, {"path": f"a.{form}", "format": form}))
        assert test.items[0] == first and test.labels == [1, 0]
        assert unlabelled.items == test.items and unlabelled.labels is None


def test_pairs_limits_and_columns(tmp_path):
    write(tmp_path / "a.tsv", "\n".join(f"{number % 2}\tleft {number}\tright {number}" for number in range(20)))
    data = {"path": "a.tsv", "format": "tsv", "columns": ["label", "text", "other"], "text_pair": "other", "limit": 5}
    _, test = read(task(tmp_path, data))
    assert len(test.items) == len(test.labels) == 5
    assert all(pair[0].split()[1] == pair[1].split()[1] for pair in test.items)
    assert all(int(pair[0].split()[1]) % 2 == label for pair, label in zip(test.items, test.labels))


@pytest.mark.parametrize(
    ("form", "text", "match"),
    [
        ("tsv", "label\ttext\nmaybe\tone\n", r"a.tsv, line 2: label 'maybe' is no class"),
        ("tsv", "label\tsentence\nyes\tone\n", r"line 2: no column 'text'; found: label, sentence"),
        ("csv", "label,text\nyes\n", r"a.csv, line 2: expected 2 columns"),
        ("jsonl", '{"text": "a", "label": 1}\n{oops\n', r"a.jsonl, line 2: not JSON"),
        ("jsonl", "[1]\n", r"line 1: expected an object, found list"),
    ],
)
def test_faults_are_told_with_file_and_line(tmp_path, form, text, match):
    write(tmp_path / f"a.{form}", text)
    with pytest.raises(ValueError, match=match):
        read(task(tmp_path, {"path": f"a.{form}", "format": form}))


def test_files_that_are_absent_or_no_text(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"task 'a': .*b.tsv: no such file"):
        read(task(tmp_path, {"path": "b.tsv", "format": "tsv"}))
    (tmp_path / "b.tsv").write_bytes(b"label\ttext\nyes\t\xff\xfe\n")
    with pytest.raises(ValueError, match="not a UTF-8"):
        read(task(tmp_path, {"path": "b.tsv", "format": "tsv"}))


def test_folders_of_images(tmp_path):
    tiny_images.image_folders(tmp_path / "test", ("no", "yes"), 3)
    tiny_images.image_folders(tmp_path / "plain", ("any",), 2)
    settings = task(tmp_path, {"path": "test"}, {"path": "plain"}, classes="folders")
    assert task_classes(settings, settings.tasks[0]) == ("no", "yes")
    unlabelled, test = read(settings)
    assert test.labels == [0, 0, 0, 1, 1, 1] and len(unlabelled.items) == 2
    with pytest.raises(ValueError, match="has no folder 'maybe'"):
        read(task(tmp_path, {"path": "test"}, classes=["no", "maybe"]))
    with pytest.raises(ValueError, match="yes is no class of the task"):
        read(task(tmp_path, {"path": "test"}, classes=["no"]))
