"""The k-th magnitude without sorting equals the k-th magnitude with sorting."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from merging import blocks, order_statistics
from merging.blocks import Inputs
from merging.order_statistics import kth_smallest_magnitudes
from merging.plan import plan_merge
from merging.sources import StateSource

numbers = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 1 + 2**-30, 1 + 2**-40, 5e-324, 1e-310, 1e300, 3.5e38]),
)


def search(vectors, ranks, block=blocks.BLOCK, stored=None, workers=1):
    states = [{"a": vector[: len(vector) // 2], "b": vector[len(vector) // 2 :]} for vector in vectors]
    sources = [StateSource(state, f"model {number}") for number, state in enumerate(states)]
    plan = plan_merge(sources[0], sources)
    inputs = Inputs(sources[0], tuple(sources), plan, plan.merged, workers)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK", block)
        if stored:
            patch.setattr(order_statistics, "_CROWD", stored)
            patch.setattr(order_statistics, "_WAITING", stored)
        return kth_smallest_magnitudes(inputs, inputs.read_models, plan.merged, ranks)


@settings(max_examples=200, deadline=None)
@given(data=st.data(), values=st.lists(numbers, min_size=1, max_size=40), stored=st.sampled_from([1, 3, 1000]))
def test_equals_sorting_for_any_numbers(data, values, stored):
    rank = data.draw(st.integers(1, len(values)))
    vector = torch.tensor(values, dtype=torch.float64)
    expected = vector.abs().sort().values[rank - 1].item()
    assert search([vector], [rank], block=7, stored=stored) == [expected]


@pytest.mark.parametrize("stored", [10, None])
@pytest.mark.parametrize("workers", [1, 3])
def test_equals_sorting_for_several_long_vectors(stored, workers):
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(50_000, generator=generator, dtype=torch.float64)
    vectors = [normal, normal.half().double(), torch.zeros(50_000, dtype=torch.float64), normal * 0 + 0.3]
    ranks = [40_000, 49_999, 25_000, 50_000]
    expected = [vector.abs().kthvalue(rank).values.item() for vector, rank in zip(vectors, ranks)]
    assert search(vectors, ranks, block=4096, stored=stored, workers=workers) == expected


@pytest.mark.parametrize("distinct", [1, 3])
def test_equal_values_take_no_memory(monkeypatch, distinct):
    joined = []
    join = order_statistics._Multiset._join

    def watched(self):
        join(self)
        joined.append(len(self._values))

    monkeypatch.setattr(order_statistics._Multiset, "_join", watched)
    # Distinct in float64, equal when rounded to float32.
    vector = 1 + (torch.arange(10_000, dtype=torch.float64) % distinct) * 2**-40
    assert search([vector], [5000], block=100, stored=200) == [vector.sort().values[4999].item()]
    assert max(joined) == distinct
    assert len(joined) == 1 if distinct == 1 else len(joined) > 20


def test_blocks_of_one_value_and_of_many_are_counted_once():
    tiny = 2**-40
    blocks_ = [[1, 1, 1, 1], [1, 1 + tiny, 1 + 2 * tiny, 1 + 3 * tiny], [1 + tiny, 1 + 2 * tiny, 1, 1]] * 5
    vector = torch.tensor([number for block in blocks_ for number in block], dtype=torch.float64)
    expected = vector.sort().values.tolist()
    for rank in range(1, len(vector) + 1):
        assert search([vector], [rank], block=4, stored=4) == [expected[rank - 1]]
