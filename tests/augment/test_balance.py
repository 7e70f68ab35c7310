from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vbd.config import POLICIES
from vbd.data.batches.balance import (
    BatchSampler,
    batch_composition,
    box_counts,
    class_aware_factors,
    effective_counts,
    epoch_multiple,
    instance_aware_factors,
    normals_per_step,
    policy_factors,
    repeat_factors,
    sample_indices,
    sampler_factors,
)
from vbd.errors import InputError

# Of 100 images label 0 is in all, label 1 in 4, label 12 in 1.
LABEL_SETS = [{0, 1, 12}, *[{0, 1}] * 3, *[{0}] * 96]


def test_repeat_factors_by_hand() -> None:
    factors = repeat_factors(LABEL_SETS, threshold=0.09)
    np.testing.assert_allclose(factors[0], 3.0)  # sqrt(0.09 / 0.01), the larger of its labels' factors
    np.testing.assert_allclose(factors[1:4], 1.5)  # sqrt(0.09 / 0.04)
    np.testing.assert_allclose(factors[4:], 1.0)
    counts = effective_counts(LABEL_SETS, factors)
    assert counts.shape == (14,)
    np.testing.assert_allclose(counts[[0, 1, 12]], [3 + 4.5 + 96, 3 + 4.5, 3])
    assert counts[2:12].sum() == 0


def test_threshold_zero_repeats_nothing() -> None:
    np.testing.assert_array_equal(repeat_factors(LABEL_SETS, threshold=0), np.ones(100))
    np.testing.assert_array_equal(repeat_factors([set(), {3}], threshold=0.1), np.ones(2))
    assert repeat_factors([], threshold=0.1).shape == (0,)
    assert effective_counts([], np.ones(0)).tolist() == [0] * 14


def test_instance_aware_factors_by_hand() -> None:
    # Labels 1 and 2 are in one of four images each; label 2 has 1 of 16 boxes, label 1 has 4 of them.
    box_labels = [[0, 1, 1, 1, 1], [0] * 5, [0, 0, 2], [0, 0, 0]]
    factors = instance_aware_factors(box_labels, threshold=1.0)
    of_label_0 = 1 / (1.0 * 11 / 16) ** 0.25
    expected = [1 / (1 / 4 * 4 / 16) ** 0.25, of_label_0, 1 / (1 / 4 * 1 / 16) ** 0.25, of_label_0]
    np.testing.assert_allclose(factors, expected)
    # One threshold is exceeded by none: by images alone labels 1 and 2 are as rare as each other.
    np.testing.assert_array_equal(instance_aware_factors(box_labels, threshold=0.01), np.ones(4))
    np.testing.assert_allclose(repeat_factors(box_labels, threshold=1.0), [2, 1, 2, 1])
    assert instance_aware_factors([], threshold=0.1).shape == (0,)


def test_boxes_are_counted_for_each_image_and_label() -> None:
    counts = box_counts([[3, 3, 5], [], [13]])
    assert counts.shape == (3, 14)
    assert counts[0, [3, 5]].tolist() == [2, 1]
    assert counts[1].sum() == 0
    assert counts[2, 13] == 1


def test_class_aware_factors_choose_every_label_equally_often() -> None:
    # Label 0 alone in 6 images, label 1 alone in 2, both in 1: an epoch has 9 draws, half of them for each label.
    label_sets = [{0}] * 6 + [{1}] * 2 + [{0, 1}]
    factors = class_aware_factors(label_sets)
    np.testing.assert_allclose(factors, [4.5 / 7] * 6 + [4.5 / 3] * 2 + [4.5 / 7 + 4.5 / 3])
    assert factors.sum() == pytest.approx(9)
    assert class_aware_factors([]).shape == (0,)


def test_images_of_common_labels_are_drawn_less_than_once_an_epoch() -> None:
    factors = class_aware_factors([{0}] * 6 + [{1}] * 2 + [{0, 1}])
    one = BatchSampler(np.arange(9), np.arange(0), factors=factors, batch_size=9, normal_share=0, seed=0)
    counts = np.array([np.bincount(one.batch(epoch), minlength=9) for epoch in range(3_000)])
    assert (counts.sum(axis=1) == 9).all()
    assert counts[:, 0].max() == 1
    np.testing.assert_allclose(counts.mean(axis=0), factors, atol=0.05)


def test_a_sampler_is_chosen_by_its_name() -> None:
    box_labels = [[0], [0, 1, 1], [0]]
    for name, wanted in (
        ("repeat_factor", repeat_factors(box_labels, threshold=0.5)),
        ("instance_aware", instance_aware_factors(box_labels, threshold=0.5)),
        ("class_aware", class_aware_factors(box_labels)),
    ):
        found = sampler_factors(box_labels, sampler=name, threshold=0.5)  # type: ignore[arg-type]
        np.testing.assert_array_equal(found, wanted)
    assert (
        len({tuple(sampler_factors(box_labels, sampler=s, threshold=0.5)) for s in ("repeat_factor", "class_aware")})
        == 2
    )


def test_policy_d_shows_rare_images_seven_times() -> None:
    label_sets = [{0, 12}, {3}, {1}]
    assert policy_factors(label_sets, policy="D", strength=1).tolist() == [7, 1, 7]
    assert policy_factors(label_sets, policy="D", strength=0.5).tolist() == [4, 1, 4]
    assert policy_factors(label_sets, policy="C", strength=1).tolist() == [1, 1, 1]


@given(st.integers(2, 64), st.integers(0, 90), st.integers(1, 200))
def test_share_of_normal_images_is_exact_and_no_batch_is_all_normal(size: int, percent: int, steps: int) -> None:
    normals = [batch_composition(step, size, percent / 100) for step in range(steps)]
    assert max(normals) <= size - 1
    wanted = steps * min(size * percent, (size - 1) * 100)
    assert sum(normals) == wanted // 100
    assert max(normals) - min(normals) <= 1


@given(st.integers(1, 8), st.integers(0, 56), st.integers(0, 90), st.integers(0, 200))
def test_every_rank_has_an_abnormal_image(world: int, more: int, percent: int, step: int) -> None:
    size = world + more
    normals = batch_composition(step, size, percent / 100, world=world)
    if size > 1:
        assert size - normals >= world  # they come first, and rank r has places r, r + world, ..
    if size * percent <= 100 * (size - world):  # where it leaves them enough, the share is as asked for
        assert normals == batch_composition(step, size, percent / 100)
        assert normals_per_step(size, percent / 100, world=world) == pytest.approx(size * percent / 100)


def test_single_image_batches_are_normal_at_their_share() -> None:
    assert sum(batch_composition(step, 1, 0.25) for step in range(100)) == 25


def sampler(**changes: object) -> BatchSampler:
    options = {"factors": np.ones(30), "batch_size": 8, "normal_share": 0.25, "seed": 3} | changes
    return BatchSampler(np.arange(30), np.arange(100, 150), **options)  # type: ignore[arg-type]


def test_an_epoch_shows_each_image_once() -> None:
    drawn = np.concatenate([sampler().batch(step) for step in range(25)])  # 150 abnormal, 50 normal
    assert Counter(drawn.tolist()) == dict.fromkeys(range(30), 5) | dict.fromkeys(range(100, 150), 1)
    assert drawn.dtype == np.int64
    first_epoch = drawn.reshape(25, 8)[:5, :6].ravel()
    assert sorted(first_epoch) == list(range(30))
    second_epoch = drawn.reshape(25, 8)[5:10, :6].ravel()
    assert sorted(second_epoch) == list(range(30))
    assert first_epoch.tolist() != second_epoch.tolist()


def test_a_step_depends_on_its_number_and_the_seed_alone() -> None:
    one = sampler()
    forwards = [one.batch(step).tolist() for step in range(60)]
    assert [one.batch(step).tolist() for step in reversed(range(60))] == forwards[::-1]
    assert sampler().batch(59).tolist() == forwards[59]
    assert sampler(seed=4).batch(59).tolist() != forwards[59]
    alone = sample_indices(
        step=59,
        batch_size=8,
        abnormal=np.arange(30),
        normal=np.arange(100, 150),
        factors=np.ones(30),
        normal_share=0.25,
        seed=3,
    )
    assert alone.tolist() == forwards[59]
    sampler().batch(10**9)  # at once, however far
    # A run that goes on after an upgrade sees what it would have seen.
    repeated = sampler(factors=1 + np.arange(30) / 20)
    assert repeated.batch(59).tolist() == [7, 10, 21, 18, 29, 28, 125, 111]


def test_repeated_images_come_as_often_as_their_factors_say() -> None:
    factors = np.array([3.0, 2.14, 1.54, 1.0, 1.0, 1.32])  # 10 in all
    one = BatchSampler(np.arange(6), np.arange(0), factors=factors, batch_size=10, normal_share=0.2, seed=0)
    counts = np.array([np.bincount(one.batch(epoch), minlength=6) for epoch in range(2_000)])
    assert (counts >= np.floor(factors)).all()
    assert (counts <= np.ceil(factors)).all()
    np.testing.assert_allclose(counts.mean(axis=0), factors, atol=0.05)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(1, 4), min_size=1, max_size=20),
    st.integers(0, 8),
    st.integers(1, 12),
    st.integers(0, 1000),
)
def test_batches_are_always_full(factors: list[float], normals: int, size: int, step: int) -> None:
    one = BatchSampler(
        np.arange(len(factors)),
        np.arange(100, 100 + normals),
        factors=np.array(factors),
        batch_size=size,
        normal_share=0.3,
        seed=1,
    )
    batch = one.batch(step)
    assert batch.shape == (size,)
    assert (batch >= 100).sum() == (batch_composition(step, size, 0.3) if normals else 0)


def test_no_abnormal_image_is_told() -> None:
    with pytest.raises(InputError, match="no training image has a finding"):
        BatchSampler(np.arange(0), np.arange(5), factors=np.ones(0), batch_size=2, normal_share=0.5, seed=0)


def test_equal_epochs_multiply_the_steps_by_the_images_of_the_studys_data_sets() -> None:
    label_sets = [{0, 12}, {3}, {1}, {4}]
    multiples = {policy: epoch_multiple(policy, label_sets) for policy in POLICIES}
    assert multiples == {"A": 1, "B": 4, "C": 7, "D": 4, "E": 1}
    assert epoch_multiple("D", []) == 1
