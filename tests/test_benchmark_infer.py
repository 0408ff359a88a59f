"""The benchmark of inference: its grouped heads compute what the parallel ones do."""

from pathlib import Path

import torch

from duet.detectors.families import load_pretrained

ROOT = Path(__file__).resolve().parents[1]


def test_grouped_heads_are_the_parallel_ones(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")
    from grouped_heads import GroupedHeads

    detector = load_pretrained("yolo11n.yaml").with_classes(("a", "b", "c"), 0)
    for number, names in enumerate((("d",), ("e", "f")), 1):
        detector = detector.grown(names, number, "parallel")
    generator = torch.Generator().manual_seed(0)
    for name, value in detector.model.named_parameters():  # so that the heads differ and scores are far from 0
        if ".dfl." not in name:  # the bins' numbers, which no training changes
            value.data += 0.02 * torch.randn(value.shape, generator=generator)
    network = detector.model.double().eval().fuse(verbose=False)  # sums in another order agree
    images = torch.rand((2, 3, 64, 96), generator=generator, dtype=torch.float64)
    with torch.inference_mode():
        expected = network(images)[0]
        network.model[-1] = GroupedHeads(network.model[-1]).double()
        found = network(images)
    assert expected.shape == found.shape == (2, 4 + 6, 3 * (8 * 12 + 4 * 6 + 2 * 3))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert expected[:, 4:].std() > 0
