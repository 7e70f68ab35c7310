"""Anchor boxes: those that were asked for, those that are there without asking, and heads of their number."""

import pytest
import torch
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from tests.models.test_contract import mixed_batch, one_thread  # noqa: F401
from vbd.config import ANCHORED, VARIANTS, Anchors
from vbd.models import build_detector

SIZE = 128
FLAT = Anchors(smallest=0.05, per_level=2, ratios=(0.2, 1.0))


@pytest.fixture(params=ANCHORED)
def family(request):
    return request.param


def build(family, anchors=Anchors(), variant=None, image_size=SIZE):  # noqa: B008
    torch.manual_seed(0)
    return build_detector(family, variant=variant or VARIANTS[family][0], image_size=image_size, anchors=anchors)


def anchor_boxes(model, side=SIZE) -> torch.Tensor:
    """All anchors of an image of `side`, xyxy, as the detector uses them."""
    if hasattr(model, "_prepare_for"):
        return model._prepare_for(side, side, torch.device("cpu")).anchors.boxes[:, [1, 0, 3, 2]]
    images = torch.zeros(1, 3, side, side)
    levels = list(model.network.backbone(images).values())
    generator = getattr(model.network, "anchor_generator", None) or model.network.rpn.anchor_generator
    return generator(ImageList(images, [(side, side)]), levels)[0]


def sides_and_ratios(boxes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The side of a square of the same area, and height over width."""
    width, height = (boxes[:, 2:] - boxes[:, :2]).unbind(1)
    return (width * height).sqrt(), height / width


def test_anchors_have_the_sides_and_ratios_that_were_asked_for(family):
    model = build(family, FLAT).eval()
    sides, ratios = sides_and_ratios(anchor_boxes(model))
    assert torch.allclose(ratios, torch.where(ratios < 0.6, 0.2, 1.0), rtol=1e-3)
    assert (ratios < 0.6).float().mean() == 0.5
    assert sides.min().item() == pytest.approx(0.05 * SIZE, rel=1e-4)
    levels = {"faster_rcnn": 4, "retinanet": 5, "efficientdet": 5}[family]
    assert len(sides.round(decimals=2).unique()) == 2 * levels


def test_sides_are_those_of_the_configured_size_whatever_comes(family):
    model = build(family, FLAT).eval()
    small, big = (sides_and_ratios(anchor_boxes(model, side))[0] for side in (SIZE, 2 * SIZE))
    assert big.min().item() == pytest.approx(small.min().item(), rel=1e-4)
    assert len(big) > 3 * len(small)


def test_a_flat_finding_has_a_better_anchor_among_flat_ones(family):
    """40 x 8 pixels, at 256 places: how well an anchor fits depends on where the finding lies in its cell."""
    offsets = torch.cartesian_prod(torch.arange(16.0), torch.arange(16.0))
    boxes = torch.tensor([40.0, 56.0, 80.0, 64.0]) + offsets.repeat(1, 2)
    usual, flat = (
        box_iou(boxes, anchor_boxes(build(family, Anchors(ratios=ratios)).eval())).amax(1).mean()
        for ratios in ((), (0.2, 0.5, 1.0, 2.0))
    )
    assert flat > 1.1 * usual


def test_a_small_flat_anchor_has_an_area(family):
    boxes = anchor_boxes(build(family, Anchors(smallest=0.01, ratios=(0.05, 20.0))).eval())
    assert (boxes[:, 2:] > boxes[:, :2]).all()


def test_weights_come_back_into_a_detector_of_the_same_anchors(family):
    model = build(family, FLAT).train()
    images, targets = mixed_batch()
    loss = model(images, targets)["loss"]
    loss.backward()
    assert torch.isfinite(loss)
    again = build(family, FLAT)
    again.load_state_dict(model.state_dict())
    with torch.inference_mode():
        for one, other in zip(model.eval()(images), again.eval()(images), strict=True):
            assert torch.equal(one["boxes"], other["boxes"])


def test_anchors_left_open_are_those_without_asking(family):
    usual, asked = build(family).eval(), build(family, Anchors(ratios=(0.5, 1.0, 2.0))).eval()
    assert [p.shape for p in usual.parameters()] == [p.shape for p in asked.parameters()]
    one, other = (sides_and_ratios(anchor_boxes(model))[0] for model in (usual, asked))
    assert torch.allclose(one.mean(), other.mean(), rtol=0.15)  # the library rounds those without asking


def test_the_second_recipe_of_faster_rcnn_has_a_head_of_the_number_of_anchors():
    with torch.device("meta"):
        model = build("faster_rcnn", Anchors(per_level=2, ratios=(0.2, 1.0)), variant="resnet50_v2")
    assert model.network.rpn.head.cls_logits.out_channels == 4
    assert model.network.rpn.head.bbox_pred.out_channels == 16
