"""Where other libraries give another result for the same input: different on purpose.

Their semantics are restated here in a few lines each: what peft and mergekit call TIES works tensor by tensor, and both
compute in the dtype in which the base is stored.
"""

import pytest
import torch

import merging


def base_of(task):
    return {key: torch.zeros_like(tensor) for key, tensor in task.items()}


def ours(*tasks, **options):
    result = merging.ties_merging(base_of(tasks[0]), list(tasks), scaling_factor=1.0, **options)
    return {key: tensor.tolist() for key, tensor in result.state.items()}


def largest(tensor, density):
    """Exactly int(n·density) entries of each tensor by itself, so that no tie with the last one is kept."""
    order = tensor.abs().argsort(descending=True, stable=True)[: int(len(tensor) * density)]
    return torch.zeros_like(tensor).index_copy(0, order, tensor[order])


def like_peft(*tasks, density):
    """Per tensor: keep the largest; a sum of 0 elects plus; divide by the number that agree."""
    merged = {}
    for key in tasks[0]:
        kept = torch.stack([largest(task[key], density) for task in tasks])
        agrees = torch.where(kept.sum(0) >= 0, kept > 0, kept < 0)
        merged[key] = ((kept * agrees).sum(0) / agrees.sum(0).clamp(min=1)).tolist()
    return merged


def like_mergekit(*tasks, density, weights):
    """As peft, but weights come before the election, and the weights of those that agree divide."""
    merged, share = {}, torch.tensor(weights, dtype=torch.float64).unsqueeze(1)
    for key in tasks[0]:
        kept = torch.stack([largest(task[key], density) for task in tasks]) * share
        agrees = torch.where(kept.sum(0) >= 0, kept > 0, kept < 0)
        divisor = (agrees * share).sum(0)
        merged[key] = ((kept * agrees).sum(0) / torch.where(divisor == 0, 1.0, divisor)).tolist()
    return merged


def task(**tensors):
    return {key: torch.tensor(values, dtype=torch.float64) for key, values in tensors.items()}


def test_one_threshold_per_model_or_one_per_tensor():
    large_and_small = task(large=[9.0, 8.0, 7.0, 6.0], small=[0.4, 0.3, 0.2, 0.1])
    assert like_peft(large_and_small, density=0.5) == {"large": [9, 8, 0, 0], "small": [0.4, 0.3, 0, 0]}
    # d = 8, k = 8 − 4: the fourth smallest magnitude is 0.4, which stays.
    assert ours(large_and_small, density=0.5) == {"large": [9, 8, 7, 6], "small": [0.4, 0, 0, 0]}


def test_the_threshold_per_tensor_turns_a_sign():
    one = task(a=[0.1, 0.1, 0.1, 0.1], b=[0.25, 0.0])
    two = task(a=[6.0, 6.0, 0.5, 0.5], b=[-0.5, 0.0])
    assert like_peft(one, two, density=0.5)["b"] == [-0.5, 0]
    # Over the whole model, k = 6 − int(6·0.2) = 5: the first keeps its b, the second drops its own.
    assert ours(one, two, density=0.2)["b"] == [0.25, 0]


def test_entries_equal_to_the_threshold():
    equal = task(w=[2.0, -2.0, 2.0, 2.0])
    assert sum(value != 0 for value in like_peft(equal, density=0.5)["w"]) == 2
    assert ours(equal, density=0.5)["w"] == [2, -2, 2, 2]


def test_a_sum_of_zero_elects_plus_or_the_majority():
    one, two = task(w=[2.0, -1.0, -1.0]), task(w=[-2.0, -1.0, -1.0])
    assert like_peft(one, two, density=1.0)["w"] == [2, -1, -1]
    assert ours(one, two, density=1.0)["w"] == [-2, -1, -1]


def test_weights_before_the_election_or_none():
    one, two = task(w=[3.0, 4.0]), task(w=[-1.0, 2.0])
    assert like_mergekit(one, two, density=1.0, weights=[0.1, 0.9])["w"] == [-1, pytest.approx(2.2)]
    assert ours(one, two, density=1.0)["w"] == [3, 3]


def test_on_ordinary_models_values_and_signs_differ():
    generator = torch.Generator().manual_seed(0)
    scales = {"embed": 0.3, "head": 3.0}
    tasks = [
        {key: scale * torch.randn(2000, generator=generator, dtype=torch.float64) for key, scale in scales.items()}
        for _ in range(4)
    ]
    here = torch.tensor([value for values in ours(*tasks, density=0.2).values() for value in values])
    for theirs in (like_peft(*tasks, density=0.2), like_mergekit(*tasks, density=0.2, weights=[1.0] * 4)):
        there = torch.tensor([value for values in theirs.values() for value in values])
        assert (here != there).double().mean() > 0.2
        assert (here * there < 0).any()
    # Trimmed per tensor too, they differ in ties, counts and undecided signs alone.
    own = torch.tensor([v for values in ours(*tasks, density=0.2, scope="tensor").values() for v in values])
    assert (own != there).double().mean() < 0.01


def test_arithmetic_in_the_stored_dtype_or_in_float64():
    models = [torch.tensor([value], dtype=torch.bfloat16) for value in (1.0, 2**-8, 2**-8, 2**-8, 2**-8)]
    stored = (sum(models) / 5).item()  # 1 + 2⁻⁸ is 1 in bfloat16, four times over
    averaged = merging.weight_averaging({"w": models[0]}, [{"w": model} for model in models]).state["w"]
    assert averaged.dtype == torch.bfloat16
    assert stored == torch.tensor(0.2, dtype=torch.bfloat16).item()
    assert averaged.item() == torch.tensor((1 + 4 * 2**-8) / 5, dtype=torch.bfloat16).item() > stored


def test_counters_are_scaled_or_copied():
    base, models = (
        {"w": torch.ones(1), "n": torch.tensor(5)},
        [{"w": torch.ones(1), "n": torch.tensor(n)} for n in (7, 8)],
    )
    assert sum(model["n"] for model in models) / 2 == 7.5
    assert merging.weight_averaging(base, models).state["n"].item() == 5
