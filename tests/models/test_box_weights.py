"""What a box counts in the loss."""

import pytest
import torch

from tests.models.test_contract import build, family, mixed_batch, one_thread  # noqa: F401

# Where each family's losses of classes and boxes stand.
PARTS = ("class", "box")


def losses(family, weights: list[list[float]] | None):  # noqa: F811
    """The losses of the first step, drawing the same samples each time."""
    model = build(family).train()
    images, targets = mixed_batch()
    if weights is not None:
        targets = [target | {"weights": torch.tensor(w)} for target, w in zip(targets, weights, strict=True)]
    torch.manual_seed(3)
    return model, model(images, targets)


def test_weights_of_one_change_no_bit(family):  # noqa: F811
    one, other = losses(family, None)[1], losses(family, [[1.0, 1.0], [1.0], []])[1]
    assert {name: value.item() for name, value in one.items()} == {name: value.item() for name, value in other.items()}


def test_heavier_boxes_raise_the_loss_of_boxes_in_proportion(family):  # noqa: F811
    one, double = losses(family, None)[1], losses(family, [[2.0, 2.0], [2.0], []])[1]
    assert double["box"].item() == pytest.approx(2 * one["box"].item(), rel=1e-5)
    assert double["class"] > one["class"]
    half = losses(family, [[0.5, 0.5], [0.5], []])[1]
    # A class loss has a part of negatives, which does not change; that of boxes has none.
    assert double["class"] - one["class"] == pytest.approx(2 * (one["class"] - half["class"]).item(), rel=1e-3)


def test_a_box_of_weight_nothing_teaches_no_box(family):  # noqa: F811
    """Without the weight of all boxes there is no loss of boxes, and what is left comes from the background."""
    nothing = losses(family, [[0.0, 0.0], [0.0], []])[1]
    assert nothing["box"] == 0
    assert 0 <= nothing["class"] < losses(family, None)[1]["class"]
    some = losses(family, [[1.0, 0.0], [0.0], []])[1]
    assert 0 < some["box"] < losses(family, None)[1]["box"]


def test_the_parts_still_add_up_and_reach_the_backbone(family):  # noqa: F811
    model, parts = losses(family, [[1 / 3, 1.0], [2 / 3], []])
    total = sum(value for name, value in parts.items() if name != "loss")
    assert total.item() == pytest.approx(parts["loss"].item(), rel=1e-5)
    parts["loss"].backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.backbone.parameters())
