"""Several seeds of a fusion in one table."""

import pytest

from duet.report.fusion import fusion_summary


def document(seed, accuracies, name="a"):
    lines = [
        {
            "method": method,
            "label": method.title(),
            "accuracy": accuracy,
            "average": sum(accuracy.values()) / len(accuracy),
            "average_normalised": 1.0 if method == "individual" else None,
        }
        for method, accuracy in accuracies.items()
    ]
    return {"name": name, "seed": seed, "tasks": [{"name": "x"}, {"name": "y"}], "methods": lines}


def test_means_and_deviation_by_hand():
    first = document(0, {"individual": {"x": 0.9, "y": 0.7}, "ties": {"x": 0.5, "y": 0.5}})
    second = document(1, {"individual": {"x": 0.7, "y": 0.7}, "ties": {"x": 0.6, "y": 0.6}})
    lines = fusion_summary([first, second]).splitlines()
    assert lines[0] == "| Method | x | y | Average | Normalised |"
    assert lines[2] == "| Individual | 80.0 | 70.0 | 75.0 ± 7.1 | 100.0 |"
    assert lines[3] == "| Ties | 55.0 | 55.0 | 55.0 ± 7.1 | – |"


def test_what_does_not_belong_together_is_refused():
    one = document(0, {"ties": {"x": 0.5, "y": 0.5}})
    with pytest.raises(ValueError, match="same seed"):
        fusion_summary([one, one])
    with pytest.raises(ValueError, match="expected the same fusion"):
        fusion_summary([one, document(1, {"ties": {"x": 0.5, "y": 0.5}}, "b")])
    with pytest.raises(ValueError, match="expected the same fusion"):
        fusion_summary([one, document(1, {"dare": {"x": 0.5, "y": 0.5}})])
