"""Domain-statistics replay."""

import torch

from duet.detectors.base import DomainStatistics
from duet.detectors.replay import recolour


def test_recolouring_gives_the_statistics_of_the_past_domain():
    generator = torch.Generator().manual_seed(0)
    own = DomainStatistics((0.5, 0.5, 0.5), (0.1, 0.1, 0.1))
    past = DomainStatistics((0.2, 0.4, 0.6), (0.05, 0.02, 0.05))
    images = torch.randn(4, 3, 64, 64, generator=generator) * 0.1 + 0.5
    before = images.clone()
    recolour(images, own, (past,), 0.5, generator)
    changed = [index for index in range(4) if not torch.equal(images[index], before[index])]
    assert len(changed) == 2
    for index in changed:
        torch.testing.assert_close(images[index].mean((1, 2)), torch.tensor(past.mean), atol=0.01, rtol=0)
        torch.testing.assert_close(images[index].std((1, 2)), torch.tensor(past.std), atol=0.01, rtol=0)
