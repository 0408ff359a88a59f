"""Bad input: one sentence, a non-zero exit, nothing half-written."""

import shutil
import subprocess
import sys

import pytest
import yaml
from PIL import Image

from duet.cli import main


@pytest.fixture
def project(tmp_path):
    """A two-task series of tiny pictures in YOLO layout."""
    for domain, index in (("day", 0), ("night", 1)):
        for split in ("train", "test"):
            (tmp_path / domain / split / "images").mkdir(parents=True)
            (tmp_path / domain / split / "labels").mkdir()
        for number in range(4):
            Image.new("RGB", (64, 64), (number * 40, 20, 20)).save(
                tmp_path / domain / "train" / "images" / f"{number}.png"
            )
            (tmp_path / domain / "train" / "labels" / f"{number}.txt").write_text(f"{index} 0.5 0.5 0.4 0.4\n")
        shutil.copy(tmp_path / domain / "train" / "images" / "0.png", tmp_path / domain / "test" / "images" / "0.png")
        (tmp_path / domain / "test" / "labels" / "0.txt").write_text(f"{index} 0.5 0.5 0.4 0.4\n")
        (tmp_path / domain / "classes.txt").write_text("cat\ndog\n")
    write(tmp_path, series(tmp_path))
    return tmp_path


def series(folder):
    def domain(name):
        return {"train": part(name, "train"), "test": part(name, "test"), "classes": f"{name}/classes.txt"}

    def part(name, split):
        return {"images": f"{name}/{split}/images", "labels": f"{name}/{split}/labels"}

    return {
        "name": "two",
        "domains": {"day": domain("day"), "night": domain("night")},
        "train": {"epochs": 1, "image_size": 64},
        "tasks": [{"domain": "day", "classes": ["cat"]}, {"domain": "night", "classes": ["dog"]}],
    }


def write(folder, values):
    (folder / "series.yaml").write_text(yaml.safe_dump(values))


def refusal(project, capsys, monkeypatch, *options):
    """The one sentence with which the command ends; nothing may have been written."""
    out = project / "out"
    arguments = ["duet", "train", "--series", str(project / "series.yaml"), "--out", str(out), *options]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert not out.exists()
    captured = capsys.readouterr().err.strip()
    assert captured.startswith("Error: ")
    assert "\n" not in captured
    return captured


@pytest.fixture
def refused(project, capsys, monkeypatch, pretrained_weights):
    return lambda *options: refusal(project, capsys, monkeypatch, "--detector", str(pretrained_weights), *options)


def test_missing_weights(project, capsys, monkeypatch):
    assert "nowhere.pt: no such weights file" in refusal(project, capsys, monkeypatch, "--detector", "nowhere.pt")
    sentence = refusal(project, capsys, monkeypatch, "--detector", "yolo11q")
    assert "'yolo11q': no such file or folder, and no pretrained weights of that name; did you mean" in sentence


def test_overlapping_classes(project, refused):
    values = series(project)
    values["tasks"][1]["classes"] = ["dog", "cat"]
    write(project, values)
    assert "class 'cat' is in task 1 and in task 2" in refused()


def test_a_label_outside_the_task(project, refused):
    (project / "night" / "train" / "labels" / "2.txt").write_text("1 0.5 0.5 0.4 0.4\n0 0.5 0.5 0.4 0.4\n")
    sentence = refused()
    assert "2.txt, line 2: class 'cat' is not among the task's classes (dog)" in sentence


def test_a_label_outside_the_names(project, refused):
    (project / "night" / "train" / "labels" / "2.txt").write_text("7 0.5 0.5 0.4 0.4\n")
    assert "2.txt, line 1: class 7 does not exist, expected 0 to 1" in refused()


@pytest.mark.parametrize("line", ["0 0.5 0.5 -0.4 0.4", "0 0.5 0.5 1.4 0.4", "0 1.5 0.5 0.2 0.2"])
def test_a_box_that_cannot_be(project, refused, line):
    (project / "day" / "train" / "labels" / "1.txt").write_text(line + "\n")
    assert "1.txt, line 1: " in refused()


def test_an_empty_training_split(project, refused):
    for path in (project / "night" / "train" / "labels").iterdir():
        path.write_text("")
    assert "domain 'night': its training split has no box of the classes dog" in refused()
    for path in (project / "night" / "train" / "images").iterdir():
        path.unlink()
    assert "holds no image" in refused()


def test_misspelt_keys(project, refused):
    assert "unknown key 'train.epoch'; did you mean 'epochs'" in refused("--set", "train.epoch=2")
    values = series(project)
    values["taks"] = values.pop("tasks")
    write(project, values)
    assert "series.yaml: " in refused()
    values["tasks"] = values.pop("taks")
    values["domains"]["day"]["tarin"] = values["domains"]["day"].pop("train")
    write(project, values)
    sentence = refused()
    assert "domains.day" in sentence


def test_unknown_series_method_and_shift(project, refused):
    assert "unknown method 'dute'; did you mean 'duet'" in refused("--method", "dute")
    values = series(project)
    values["domains"]["night"]["shift"] = "comci"
    write(project, values)
    assert "did you mean 'comic'" in refused()


def test_an_output_that_is_a_file(project, capsys, monkeypatch, pretrained_weights):
    (project / "taken").touch()
    arguments = ["train", "--series", str(project / "series.yaml"), "--detector", str(pretrained_weights)]
    monkeypatch.setattr(sys, "argv", ["duet", *arguments, "--out", str(project / "taken")])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert "taken: cannot be made a run folder" in capsys.readouterr().err


def test_an_interrupted_run_says_how_it_goes_on(project, capsys, monkeypatch, pretrained_weights):
    from duet.learner import Learner

    def interrupted(learner):
        raise KeyboardInterrupt

    monkeypatch.setattr(Learner, "run", interrupted)
    arguments = ["train", "--series", str(project / "series.yaml"), "--detector", str(pretrained_weights)]
    monkeypatch.setattr(sys, "argv", ["duet", *arguments, "--out", str(project / "out")])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 130
    assert "the same command goes on where it stood" in capsys.readouterr().err


def test_the_tool_and_the_command_are_the_same():
    from duet.paths import project_root

    tool = project_root() / "tools" / "train_incremental.py"
    shown = subprocess.run([sys.executable, str(tool), "--help"], capture_output=True, text=True, check=True).stdout
    for option in ("--series", "--detector", "--method", "--seed", "--out", "--set"):
        assert option in shown


def test_the_command_starts_without_the_heavy_libraries():
    heavy = ("torch", "ultralytics", "matplotlib", "cv2", "transformers")
    program = f"import duet.cli, sys; print([name for name in {heavy} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
