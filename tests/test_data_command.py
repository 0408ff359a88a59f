"""`duet data` from the command line, and that the tool is the same."""

import subprocess
import sys

import cv2
import numpy as np
import pytest
import yaml
from data_trees import voc_tree

from duet.cli import main
from duet.datasets.dataset_folder import open_folder
from duet.datasets.series_file import find_series


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a command; its exit code, what it printed, and its one sentence of refusal."""

    def run_(*arguments):
        monkeypatch.setattr(sys, "argv", ["duet", "data", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        captured = capsys.readouterr()
        return stopped.value.code, captured.out, captured.err.strip()

    return run_


@pytest.fixture
def folder(tmp_path):
    dog, cat = ("dog", (11, 6, 30, 12)), ("cat", (1, 1, 40, 30), 1)
    images = {f"{number}": [dog, cat, ("cat", (2, 2, 9, 9))] for number in range(1, 6)}
    return voc_tree(tmp_path / "photos", images, {"train": ["1", "2", "3"], "test": ["4", "5"]})


def test_check_prints_one_table_and_ends_with_1_when_training_would_be_refused(run, folder, tmp_path):
    code, out, _ = run("new-series", tmp_path / "s.yaml", "--task", f"{folder}:dog")
    assert code == 0
    assert "Task 1: photos: dog" in out
    code, out, _ = run("check", tmp_path / "s.yaml")
    assert code == 0
    rows = [line.split() for line in out.splitlines()]
    assert ["images", "3", "2"] in rows
    assert ["cat", "3", "+", "3", "2", "+", "2"] in rows
    assert out.splitlines()[-1] == "Found: 0 errors, 0 warnings, 0 notes."
    (folder / "Annotations" / "2.xml").write_text("")
    (folder / "Annotations" / "4.xml").write_text("")
    code, out, _ = run("check", tmp_path / "s.yaml")
    assert code == 1
    assert f"error {folder}/Annotations/2.xml, line 1: an empty file, expected an <annotation>" in out
    assert "Found: 2 errors" in out


def test_many_faults_are_counted_and_notes_of_a_kind_stand_together(run, tmp_path):
    from duet.data_command import MOST_SHOWN, fault_lines
    from duet.datasets.faults import Fault, Level

    faults = [Fault(Level.WARNING, f"{number}.xml", "small") for number in range(MOST_SHOWN + 3)]
    faults += [Fault(Level.NOTE, f"[{number}].jpg", "grey") for number in range(9)]
    lines = fault_lines(faults)
    assert len(lines) == MOST_SHOWN + 3
    assert lines[MOST_SHOWN].endswith("and 3 more")
    assert lines[-2].endswith("[0].jpg and 8 more: grey")
    assert lines[-1] == f"Found: 0 errors, {MOST_SHOWN + 3} warnings, 9 notes."


def test_convert_there_and_back(run, folder, tmp_path):
    for source, format in ((folder, "coco"), (tmp_path / "coco", "yolo"), (tmp_path / "yolo", "voc")):
        code, out, _ = run("convert", source, "--to", format, "--out", tmp_path / format)
        assert code == 0
        assert "5 images" in out
    assert "5 flagged boxes left out" in run("convert", folder, "--to", "yolo", "--out", tmp_path / "again")[1]
    first, last = open_folder(folder).read(), open_folder(tmp_path / "voc").read()
    for name, part in first.items():
        for one, other in zip(part, last[name], strict=True):
            kept = one.chosen(~one.ignored)
            assert other.labels == kept.labels
            np.testing.assert_array_equal(other.boxes_xyxy, kept.boxes_xyxy)
    code, _, sentence = run("convert", folder, "--to", "pascal", "--out", tmp_path / "x")
    assert code == 2
    assert sentence.startswith("Error: unknown format 'pascal'")
    assert not (tmp_path / "x").exists()


def test_split(run, folder):
    code, out, _ = run("split", folder, "--train", "0.6", "--val", "0.2", "--test", "0.2", "--overwrite")
    assert code == 0
    assert "Images: train 3, val 1, test 1" in out
    assert run("split", folder, "--train", "0.6", "--test", "0.4")[0] == 2


def test_show_draws_pages_of_a_data_set_and_of_a_series(run, folder, tmp_path):
    assert run("show", folder, "--out", tmp_path / "pages", "--count", "2")[0] == 0
    page = cv2.imread(str(tmp_path / "pages" / "train.png"))
    assert page.shape[1] > 2 * 320
    run("new-series", tmp_path / "s.yaml", "--task", f"{folder}:dog")
    assert run("show", tmp_path / "s.yaml", "--out", tmp_path / "pages")[0] == 0
    assert {path.name for path in (tmp_path / "pages").iterdir()} == {
        "train.png", "test.png", "photos-train.png", "photos-test.png",
    }  # fmt: skip


def test_make_domain_draws_pictures_anew_and_keeps_boxes_flags_and_splits(run, folder, tmp_path):
    code, out, _ = run("make-domain", folder, "--shift", "comic", "--out", tmp_path / "comic", "--seed", "3")
    assert code == 0
    assert "5 images, 15 boxes" in out
    first, drawn = open_folder(folder).read(), open_folder(tmp_path / "comic").read()
    for name, part in first.items():
        for one, other in zip(part, drawn[name], strict=True):
            assert (one.path.name, one.labels) == (other.path.name, other.labels)
            np.testing.assert_array_equal(one.boxes_xyxy, other.boxes_xyxy)
            np.testing.assert_array_equal(one.difficult, other.difficult)
            assert not other.path.is_symlink()
            assert np.abs(cv2.imread(str(one.path)).astype(int) - cv2.imread(str(other.path))).mean() > 5
    assert run("make-domain", folder, "--shift", "comic", "--out", tmp_path / "twice", "--seed", "3")[0] == 0
    assert run("make-domain", folder, "--shift", "comic", "--out", tmp_path / "other", "--seed", "4")[0] == 0
    bytes_of = {name: (tmp_path / name / "JPEGImages" / "1.jpg").read_bytes() for name in ("comic", "twice", "other")}
    assert bytes_of["comic"] == bytes_of["twice"] != bytes_of["other"]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    code, _, sentence = run("make-domain", folder, "--shift", "commic", "--out", tmp_path / "x")
    assert (code, sentence) == (2, "Error: unknown shift 'commic'; did you mean 'comic'?")


def test_new_series_from_options_and_from_answers(run, folder, tmp_path, monkeypatch):
    voc_tree(tmp_path / "more" / "photos", {"1": [("cat", (1, 1, 9, 9))], "2": []}, {"train": ["1"], "test": ["2"]})
    tasks = ("--task", f"{folder}:dog", "--task", f"{tmp_path}/more/photos: cat")
    assert run("new-series", tmp_path / "two.yaml", *tasks, "--name", "mine")[0] == 0
    source = find_series(str(tmp_path / "two.yaml"))
    assert source.series.name == "mine"
    assert [(task.domain, task.classes) for task in source.series.tasks] == [
        ("photos", ("dog",)),
        ("photos~2", ("cat",)),
    ]
    written = yaml.safe_load((tmp_path / "two.yaml").read_text())
    assert written["domains"]["photos"]["train"]["images"] == "photos/JPEGImages"
    answers = iter([str(folder), "dog", ""])
    monkeypatch.setattr("typer.prompt", lambda *args, **options: next(answers))
    assert run("new-series", tmp_path / "asked.yaml")[0] == 0
    assert find_series(str(tmp_path / "asked.yaml")).series.classes == ("dog",)


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (["{folder}"], "expected FOLDER:class,class"),
        (["{folder}:dgo"], "class 'dgo' is not in"),
        (["{folder}:dog", "{folder}:dog"], "class 'dog' is in task 1 and in task 2"),
        (["{folder}/JPEGImages:dog"], "not a data set that is known"),
    ],
)
def test_new_series_writes_nothing_that_does_not_open(run, folder, tmp_path, tasks, message):
    options = [part for task in tasks for part in ("--task", task.format(folder=folder))]
    code, _, sentence = run("new-series", tmp_path / "s.yaml", *options)
    assert code == 2
    assert message in sentence
    assert ".part" not in sentence
    assert not (tmp_path / "s.yaml").exists()


def test_new_series_needs_splits_and_a_new_file(run, folder, tmp_path):
    (folder / "ImageSets" / "Main" / "test.txt").unlink()
    sentence = run("new-series", tmp_path / "s.yaml", "--task", f"{folder}:dog")[2]
    assert "expected a train and a test split, found train; `duet data split` makes them" in sentence
    (tmp_path / "s.yaml").write_text("mine")
    assert "there is such a file" in run("new-series", tmp_path / "s.yaml", "--task", f"{folder}:dog")[2]
    assert "ends in .yaml" in run("new-series", tmp_path / "s", "--task", f"{folder}:dog")[2]


def test_the_tool_and_the_command_are_the_same():
    from duet.paths import project_root

    tool = project_root() / "tools" / "prepare_data.py"
    shown = subprocess.run([sys.executable, str(tool), "--help"], capture_output=True, text=True, check=True).stdout
    for name in ("check", "convert", "split", "show", "make-domain", "new-series"):
        assert name in shown
