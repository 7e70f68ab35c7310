from dataclasses import replace

import numpy as np
import pytest
import torch

from vbd.config import TrainConfig
from vbd.data.dataset import Images, collate, training_batches
from vbd.data.dataset_cache import cache_rows
from vbd.data.prepared import open_dataset, read_truths
from vbd.errors import InputError

CONFIG = TrainConfig(image_size=96, policy="E", batch_size=6, steps=8, normal_share=0.3, fold=1, seed=4)


def _batches(prepared: str, config: TrainConfig, **kwargs: int) -> list:
    options = {"first_step": 0, "loader_workers": 0} | kwargs
    return list(training_batches(open_dataset(prepared), config, **options))


def test_a_batch_has_the_shapes_of_the_contract(prepared: str) -> None:
    for batch in _batches(prepared, CONFIG):
        assert batch.images.shape == (6, 3, 96, 96)
        assert batch.images.dtype == torch.float32
        assert 0 <= batch.images.min() <= batch.images.max() <= 1
        for target in batch.targets:
            assert target["boxes"].dtype == torch.float32
            assert target["boxes"].shape == (len(target["labels"]), 4)
            assert target["labels"].dtype == torch.int64
            assert (target["boxes"] >= 0).all()
            assert (target["boxes"] <= 96).all()


def test_the_held_out_fold_and_the_test_part_are_never_trained_on(prepared: str) -> None:
    dataset = open_dataset(prepared)
    seen = {image_id for batch in _batches(prepared, replace(CONFIG, steps=60)) for image_id in batch.image_ids}
    held_out = {truth.image_id for truth in read_truths(dataset, 1)}
    assert not seen & held_out
    assert not seen & {truth.image_id for truth in read_truths(dataset, "test")}
    assert len(seen) == 40


def assert_equal(first: list, second: list) -> None:
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert one.image_ids == other.image_ids
        assert torch.equal(one.images, other.images)
        for a, b in zip(one.targets, other.targets, strict=True):
            assert torch.equal(a["boxes"], b["boxes"])
            assert torch.equal(a["labels"], b["labels"])


def test_a_run_that_starts_later_sees_the_same_batches(prepared: str) -> None:
    assert_equal(_batches(prepared, CONFIG)[5:], _batches(prepared, CONFIG, first_step=5))


def test_loader_processes_do_not_change_the_batches(prepared: str) -> None:
    assert_equal(_batches(prepared, CONFIG), _batches(prepared, CONFIG, loader_workers=2))


def test_ranks_share_each_batch(prepared: str) -> None:
    whole = _batches(prepared, CONFIG)
    shares = [_batches(prepared, CONFIG, rank=rank, world=2) for rank in range(2)]
    for batch, first, second in zip(whole, *shares, strict=True):
        assert sorted(batch.image_ids) == sorted(first.image_ids + second.image_ids)
        assert len(first.image_ids) == len(second.image_ids) == 3


def test_another_seed_gives_other_batches(prepared: str) -> None:
    first, second = _batches(prepared, CONFIG), _batches(prepared, replace(CONFIG, seed=5))
    assert [b.image_ids for b in first] != [b.image_ids for b in second]


def test_no_batch_is_all_normal(prepared: str) -> None:
    for batch in _batches(prepared, replace(CONFIG, policy="A", normal_share=0.9, steps=30, batch_size=2)):
        assert any(len(target["boxes"]) for target in batch.targets)


def test_an_image_of_another_size_brings_its_boxes_along(prepared: str) -> None:
    large = Images(open_dataset(prepared), "train", image_size=128)
    small = Images(open_dataset(prepared), "train", image_size=64)
    index = next(i for i, labels in enumerate(large.label_sets) if labels)
    assert small[index]["image"].shape == (64, 64)
    assert small[index]["boxes"] == pytest.approx(large[index]["boxes"] / 2)


def test_collate_keeps_an_image_without_boxes(prepared: str) -> None:
    images = Images(open_dataset(prepared), "train", image_size=128)
    normal = next(i for i, labels in enumerate(images.label_sets) if not labels)
    batch = collate([images[normal]])
    assert batch.targets[0]["boxes"].shape == (0, 4)
    assert torch.equal(batch.images[0, 0], batch.images[0, 2])
    assert np.allclose(batch.images[0, 0].numpy() * 255, images[normal]["image"])


def test_a_node_keeps_one_copy(prepared: str) -> None:
    dataset = open_dataset(prepared)
    first = cache_rows(dataset)
    stamp = first.stat().st_mtime_ns
    assert cache_rows(dataset) == first
    assert first.stat().st_mtime_ns == stamp


def test_a_fold_that_does_not_exist_is_told(prepared: str) -> None:
    with pytest.raises(InputError, match="no images in fold 9"):
        Images(open_dataset(prepared), 9, image_size=64)
