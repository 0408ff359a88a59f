"""What results.json says of a stage's costs."""

import psutil

from duet.results import peak_memory_mb


def test_the_peak_is_no_less_than_what_the_process_has_now():
    before = peak_memory_mb()
    held = bytearray(b"1") * (256 << 20)
    after, now = peak_memory_mb(), psutil.Process().memory_info().rss / 2**20
    assert len(held) == 256 << 20
    assert before <= after
    assert 0.9 * now <= after < 1e6
