import logging
from pathlib import Path

import pytest
from ultralytics.utils import LOGGER, SETTINGS

from duet.detectors.ultralytics_quiet import OWN_LOGGERS, quiet


def test_ultralytics_own_loggers_are_off_inside_and_the_users_file_is_not_written():
    file = Path(SETTINGS.file)
    content, chosen, level = file.read_bytes(), dict(SETTINGS), LOGGER.level
    with pytest.raises(RuntimeError), quiet():
        assert [SETTINGS[name] for name in OWN_LOGGERS] == [False, False, False]
        assert LOGGER.level == logging.WARNING
        assert file.read_bytes() == content
        raise RuntimeError
    assert dict(SETTINGS) == chosen
    assert LOGGER.level == level
    assert file.read_bytes() == content
