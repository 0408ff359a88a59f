import json
import os

import pytest

from duet.documents import read_json
from duet.errors import InputError
from duet.state import RunState, sha256_of, write_atomic, write_json, write_text


def test_a_failed_write_leaves_the_old_content_and_no_rest(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def fail(temporary):
        temporary.write_text("half")
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        write_atomic(path, fail)
    assert path.read_text() == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("kind", ["folder", "device"])
def test_only_a_file_is_replaced(tmp_path, kind):
    path = tmp_path / "there"
    path.mkdir() if kind == "folder" else os.mkfifo(path)
    before = path.stat()
    with pytest.raises(OSError, match=f"there: is a {kind}, whose place no file can take"):
        write_text(path, "x")
    assert path.stat() == before and [found.name for found in tmp_path.iterdir()] == ["there"]


def test_json_has_no_nan(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert not (tmp_path / "a.json").exists()


def test_broken_json_names_file_and_line(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"a": 1,\n')
    with pytest.raises(InputError, match=r"a\.json, line 2"):
        read_json(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="UTF-8"):
        read_json(path)


def test_sha256_is_that_of_the_content(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    assert sha256_of(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def stage(folder, number, text):
    path = folder / "stages" / str(number) / "model"
    write_text(path, text)
    return {"model": path}


def test_finished_stages_are_remembered(tmp_path):
    state = RunState(tmp_path / "run", "f")
    state.finish_stage(stage(tmp_path / "run", 1, "one"))
    again = RunState(tmp_path / "run", "f")
    assert again.finished_stages == 1
    assert again.stage_file(1, "model").read_text() == "one"


def test_a_damaged_or_missing_file_is_named(tmp_path):
    state = RunState(tmp_path / "run", "f")
    files = stage(tmp_path / "run", 1, "one")
    state.finish_stage(files)
    files["model"].write_text("two")
    with pytest.raises(InputError, match=r"stages/1/model: damaged"):
        state.stage_file(1, "model")
    files["model"].unlink()
    with pytest.raises(InputError, match=r"stages/1/model: missing"):
        state.stage_file(1, "model")


def test_another_run_or_a_full_folder_is_refused(tmp_path):
    state = RunState(tmp_path / "run", "f")
    state.finish_stage(stage(tmp_path / "run", 1, "one"))
    with pytest.raises(InputError, match=r"another configuration \(its config\.yaml says which\)"):
        RunState(tmp_path / "run", "g")
    with pytest.raises(InputError, match=r"another configuration \(seed is 0 there\)"):
        RunState(tmp_path / "run", "g", lambda: "seed is 0 there")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    with pytest.raises(InputError, match="not a run folder"):
        RunState(tmp_path / "photos", "f")
    assert sorted(item.name for item in (tmp_path / "photos").iterdir()) == ["a.jpg"]


def test_a_run_of_which_nothing_was_finished_may_be_started_otherwise(tmp_path):
    RunState(tmp_path / "run", "f")
    write_text(tmp_path / "run" / "config.yaml", "old")
    state = RunState(tmp_path / "run", "g")
    assert not (tmp_path / "run" / "config.yaml").exists()
    state.finish_stage(stage(tmp_path / "run", 1, "one"))
    with pytest.raises(InputError, match="another configuration"):
        RunState(tmp_path / "run", "f")


def test_a_damaged_record_or_an_impossible_folder_is_named(tmp_path):
    RunState(tmp_path / "run", "f")
    (tmp_path / "run" / "state.json").write_text("{}")
    with pytest.raises(InputError, match=r"state\.json: damaged"):
        RunState(tmp_path / "run", "f")
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "sub"):
        with pytest.raises(InputError, match="cannot be made a run folder"):
            RunState(path, "f")


def test_a_finished_stage_outdates_what_was_written_after_the_one_before(tmp_path):
    state = RunState(tmp_path / "run", "f")
    state.finish_stage(stage(tmp_path / "run", 1, "one"))
    for name in ("results.json", "data.json"):
        write_text(tmp_path / "run" / name, "{}")
        state.keep(name)
    assert state.is_whole("results.json", "data.json")
    state.finish_stage(stage(tmp_path / "run", 2, "two"))
    for known in (state, RunState(tmp_path / "run", "f")):
        assert known.is_whole("data.json") and not known.is_whole("results.json")


def test_a_kept_file_is_verified_and_one_renamed_before_a_kill_is_adopted(tmp_path):
    state = RunState(tmp_path / "run", "f")
    assert state.kept("data.json") is None
    write_text(tmp_path / "run" / "data.json", "{}")
    assert RunState(tmp_path / "run", "f").kept("data.json") == tmp_path / "run" / "data.json"
    write_text(tmp_path / "run" / "data.json", "{ }")
    with pytest.raises(InputError, match=r"data\.json: damaged, .* made anew"):
        RunState(tmp_path / "run", "f").kept("data.json")
    (tmp_path / "run" / "data.json").unlink()
    assert RunState(tmp_path / "run", "f").kept("data.json") is None


def test_a_kill_before_the_first_record_does_not_make_a_folder_foreign(tmp_path):
    write_text(tmp_path / "run" / ".state.json.4194303.part", "{")
    assert RunState(tmp_path / "run", "f").finished_stages == 0


def test_verify_checks_every_file(tmp_path):
    state = RunState(tmp_path / "run", "f")
    for number in (1, 2):
        state.finish_stage(stage(tmp_path / "run", number, str(number)))
    state.verify()
    (tmp_path / "run" / "stages" / "1" / "model").write_text("x")
    with pytest.raises(InputError, match="stages/1/model: damaged"):
        state.verify()


def test_the_record_is_plain_json(tmp_path):
    RunState(tmp_path / "run", "f")
    assert json.loads((tmp_path / "run" / "state.json").read_text()) == {"fingerprint": "f", "files": {}, "stages": []}
