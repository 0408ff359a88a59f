"""``duet predict`` with a detector that finds one box in every picture."""

import json
import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from duet.cli import app
from duet.config import EvaluationSettings
from duet.deploy import PredictRequest, coco_names_file, predict
from duet.detectors.base import Detections
from duet.errors import InputError

BOX = (4.0, 6.0, 24.0, 36.0)


class OneBox:
    """Finds a cat in dark pictures and a dog in bright ones."""

    classes = ("dog", "cat")
    image_size = 96

    def __init__(self):
        self.asked = []

    def predict_pictures(self, pictures, image_size, settings, batch):
        self.asked.append((image_size, settings.confidence, batch))
        for key, picture in pictures:
            label = "dog" if picture.mean() > 128 else "cat"
            yield key, Detections(np.array([BOX], np.float32), np.array([0.75], np.float32), (label,))


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "neue Bilder é"
    folder.mkdir()
    for name, level in (("b.png", 200), ("b.jpg", 100)):
        (folder / name).write_bytes(cv2.imencode(name[-4:], np.full((40, 60, 3), level, np.uint8))[1].tobytes())
    return folder


@pytest.fixture
def clip(tmp_path):
    path = tmp_path / "clip ü.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 12.5, (64, 48))
    for number in range(5):
        writer.write(np.full((48, 64, 3), 50 * number, np.uint8))
    writer.release()
    return path


def request(*sources, **options):
    return PredictRequest(tuple(map(str, sources)), EvaluationSettings(confidence=0.25), **options)


def frames_in(path):
    video = cv2.VideoCapture(str(path))
    pictures = []
    while (answer := video.read())[0]:
        pictures.append(answer[1])
    return pictures, video.get(cv2.CAP_PROP_FPS)


def test_the_document_says_everything(folder, tmp_path):
    detector = OneBox()
    result = predict(detector, request(folder, json_file=tmp_path / "found.json", image_size=64, batch=7))
    assert (result.frames, result.detections, result.failed) == (2, 2, [])
    document = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert document["classes"] == ["dog", "cat"]
    assert document["images"] == [
        {
            "image": str(folder / name),
            "size_hw": [40, 60],
            "boxes_xyxy": [list(BOX)],
            "scores": [0.75],
            "labels": [label],
        }
        for name, label in (("b.jpg", "cat"), ("b.png", "dog"))
    ]
    assert (document["image_size"], document["confidence"], document["failed"]) == (64, 0.25, [])
    assert detector.asked == [(64, 0.25, 7)]


def test_the_input_is_that_of_training_by_default(folder, tmp_path):
    detector = OneBox()
    predict(detector, request(folder, json_file=tmp_path / "found.json"))
    assert detector.asked[0][0] == 96


def test_coco_results_are_read_by_coco(folder, tmp_path, capsys):
    from pycocotools.coco import COCO

    results = tmp_path / "coco.json"
    predict(OneBox(), request(folder, coco_file=results))
    names = json.loads(coco_names_file(results).read_text(encoding="utf-8"))
    assert names["categories"] == [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}]
    assert [(image["id"], image["file_name"]) for image in names["images"]] == [
        (1, str(folder / "b.jpg")),
        (2, str(folder / "b.png")),
    ]
    assert json.loads(results.read_text())[0] == {
        "image_id": 1,
        "category_id": 2,
        "bbox": [4.0, 6.0, 20.0, 30.0],
        "score": 0.75,
    }
    annotations = tmp_path / "truth.json"
    annotations.write_text(json.dumps({**names, "annotations": [], "info": {}}))
    loaded = COCO(str(annotations)).loadRes(str(results))
    assert sorted(loaded.getImgIds()) == [1, 2]
    assert len(loaded.anns) == 2


def test_pictures_of_one_stem_are_both_drawn(folder, tmp_path):
    predict(OneBox(), request(folder, annotated=tmp_path / "out"))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["b.jpg", "b.png"]
    drawn = cv2.imread(str(tmp_path / "out" / "b.png"))
    assert drawn.shape == (40, 60, 3)
    assert not (drawn == 200).all()


def test_folders_of_a_pattern_stay_apart(folder, tmp_path):
    for name in ("x", "y"):
        (folder / name).mkdir()
        (folder / name / "b.png").write_bytes((folder / "b.png").read_bytes())
    predict(OneBox(), request(folder / "*" / "*.png", annotated=tmp_path / "out"))
    drawn = [path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.png")]
    assert sorted(drawn) == ["x/b.png", "y/b.png"]


def test_a_source_is_never_drawn_over(folder):
    before = (folder / "b.png").read_bytes()
    with pytest.raises(InputError, match=r"b\.\w+: the annotated picture would overwrite its source"):
        predict(OneBox(), request(folder, annotated=folder))
    assert (folder / "b.png").read_bytes() == before


def test_a_video_is_drawn_frame_by_frame(clip, tmp_path):
    predict(OneBox(), request(clip, annotated=tmp_path / "out", json_file=tmp_path / "found.json"))
    pictures, fps = frames_in(tmp_path / "out" / "clip ü.avi")
    assert (len(pictures), fps) == (5, 12.5)
    assert list((tmp_path / "out").iterdir()) == [tmp_path / "out" / "clip ü.avi"]
    images = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))["images"]
    assert [(image["image"], image["frame"]) for image in images] == [(str(clip), number) for number in range(1, 6)]


def test_no_part_of_a_video_is_left_behind(clip, tmp_path):
    class Fails(OneBox):
        def predict_pictures(self, *arguments):
            for number, found in enumerate(super().predict_pictures(*arguments)):
                if number == 3:
                    raise RuntimeError("out of memory")
                yield found

    with pytest.raises(RuntimeError, match="out of memory"):
        predict(Fails(), request(clip, annotated=tmp_path / "out", json_file=tmp_path / "found.json"))
    assert list((tmp_path / "out").iterdir()) == []
    assert not (tmp_path / "found.json").exists()


def test_no_more_than_the_wanted_frames(clip, tmp_path):
    assert predict(OneBox(), request(clip, json_file=tmp_path / "found.json", most_frames=2)).frames == 2


def test_a_stream_runs_picture_by_picture_until_it_is_stopped(clip, tmp_path, monkeypatch):
    def stopped(address):
        yield from (np.full((48, 64, 3), level, np.uint8) for level in (10, 200))
        raise KeyboardInterrupt

    monkeypatch.setattr("duet.deploy.stream_pictures", stopped)
    detector = OneBox()
    out = tmp_path / "out"
    result = predict(detector, request("rtsp://camera", annotated=out, json_file=tmp_path / "found.json"))
    assert result.frames == 2
    assert detector.asked[0][2] == 1
    assert len(frames_in(out / "stream.avi")[0]) == 2
    assert len(json.loads((tmp_path / "found.json").read_text())["images"]) == 2


def test_a_stream_is_read_by_ultralytics(clip):
    from duet.detectors.ultralytics_pictures import stream_pictures

    first = next(iter(stream_pictures(f"file://{clip}")))
    assert first.shape == (48, 64, 3)
    with pytest.raises(InputError, match="nowhere: the stream cannot be opened"):
        next(iter(stream_pictures("file:///nowhere")))


@pytest.fixture
def command(monkeypatch, tmp_path):
    monkeypatch.setattr("duet.detectors.families.load_pretrained", lambda name, trust=False: OneBox())
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(app, ["predict", "detector.pt", *map(str, arguments)])


def test_a_broken_image_among_good_ones_is_named_and_the_rest_is_done(command, folder, tmp_path):
    (folder / "broken.png").write_bytes(b"nothing of a picture")
    result = command(folder, "--json", "found.json", "--out", "drawn")
    assert result.exit_code == 1
    assert f"Error: {folder / 'broken.png'}: not a readable image" in result.output.replace("\n", "")
    document = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert len(document["images"]) == 2
    assert [item["image"] for item in document["failed"]] == [str(folder / "broken.png")]
    assert len(list((tmp_path / "drawn").iterdir())) == 2


def test_the_command_says_what_it_wrote(command, folder):
    result = command(folder, "--no-draw", "--coco", "coco.json")
    assert result.exit_code == 0, result.output
    assert "2 objects in 2 pictures." in result.output
    assert "COCO: coco.json" in result.output
    assert "Annotated" not in result.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--no-draw"], "nothing to write"),
        (["--json", "a.json", "--coco", "a.json"], "expected two files"),
        (["--json", "a.images.json", "--coco", "a.json"], "expected two files"),
        (["--json", "detector.pt"], "detector.pt: expected a name that ends in .json"),
        (["--coco", "/dev/full"], "expected a name that ends in .json"),
        (["--json", "folder.json"], "folder.json: is a folder"),
        (["--out", "a.txt"], "a.txt: is a file"),
        (["--out", "a.txt/inside"], "a.txt: is a file"),
    ],
)
def test_wrong_outputs_are_told_before_anything_runs(command, folder, options, message):
    Path("folder.json").mkdir()
    Path("a.txt").write_text("mine")
    result = command(folder, *options)
    assert isinstance(result.exception, InputError)
    assert message in str(result.exception)
    assert Path("a.txt").read_text() == "mine" and not list(folder.parent.glob("predictions*"))


def test_a_wrong_path_is_one_sentence(command, tmp_path):
    result = command("nowhere.jpg")
    assert isinstance(result.exception, InputError)
    assert str(result.exception) == "nowhere.jpg: no such file, folder or stream"
    assert list(tmp_path.iterdir()) == []


class Malicious:
    """Would create a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_malicious_checkpoint_is_refused_and_does_nothing(folder, tmp_path):
    trap = tmp_path / "trap"
    (tmp_path / "evil.pt").write_bytes(pickle.dumps({"model": Malicious(trap)}))
    for name in ("predict", "export"):
        arguments = [str(tmp_path / "evil.pt"), *([str(folder)] if name == "predict" else [])]
        result = CliRunner().invoke(app, [name, *arguments])
        assert isinstance(result.exception, InputError)
        assert "evil.pt: refused as a checkpoint" in str(result.exception)
    assert not trap.exists()
