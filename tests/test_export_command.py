"""What `duet export` compares on, chosen before anything is exported."""

import cv2
import numpy as np
import pytest

from duet.errors import InputError
from duet.export_command import _pictures
from duet.monitor import Monitor


def test_a_broken_picture_is_named_and_left_out_of_the_check(tmp_path, capsys):
    cv2.imwrite(str(tmp_path / "good.png"), np.zeros((8, 8, 3), np.uint8))
    (tmp_path / "broken.png").write_bytes(b"no picture")
    assert _pictures([str(tmp_path)], 50, Monitor()) == [tmp_path / "good.png"]
    said = " ".join(capsys.readouterr().err.split())
    assert said.startswith("Left out of the check:") and "broken.png" in said


def test_pictures_that_cannot_be_compared_on_are_told_before_the_export(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match="no readable picture to compare on"):
        _pictures([str(tmp_path)], 50, Monitor())
