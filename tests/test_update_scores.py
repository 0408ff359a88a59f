"""The indices of an update, by hand, and those that no validation set can give."""

from pathlib import Path

import numpy as np
import pytest

from duet.datasets.images import LabelledImage
from duet.errors import InputError
from duet.update_scores import indices_of, refuse_unscorable


def row(kind, before, after):
    return {"kind": kind, "before": before, "after": after}


def test_indices_worked_by_hand():
    scores = [row("old", 0.8, 0.6), row("old", 0.5, 0.6), row("new", None, 0.7), row("new", None, 0.5)]
    found = indices_of(scores)
    assert found["kept"] == pytest.approx((0.75 + 1.0) / 2)  # the gain of 1.2 on one set hides no loss on the other
    assert found["new"] == pytest.approx(0.6)
    assert found["overall"] == pytest.approx((0.75 + 1.0 + 0.7 + 0.5) / 4)


def test_what_cannot_be_divided_has_no_term():
    assert indices_of([]) == {"kept": None, "new": None, "overall": None}
    assert indices_of([row("old", 0.0, 0.4), row("new", None, 0.2)]) == {"kept": None, "new": 0.2, "overall": 0.2}


@pytest.mark.parametrize(
    ("label", "computable"), [("cat", {"kept", "overall"}), ("dog", {"new", "overall"}), ("bird", set())]
)
def test_an_index_that_no_set_can_give_is_told_before_training(label, computable):
    def image(difficult):
        box = np.array([[0.0, 0.0, 4.0, 4.0]])
        return LabelledImage(Path("a.png"), (8, 8), box, (label,), ("a, line 1",), np.array([difficult]))

    for name in ("kept", "new", "overall"):
        for difficult in (False, True):
            sets = {"day": (image(difficult),)}
            if name in computable and not difficult:
                refuse_unscorable([name], ("cat",), ("dog",), sets)
            else:
                with pytest.raises(InputError, match=f"'{name}' cannot be computed: no validation set has a box"):
                    refuse_unscorable([name], ("cat",), ("dog",), sets)
