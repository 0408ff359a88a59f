import os

import pytest

from merging import placing

GONE = 2**22 - 1  # beyond the largest process number that is usual


@pytest.fixture
def folders(tmp_path):
    for name, text in (("old", "old"), (f".old.partial-{os.getpid()}", "new")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_text(text)
    return tmp_path / f".old.partial-{os.getpid()}", tmp_path / "old"


@pytest.mark.parametrize("can_exchange", [True, False])
def test_a_folder_is_replaced_whole(folders, monkeypatch, can_exchange):
    if not can_exchange:
        monkeypatch.setattr(placing, "exchange", lambda first, second: False)
    placing.put_folder(*folders)
    assert (folders[1] / "x").read_text() == "new"
    assert [path.name for path in folders[1].parent.iterdir()] == ["old"]


def test_no_instant_without_a_folder_where_the_system_can_exchange(folders, monkeypatch):
    def killed(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(placing.os, "rename", killed)
    if not placing.exchange(*folders):
        pytest.skip("this file system cannot exchange folders")
    assert (folders[1] / "x").read_text() == "new"
    assert (folders[0] / "x").read_text() == "old"


def test_what_a_kill_moved_away_comes_back(tmp_path):
    for name in (f".out.replaced-{GONE}", f".out.partial-{GONE}", f".out.partial-{os.getpid()}", ".outer.partial-1"):
        (tmp_path / name).mkdir()
    (tmp_path / f".out.replaced-{GONE}" / "x").write_text("old")
    placing.tidy(tmp_path / "out")
    assert (tmp_path / "out" / "x").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["out", f".out.partial-{os.getpid()}", ".outer.partial-1"]
    )


def test_a_record_never_tells_about_another_file(tmp_path, monkeypatch):
    (tmp_path / "part").mkdir()
    for folder, text in ((tmp_path, "old"), (tmp_path / "part", "new")):
        (folder / "m.safetensors").write_text(text)
        (folder / "m.provenance.json").write_text(text)
    seen = []

    def replace(source, target):
        seen.append({path.name: path.read_text() for path in tmp_path.glob("m.*")})
        os.rename(source, target)

    monkeypatch.setattr(placing.os, "replace", replace)
    placing.put_files(tmp_path / "part", tmp_path / "m.safetensors")
    seen.append({path.name: path.read_text() for path in tmp_path.glob("m.*")})
    assert seen == [
        {"m.safetensors": "old"},
        {"m.safetensors": "new"},
        {"m.safetensors": "new", "m.provenance.json": "new"},
    ]


def test_a_new_file_comes_after_its_record(tmp_path):
    (tmp_path / "part").mkdir()
    for name in ("m.safetensors", "m.provenance.json"):
        (tmp_path / "part" / name).write_text("new")
    placing.put_files(tmp_path / "part", tmp_path / "m.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.provenance.json", "m.safetensors", "part"]
