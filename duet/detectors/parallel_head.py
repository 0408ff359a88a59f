"""Head policy ``parallel``: one full Detect head per task on the same features, outputs side by side.

Old heads stay exactly as they were; each further head costs its own computation at inference. A checkpoint with
parallel heads needs this package to be opened, one with ``rows`` does not.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from ultralytics.nn.modules.head import Detect


class ParallelDetect(Detect):
    """Several Detect heads; in training the last one is the one that learns.

    Args:
        heads: Detect heads on the same feature levels, in task order; the classes are concatenated in this order.
    """

    def __init__(self, heads: Sequence[Detect]) -> None:
        nn.Module.__init__(self)
        self.heads = nn.ModuleList(heads)
        self.cv2 = None  # Detect's own branches; Ultralytics asks whether they are there
        self.cv3 = None
        self.nc = sum(head.nc for head in heads)
        self.nl, self.reg_max, self.stride = heads[0].nl, heads[0].reg_max, heads[0].stride
        self.no = self.nc + 4 * self.reg_max
        for name in ("i", "f", "type", "np", "inplace"):  # set by Ultralytics' model parser
            if hasattr(heads[0], name):
                setattr(self, name, getattr(heads[0], name))

    @property
    def end2end(self) -> bool:
        """There is no one-to-one branch."""
        return False

    @end2end.setter
    def end2end(self, value: bool) -> None:
        """Ultralytics sets it on every head before inference and export."""

    def forward(self, x: list[Tensor]):
        """Raw outputs of the last head and of the old ones in training; decoded and side by side otherwise.

        Args:
            x: feature maps, one (B, C, H, W) per level.

        Returns:
            In training a mapping with ``boxes`` (B, 4·R, A), ``scores`` (B, C_last, A), ``feats``, and ``old_heads``, a
            list of the same for the earlier heads. Otherwise (B, 4 + C, A·heads), alone when exporting.
        """
        if self.training:
            outputs = [head.forward_head(x, **head.one2many) for head in self.heads]
            return {**outputs[-1], "old_heads": outputs[:-1]}
        decoded = torch.cat(self._decoded(x), 2)
        return decoded if self.export else (decoded, {})

    def _decoded(self, x: list[Tensor]) -> list[Tensor]:
        parts, first = [], 0
        for head in self.heads:
            values = head._inference(head.forward_head(x, **head.one2many))  # (B, 4 + C_head, A)
            after = self.nc - first - head.nc
            scores = nn.functional.pad(values[:, 4:], (0, 0, first, after))
            parts.append(torch.cat([values[:, :4], scores], 1))
            first += head.nc
        return parts
