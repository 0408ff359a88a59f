"""Toy models and strategies that the merging tests share."""

import os

import torch
from hypothesis import strategies as st
from torch import nn

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

# Multiples of 1/8 whose sums over eight models are exact in every dtype: with ties, zeros and cancellations.
exact = st.integers(-16, 16).map(lambda number: number / 8)
# Exponents within 2^±10, so that the difference of two float32 numbers is exact in float64.
ordinary = st.one_of(
    st.just(0.0),
    st.floats(2.0**-10, 2.0**10, width=32),
    st.floats(-(2.0**10), -(2.0**-10), width=32),
)


@st.composite
def families(draw, values=exact, dtypes=(torch.float32,), most=4):
    """A base and models with equal keys and shapes; each model has a dtype of its own."""
    shapes = draw(st.lists(st.sampled_from([(1,), (3,), (2, 2), (), (0,), (5,)]), min_size=1, max_size=3))
    shapes = [(1,), *shapes]  # never nothing at all
    count = draw(st.integers(1, most))

    def state():
        dtype = draw(st.sampled_from(dtypes))
        return {f"layer{number}.weight": _tensor(draw, values, shape, dtype) for number, shape in enumerate(shapes)}

    return state(), [state() for _ in range(count)]


def _tensor(draw, values, shape, dtype):
    size = torch.Size(shape).numel()
    return torch.tensor(draw(st.lists(values, min_size=size, max_size=size)), dtype=dtype).reshape(shape)


def network(seed):
    """State of a small network with BatchNorm, its statistics those of random inputs."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
        nn.init.normal_(model[1].weight)
        nn.init.normal_(model[1].bias)
        for _ in range(seed + 1):
            model(torch.randn(4, 3, 8, 8))
    return model.state_dict()


def tuned(base, seed, size=0.1):
    """The base, moved a little; integer tensors counted up."""
    generator = torch.Generator().manual_seed(seed)
    return {
        key: (tensor + size * torch.rand(tensor.shape, generator=generator) * tensor.abs().clamp(min=0.1)).to(tensor)
        if tensor.is_floating_point()
        else tensor + seed
        for key, tensor in base.items()
    }


def options_for(method, models):
    """Options without which a method cannot run."""
    if method != "fisher":
        return {}
    fishers = [{key: (t.double().abs() + 0.5).to(t.dtype) for key, t in m.items()} for m in models]
    return {"fishers": fishers}


def same_bits(first, second):
    """Whether two mappings have equal keys, dtypes, shapes and bits."""
    return list(first) == list(second) and all(
        first[key].dtype == second[key].dtype
        and first[key].shape == second[key].shape
        and torch.equal(_bytes(first[key]), _bytes(second[key]))
        for key in first
    )


def _bytes(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def leftovers(folder, before):
    """What a folder holds now and did not hold before."""
    return sorted(set(os.listdir(folder)) - set(before))
