import itertools
from typing import Any

import pytest
import torch

from tests.training.runs import config_of
from vbd.config import TrainConfig
from vbd.errors import InputError
from vbd.models import detector_of
from vbd.records import Target
from vbd.training.microbatches import (
    check_micro_batch,
    coarsest_norm_stride,
    halved,
    least_images,
    number_of_parts,
    sides,
)
from vbd.training.optimizer import train_mode

EFFICIENTDET = TrainConfig(detector="efficientdet", variant="lite0", image_size=128)
YOLOX = TrainConfig(image_size=32)


def test_a_step_is_parted_as_asked_and_as_memory_allows() -> None:
    for images, micro_batch, accumulate in itertools.product(range(1, 12), range(1, 12), range(1, 12)):
        parts = number_of_parts(images, micro_batch=micro_batch, accumulate=accumulate)
        assert 0 < -(-images // parts) <= micro_batch
        assert parts >= min(accumulate, images)
        if parts > accumulate:  # and in no more than are needed
            assert -(-images // (parts - 1)) > micro_batch


def test_no_part_has_fewer_images_than_can_be_trained_on() -> None:
    for images, micro_batch, accumulate in itertools.product(range(2, 12), range(1, 12), range(1, 12)):
        parts = number_of_parts(images, micro_batch=micro_batch, accumulate=accumulate, least=2)
        assert images // parts >= 2
        half = halved(images, micro_batch=micro_batch, accumulate=accumulate, least=2)
        if half:
            fewer = number_of_parts(images, micro_batch=half, accumulate=accumulate, least=2)
            assert -(-images // fewer) < -(-images // parts)


@pytest.mark.parametrize(
    ("images", "micro_batch", "least", "half"),
    [(8, 8, 1, 4), (5, 5, 1, 3), (5, 3, 1, 2), (1, 1, 1, 0), (4, 4, 2, 2), (4, 2, 2, 0), (3, 3, 2, 0), (5, 3, 2, 0)],
)
def test_halves_end_at_the_fewest_images(images: int, micro_batch: int, least: int, half: int) -> None:
    assert halved(images, micro_batch=micro_batch, least=least) == half


def _train_on_one(config: TrainConfig) -> None:
    """One image through a real detector."""
    detector = detector_of(config, with_first_weights=False)
    train_mode(detector, detector, config)
    side = config.image_size
    target = Target(boxes=torch.tensor([[0.1, 0.1, 0.6, 0.7]]) * side, labels=torch.tensor([3]))
    detector(torch.rand(1, 3, side, side), [target])


@pytest.mark.parametrize("rate", [1.0, 0.0])
@pytest.mark.parametrize(
    ("family", "variant"),
    [
        ("yolox", "nano"),
        ("efficientdet", "lite0"),
        ("faster_rcnn", "mobilenet_v3_large_320"),
        ("faster_rcnn", "resnet18"),
        ("retinanet", "resnet18"),
        ("retinanet", "resnet34"),
        ("fcos", "resnet18"),
        ("fcos", "resnet34"),
        ("classifier", "mobilenetv3_small_050"),
        ("classifier", "convnext_tiny"),
    ],
)
def test_the_fewest_images_are_those_that_a_real_detector_accepts(family: Any, variant: str, rate: float) -> None:
    side = 128 if family == "efficientdet" else 32
    config = config_of(family, variant=variant, image_size=side, backbone_rate=rate)
    if least_images(config, side=side) == 1:
        _train_on_one(config)
    else:
        with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
            _train_on_one(config)


def test_a_larger_image_can_be_trained_on_alone_but_by_the_largest_efficientdet() -> None:
    assert least_images(EFFICIENTDET, side=128) == 2
    assert least_images(EFFICIENTDET, side=256) == 1
    assert least_images(YOLOX, side=64) == 1
    largest = TrainConfig(detector="efficientdet", variant="d7x", image_size=256)
    assert (least_images(largest, side=256), least_images(largest, side=384)) == (2, 1)
    assert coarsest_norm_stride(TrainConfig(detector="classifier", variant="convnext_small")) == 0


@pytest.mark.parametrize(
    ("fields", "workers", "message"),
    [
        (
            {"batch_size": 1},
            1,
            "x: batch_size 1 puts 1 image of 128 px at a time through efficientdet lite0, whose BatchNorm needs 2; use a "
            "batch_size of 2 or more, or an image_size of 256 or more",
        ),
        (
            {"batch_size": 4, "accumulate": 4},
            1,
            "x: batch_size 4 with accumulate 4 puts 1 image of 128 px at a time through efficientdet lite0, whose BatchNorm "
            "needs 2; use a batch_size of 8 or more, or an accumulate of at most 2, or an image_size of 256 or more",
        ),
        (
            {"batch_size": 4},
            4,
            "x: batch_size 4 with 4 workers puts 1 image of 128 px at a time through efficientdet lite0, whose BatchNorm "
            "needs 2; use a batch_size of 8 or more, or an image_size of 256 or more, or sync_batchnorm",
        ),
        (
            {"batch_size": 2, "accumulate": 2, "image_size": 256, "multi_scale": 0.5},
            1,
            "x: batch_size 2 with accumulate 2 puts 1 image of 128 px at a time through efficientdet lite0, whose BatchNorm "
            "needs 2; use a batch_size of 4 or more, or an accumulate of at most 1, or a smallest side (of image_size "
            "with multi_scale) of 256 or more",
        ),
    ],
)
def test_too_few_images_are_refused_with_values_that_work(fields: dict[str, Any], workers: int, message: str) -> None:
    config = TrainConfig(**{"detector": "efficientdet", "variant": "lite0", "image_size": 128} | fields)
    with pytest.raises(InputError) as error:
        check_micro_batch(config, workers=workers, where="x")
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("config", "more"),
    [
        (TrainConfig(image_size=64, batch_size=1), {}),
        (TrainConfig(image_size=32, batch_size=2), {}),
        (TrainConfig(image_size=32, batch_size=5, accumulate=2), {}),
        (TrainConfig(image_size=32, batch_size=4), {"workers": 2}),
        (TrainConfig(image_size=32, batch_size=2), {"workers": 2, "sync_batchnorm": True}),
        (TrainConfig(image_size=64, batch_size=1, multi_scale=0.49), {}),
    ],
)
def test_enough_images_are_accepted(config: TrainConfig, more: dict[str, Any]) -> None:
    check_micro_batch(config, **more)


def test_the_smallest_and_largest_side() -> None:
    assert sides(TrainConfig(image_size=128, multi_scale=0.5)) == (64, 192)
    assert sides(TrainConfig(image_size=512)) == (512, 512)
