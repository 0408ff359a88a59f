"""Small families of fine-tuned networks that the tests of merging by gradient share."""

import itertools

import torch
from torch import nn

from merging.adaptation import UnlabelledTask


class Tied(nn.Module):
    """Embedding and output weight are one tensor."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 5)
        self.mid = nn.Linear(5, 5)
        self.out = nn.Linear(5, 7, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, ids):
        return self.out(torch.tanh(self.mid(self.embed(ids).mean(1))))


def dense():
    return nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 4))


def normed():
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(4 * 9, 3)
    )
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model.train()
        model(torch.randn(16, 2, 5, 5) * 2 + 1)
    return model


MODULES = {"dense": dense, "normed": normed, "tied": Tied}


def build(name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MODULES[name]()


def inputs(name, count=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    if name == "dense":
        return [torch.randn(5, 6, generator=generator) for _ in range(count)]
    if name == "normed":
        return [torch.randn(5, 2, 5, 5, generator=generator) for _ in range(count)]
    return [torch.randint(0, 7, (5, 3), generator=generator) for _ in range(count)]


def states(module, count, size=0.5):
    """Fine-tuned states: parameters moved at random, tied tensors alike; running statistics and counters too."""
    found = []
    for index in range(count):
        generator = torch.Generator().manual_seed(100 + index)
        moved = {}
        for key, tensor in module.state_dict().items():
            noise = torch.rand(tensor.shape, generator=generator) - 0.5
            moved[key] = tensor + index + 1 if not tensor.is_floating_point() else tensor + size * noise
            if key.endswith("running_var"):
                moved[key] = moved[key].abs() + 0.1
        if "out.weight" in moved and "embed.weight" in moved:
            moved["out.weight"] = moved["embed.weight"]
        found.append(moved)
    return found


def tasks(name, count=2, batches=3):
    """Tasks that give the same batches over and over."""
    made = []
    for index in range(count):
        endless = itertools.cycle(inputs(name, batches, seed=index))
        made.append(UnlabelledTask(f"task {index}", endless.__next__, lambda forward, batch: forward(batch)))
    return made
