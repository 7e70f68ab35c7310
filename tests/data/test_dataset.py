import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from vbd.config import TrainConfig
from vbd.data.batches.make import BatchMaker, Images, collate, describe_sampling, training_batches
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
            assert set(a) == set(b)
            assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_that_starts_later_sees_the_same_batches(prepared: str) -> None:
    assert_equal(_batches(prepared, CONFIG)[5:], _batches(prepared, CONFIG, first_step=5))


def test_loader_processes_do_not_change_the_batches(prepared: str) -> None:
    config = replace(CONFIG, agreement_weight=0.5)
    assert_equal(_batches(prepared, config), _batches(prepared, config, loader_workers=2))


def test_another_strength_holds_from_its_phase_on(prepared: str) -> None:
    """Under D it changes which images a step sees, too."""
    for policy in ("E", "D"):
        weak, strong = (replace(CONFIG, policy=policy, strength=strength) for strength in (0.2, 1.0))
        phased = replace(weak, phase_steps=(5,), phase_strengths=(1.0,), phase_rates=(1.0,))
        batches = _batches(prepared, phased)
        assert_equal(batches[:5], _batches(prepared, weak)[:5])
        assert_equal(batches[5:], _batches(prepared, strong)[5:])
        with pytest.raises(AssertionError):
            assert_equal(batches[5:], _batches(prepared, weak)[5:])


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


def test_a_fold_that_does_not_exist_is_told(prepared: str) -> None:
    with pytest.raises(InputError, match="no images in fold 9"):
        Images(open_dataset(prepared), 9, image_size=64)


def test_no_share_of_a_batch_is_all_normal(prepared: str) -> None:
    config = replace(CONFIG, policy="A", normal_share=0.9, steps=20, batch_size=7)
    for rank in range(3):
        for batch in _batches(prepared, config, rank=rank, world=3):
            assert any(len(target["boxes"]) for target in batch.targets)


def test_a_subset_trains_on_images_with_one_of_its_labels_and_on_normal_ones(prepared: str) -> None:
    images = Images(open_dataset(prepared), "train", image_size=96, without_fold=1)
    labels_of = dict(zip(images.image_ids, images.label_sets, strict=True))
    subset = (0, 3)
    wanted = {image_id for image_id, labels in labels_of.items() if not labels or labels & set(subset)}
    config = replace(CONFIG, policy="A", subset=subset, steps=60)
    batches = _batches(prepared, config)
    assert {image_id for batch in batches for image_id in batch.image_ids} == wanted
    assert len(wanted) < len(labels_of)
    # The boxes of other labels in these images stay.
    seen = {label for batch in batches for target in batch.targets for label in target["labels"].tolist()}
    assert seen == set().union(*(labels_of[image_id] for image_id in wanted))
    # Partners of a mosaic are no others.
    maker = BatchMaker(open_dataset(prepared), config)
    rng = np.random.default_rng(0)
    assert {maker._draw_partner(rng)["image_id"] for _ in range(300)} <= wanted


def test_a_subset_that_no_image_holds_is_told(prepared: str) -> None:
    held = set().union(*Images(open_dataset(prepared), "train", image_size=96, without_fold=1).label_sets)
    absent = min(set(range(14)) - held)
    with pytest.raises(InputError, match=f"subset: no training image outside fold 1 holds {absent} "):
        _batches(prepared, replace(CONFIG, subset=(absent,)))


def test_a_box_weighs_what_its_readers_agreed(prepared: str) -> None:
    images = Images(open_dataset(prepared), "train", image_size=96)
    rows = [row | {"readers": np.arange(1, 1 + len(row["boxes"]))} for row in (images[i] for i in range(8))]
    for row, target in zip(rows, collate(rows, 2.0).targets, strict=True):
        assert target["weights"].dtype == torch.float32
        expected = [(min(k, 3) / 3) ** 2 for k in range(1, 1 + len(row["boxes"]))]
        assert target["weights"].tolist() == pytest.approx(expected)
    assert max(len(row["boxes"]) for row in rows) >= 3
    assert all("weights" not in target for target in collate(rows).targets)


def test_weights_follow_their_boxes_through_mixing(prepared: str) -> None:
    found = set()
    for batch in _batches(prepared, replace(CONFIG, agreement_weight=1.0, strength=1.0)):
        for target in batch.targets:
            assert len(target["weights"]) == len(target["boxes"])
            found |= {round(3 * weight) for weight in target["weights"].tolist()}
    assert found == {1, 2, 3}


def _described(text: str) -> dict[str, list[float]]:
    """The numbers of each class in the table."""
    rows = (re.match(r"([A-Z][A-Za-z/ ]+?) {2,}([\d,. ]+)$", line) for line in text.splitlines())
    return {row[1]: [float(number.replace(",", "")) for number in row[2].split()] for row in rows if row}


@pytest.mark.parametrize("sampler", ["repeat_factor", "class_aware"])
def test_the_table_of_a_run_tells_what_its_batches_hold(prepared: str, sampler: str) -> None:
    config = replace(CONFIG, policy="A", sampler=sampler, repeat_threshold=0.4, steps=1_000)
    dataset = open_dataset(prepared)
    text = describe_sampling(dataset, config)
    images = Images(dataset, "train", image_size=96, without_fold=1)
    maker = BatchMaker(dataset, config)
    drawn = np.concatenate([maker._sampler.batch(step) for step in range(1_000)])
    labels = images.box_labels
    boxes = sum(len(labels[i]) for i in drawn)
    for name, (held, in_all, _, share, per_thousand) in _described(text).items():
        label = dataset.classes.index(name)
        assert held == sum(label in each for each in labels)
        assert in_all == sum(each.count(label) for each in labels)
        assert per_thousand == pytest.approx(sum(label in labels[i] for i in drawn), rel=0.05, abs=5)
        assert share == pytest.approx(100 * sum(labels[i].count(label) for i in drawn) / boxes, abs=0.5)
    abnormal = sum(bool(each) for each in labels)
    assert f"{abnormal} abnormal and {40 - abnormal} normal images; 30.0 % of what is shown is normal" in text
    assert len(_described(text)) == 14


def test_an_epoch_is_described_by_hand(prepared: str) -> None:
    config = replace(CONFIG, policy="A", batch_size=10, normal_share=0.2, steps=100)
    dataset = open_dataset(prepared)
    labels = Images(dataset, "train", image_size=96, without_fold=1).box_labels
    abnormal = sum(bool(each) for each in labels)
    assert f"{abnormal / 8:,.1f} steps per epoch of the abnormal images, {800 / abnormal:,.1f} epochs in 100 steps" in (
        describe_sampling(dataset, config)
    )
    assert [row[2] for row in _described(describe_sampling(dataset, config)).values()] == [
        float(sum(label in each for each in labels)) for label in range(14)
    ]
