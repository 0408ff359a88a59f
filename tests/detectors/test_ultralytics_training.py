import pytest
import torch
from adapters import ADAPTERS
from torch import nn

from duet.detectors.ultralytics_training import as_teacher, raw_outputs


def tensors(outputs):
    if isinstance(outputs, torch.Tensor):
        return [outputs]
    parts = outputs.values() if isinstance(outputs, dict) else outputs
    return [tensor for part in parts if part is not None for tensor in tensors(part)]


@pytest.mark.parametrize(("name", "head"), [("yolo", "rows"), ("yolo", "parallel"), ("rtdetr", "rows")])
def test_a_teacher_is_the_network_without_its_batch_norm_in_the_shared_part(name, head):
    detector = ADAPTERS[name].build().with_classes(("a", "b"), seed=1).grown(("c",), seed=2, head=head)
    generator = torch.Generator().manual_seed(0)
    for module in detector.model.modules():
        if isinstance(module, nn.BatchNorm2d):  # as after a training: not the identity
            module.running_mean.copy_(0.1 * torch.rand(module.running_mean.shape, generator=generator))
            module.running_var.copy_(0.5 + torch.rand(module.running_var.shape, generator=generator))
    plain, teacher = detector.clone().model, detector.clone().model
    raw_outputs(plain)
    as_teacher(teacher)
    images = torch.rand(2, 3, 96, 96, generator=generator)
    with torch.no_grad():
        expected, found = tensors(plain(images)), tensors(teacher(images))
    assert len(expected) == len(found) > 1
    for one, other in zip(expected, found):
        torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-3)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in teacher.model[:-1].modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
