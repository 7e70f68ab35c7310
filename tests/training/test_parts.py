import pytest
import torch
import torch.nn.functional as F

from vbd.config import TrainConfig
from vbd.records import Batch, Target
from vbd.training.parts import deal, placed, side_at

CPU = torch.device("cpu")


def _batch(images: int, *, side: int = 8) -> Batch:
    """Grey images of noise, their channels one and the same memory; image k has k boxes."""
    pixels = torch.rand(images, 1, side, side, generator=torch.Generator().manual_seed(0)).expand(-1, 3, -1, -1)
    targets = [
        Target(boxes=torch.full((k, 4), float(k)), labels=torch.full((k,), k), weights=torch.full((k,), 0.5))
        for k in range(images)
    ]
    return Batch([f"image-{k}" for k in range(images)], pixels, targets)


def test_parts_are_dealt_like_cards_and_every_image_keeps_its_boxes() -> None:
    batch = _batch(7)
    parts = deal(batch, 3)
    assert [part.image_ids for part in parts] == [
        ["image-0", "image-3", "image-6"],
        ["image-1", "image-4"],
        ["image-2", "image-5"],
    ]
    for part in parts:
        numbers = [int(name.removeprefix("image-")) for name in part.image_ids]
        assert torch.equal(part.images, batch.images[numbers])
        assert [len(target["boxes"]) for target in part.targets] == numbers


def test_without_several_scales_every_step_has_the_side_of_the_config() -> None:
    assert {side_at(step, TrainConfig(image_size=96)) for step in range(50)} == {96}


@pytest.mark.parametrize(
    ("config", "sides"),
    [
        (TrainConfig(image_size=128, multi_scale=0.5), {64, 96, 128, 160, 192}),
        (TrainConfig(image_size=128, multi_scale=0.49), {96, 128, 160}),
        (TrainConfig(image_size=64, multi_scale=0.4), {64}),
        # In binary this is a little less than 0.3; 224 and 416 are within reach all the same.
        (TrainConfig(image_size=320, multi_scale=0.7 - 0.4), {224, 256, 288, 320, 352, 384, 416}),
        (TrainConfig(detector="efficientdet", variant="lite0", image_size=512, multi_scale=0.3), {384, 512, 640}),
        (TrainConfig(image_size=32, multi_scale=0.5), {32}),
    ],
)
def test_sides_are_drawn_from_all_within_reach_that_the_detector_takes(config: TrainConfig, sides: set[int]) -> None:
    drawn = [side_at(step, config) for step in range(200)]
    assert set(drawn) == sides
    assert drawn == [side_at(step, config) for step in range(200)]  # of the step alone


def test_sides_differ_from_seed_to_seed() -> None:
    first, second = (TrainConfig(image_size=512, multi_scale=0.5, seed=seed) for seed in (0, 1))
    assert [side_at(step, first) for step in range(50)] != [side_at(step, second) for step in range(50)]


def test_images_and_boxes_are_resized_together() -> None:
    batch = _batch(3)
    before = batch.images.clone()
    resized = placed(batch, CPU, side=12)
    wanted = F.interpolate(batch.images, size=(12, 12), mode="bilinear", align_corners=False)
    assert torch.equal(resized.images, wanted)
    assert resized.images.stride(1) == 0  # the channels of a grey image are still one
    for old, new in zip(batch.targets, resized.targets, strict=True):
        assert torch.equal(new["boxes"], old["boxes"] * 1.5)
        assert torch.equal(new["labels"], old["labels"])
        assert torch.equal(new["weights"], old["weights"])
    assert resized.image_ids == batch.image_ids
    assert torch.equal(batch.images, before)
    assert batch.targets[2]["boxes"][0, 0] == 2


def test_channels_that_differ_are_resized_each() -> None:
    batch = _batch(2)
    colours = batch.images * torch.tensor([1.0, 0.5, 0.25])[:, None, None]
    resized = placed(Batch(batch.image_ids, colours, batch.targets), CPU, side=4).images
    assert torch.equal(resized, F.interpolate(colours, size=(4, 4), mode="bilinear", align_corners=False))


def test_what_has_the_side_already_stays_as_it_is() -> None:
    batch = _batch(2)
    same = placed(batch, CPU, side=8)
    assert torch.equal(same.images, batch.images)
    assert all(torch.equal(a["boxes"], b["boxes"]) for a, b in zip(same.targets, batch.targets, strict=True))
