"""Parallel heads as grouped convolutions: the same numbers from fewer and wider operations.

Whether that is faster depends on the machine; ``benchmark.py infer`` measures it beside the heads one after another.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from duet.detectors.parallel_head import ParallelDetect


class GroupedHeads(nn.Module):
    """What a fused ``ParallelDetect`` computes at inference.

    Args:
        head: the head, its BatchNorms fused; all its towers have the same widths.
    """

    def __init__(self, head: ParallelDetect) -> None:
        super().__init__()
        self.head = head
        heads = list(head.heads)
        self.f, self.i, self.type, self.np = head.f, head.i, head.type, head.np
        self.boxes = nn.ModuleList(_grouped([one.cv2[level] for one in heads], shared=True) for level in range(head.nl))
        self.scores = nn.ModuleList(
            _grouped([one.cv3[level] for one in heads], shared=False) for level in range(head.nl)
        )

    def forward(self, x: list[Tensor]) -> Tensor:
        """Decoded boxes and scores side by side, (B, 4 + C, A·heads), as the parallel head gives them."""
        count, first = len(self.head.heads), self.head.heads[0]
        batch = len(x[0])
        sides = 4 * first.reg_max
        boxes = torch.cat([branch(level).reshape(batch * count, sides, -1) for branch, level in zip(self.boxes, x)], 2)
        decoded = first._get_decode_boxes({"boxes": boxes, "feats": x}).view(batch, count, 4, -1)
        widest = max(one.nc for one in self.head.heads)
        repeated = [level.repeat(1, count, 1, 1) for level in x]
        scores = [branch(level).reshape(batch, count, widest, -1) for branch, level in zip(self.scores, repeated)]
        scores = torch.cat(scores, 3).sigmoid()  # (B, heads, widest, A)
        parts, start = [], 0
        for number, one in enumerate(self.head.heads):
            after = self.head.nc - start - one.nc
            placed = nn.functional.pad(scores[:, number, : one.nc], (0, 0, start, after))
            parts.append(torch.cat([decoded[:, number], placed], 1))
            start += one.nc
        return torch.cat(parts, 2)


def _grouped(branches: Sequence[nn.Module], shared: bool) -> nn.Sequential:
    """Convolutions of several branches of one form side by side.

    Args:
        branches: sequences of convolutions, each with its activation but the last.
        shared: all read the same input, which then is not repeated.
    """
    layers: list[nn.Module] = []
    for convolutions in zip(*(_convolutions(branch) for branch in branches)):
        same = shared and not layers
        layers += [_side_by_side(convolutions, same), nn.SiLU()]
    return nn.Sequential(*layers[:-1])


def _convolutions(branch: nn.Module) -> list[nn.Conv2d]:
    return [module for module in branch.modules() if isinstance(module, nn.Conv2d)]


def _side_by_side(convolutions: Sequence[nn.Conv2d], same_input: bool) -> nn.Conv2d:
    first, count = convolutions[0], len(convolutions)
    widest = max(one.out_channels for one in convolutions)
    joined = nn.Conv2d(
        first.in_channels * (1 if same_input else count),
        widest * count,
        first.kernel_size,
        first.stride,
        first.padding,
        groups=first.groups * (1 if same_input else count),
    )
    with torch.no_grad():
        joined.weight.copy_(torch.cat([_padded(one.weight, widest) for one in convolutions]))
        joined.bias.copy_(torch.cat([_padded(one.bias, widest) for one in convolutions]))
    return joined


def _padded(values: Tensor, rows: int) -> Tensor:
    return torch.cat([values, values.new_zeros(rows - len(values), *values.shape[1:])])
