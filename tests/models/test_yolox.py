"""The adapter's own loss and decoding against the library's."""

import pytest
import torch

from vbd.models import build_detector
from vbd.models.yolox import _anchor_points, _raw_outputs


@pytest.fixture
def model():
    torch.manual_seed(0)
    return build_detector("yolox", variant="nano", image_size=128)


def test_loss_equals_the_librarys(model):
    images = torch.rand(2, 3, 128, 128)
    boxes = torch.tensor([[20.0, 30.0, 60.0, 70.0], [80.0, 90.0, 90.0, 98.0]])
    labels = torch.tensor([3, 0])
    targets = [{"boxes": boxes, "labels": labels}, {"boxes": boxes[:0], "labels": labels[:0]}]
    padded = torch.zeros(2, 4, 5)  # class, centre, size; the library stops at the first row of zeros
    padded[0, :2] = torch.tensor([[3.0, 40.0, 50.0, 40.0, 40.0], [0.0, 85.0, 94.0, 10.0, 8.0]])
    model.mean_positives.zero_()  # so that both divide by the number of positives
    model.train()
    ours, theirs = model(images, targets), model.network(images * 255, padded)
    torch.testing.assert_close(ours["loss"], theirs["total_loss"])
    torch.testing.assert_close(ours["box"], theirs["iou_loss"].detach())
    torch.testing.assert_close(ours["objectness"], theirs["conf_loss"].detach())
    torch.testing.assert_close(ours["class"], theirs["cls_loss"].detach())


def test_decoding_equals_the_librarys(model):
    model.eval()
    images = torch.rand(1, 3, 128, 128)
    with torch.inference_mode():
        theirs = model.network(images * 255)[0]
        raw = _raw_outputs(model.network, images * 255)
        anchors = _anchor_points(raw, model.network.head.strides)
        outputs = torch.cat([level.flatten(2) for level in raw], dim=2)[0].T
    torch.testing.assert_close((outputs[:, :2] + anchors[:, :2]) * anchors[:, 2:], theirs[:, :2])
    torch.testing.assert_close(outputs[:, 2:4].exp() * anchors[:, 2:], theirs[:, 2:4])
