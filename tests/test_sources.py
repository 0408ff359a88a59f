"""What a user may name to predict on, and what is read from it."""

import cv2
import numpy as np
import pytest

from duet.errors import InputError
from duet.sources import Source, find_sources, frame_count, read_frames


@pytest.fixture
def folder(tmp_path):
    """Two pictures and a video of three frames in a folder with a space and letters beyond ASCII."""
    folder = tmp_path / "neue Bilder é"
    (folder / "deeper").mkdir(parents=True)
    for name, level in (("b.png", 200), ("a.jpg", 100), ("deeper/c.jpg", 50)):
        (folder / name).write_bytes(cv2.imencode(name[-4:], np.full((40, 60, 3), level, np.uint8))[1].tobytes())
    video(folder / "clip ü.avi", 3)
    (folder / "notes.txt").write_text("no picture")
    return folder


def video(path, frames, fps=12.5):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), fps, (64, 48))
    for number in range(frames):
        writer.write(np.full((48, 64, 3), 40 * number, np.uint8))
    writer.release()


def names(found, folder):
    return [(source.kind, source.name.removeprefix(f"{folder}/")) for source in found]


def frames_of(sources, failed=None):
    failures = [] if failed is None else failed
    return list(read_frames(sources, lambda source, why: failures.append((source.name, why)), None))


def test_a_folder_is_its_own_images_and_videos_in_order(folder):
    found = find_sources([str(folder)])
    assert names(found, folder) == [("image", "a.jpg"), ("image", "b.png"), ("video", "clip ü.avi")]
    assert frame_count(found) == 5


def test_a_pattern_may_reach_into_sub_folders(folder):
    found = find_sources([str(folder / "**" / "*.jpg")])
    assert names(found, folder) == [("image", "a.jpg"), ("image", "deeper/c.jpg")]


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(folder):
    path = folder / "a[1]*.jpg"
    (folder / "a.jpg").rename(path)
    assert names(find_sources([str(path)]), folder) == [("image", "a[1]*.jpg")]


def test_what_is_named_twice_is_read_once(folder):
    assert len(find_sources([str(folder / "a.jpg"), str(folder / "*.jpg")])) == 1


@pytest.mark.parametrize("address", ["rtsp://camera/1", "http://host/live", "0"])
def test_a_stream(address):
    assert find_sources([address]) == (Source("stream", address),)
    assert frame_count(find_sources([address])) is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere.jpg", r"nowhere\.jpg: no such file, folder or stream"),
        ("*.gif", r"\*\.gif: matches no image or video; known endings: \.avi"),
        ("deeper/empty", "deeper/empty: no image or video in this folder"),
        ("notes.txt", r"notes\.txt: not an image or video by its ending"),
    ],
)
def test_what_holds_no_picture_is_refused_by_name(folder, monkeypatch, name, message):
    (folder / "deeper" / "empty").mkdir()
    monkeypatch.chdir(folder)
    with pytest.raises(InputError, match=message):
        find_sources([name])


def test_a_stream_stands_alone(folder):
    with pytest.raises(InputError, match="one stream alone"):
        find_sources([str(folder), "rtsp://camera/1"])


def test_frames_are_counted_over_all_sources_and_within_videos(folder):
    frames = frames_of(find_sources([str(folder)]))
    assert [(frame.place, frame.number, frame.fps) for frame in frames] == [
        (1, None, None),
        (2, None, None),
        (3, 1, 12.5),
        (4, 2, 12.5),
        (5, 3, 12.5),
    ]
    assert frames[1].picture.shape == (40, 60, 3)
    assert (frames[1].picture == 200).all()
    assert [round(frame.picture.mean() / 40) for frame in frames[2:]] == [0, 1, 2]


def test_what_cannot_be_read_is_named_and_the_rest_still_comes(folder):
    (folder / "a0.png").write_bytes(b"nothing of a picture")
    (folder / "a1.jpg").touch()
    (folder / "a2.mp4").write_bytes(b"nothing of a video")
    failed = []
    frames = frames_of(find_sources([str(folder)]), failed)
    assert [(name.rpartition("/")[2], why.rpartition(": ")[2]) for name, why in failed] == [
        ("a0.png", "not a readable image"),
        ("a1.jpg", "not a readable image"),
        ("a2.mp4", "not a readable video"),
    ]
    assert [frame.place for frame in frames] == [1, 2, 3, 4, 5]
