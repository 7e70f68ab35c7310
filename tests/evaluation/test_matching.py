"""The ranking of detections, and ignoring by VOC's and by COCO's rule."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tests.evaluation.images import found, random_images, tied_images, truth
from vbd.evaluation.matching import FlatBoxes, Ignored, flatten, match, match_flat, rank

TARGET, OTHER = [0, 0, 10, 10], [100, 100, 110, 110]


def matched(detections, truths, ignored_truths, outside=(), coco=False):
    """Matches with some flat rows ignored."""
    flat, wanted = flatten(detections, truths)
    ignored = Ignored(
        np.isin(np.arange(len(wanted.labels)), ignored_truths), np.isin(np.arange(len(flat.labels)), outside)
    )
    return match_flat(flat, wanted, len(truths), coco=coco, ignored=ignored)


SCORES = st.one_of(st.sampled_from([-0.0, 0.0, 0.5, 1.0]), st.floats(-1e300, 1e300), st.floats(0, 1, width=32))


@settings(max_examples=50, deadline=None)
@given(st.data(), st.integers(0, 60))
def test_rank_is_by_class_then_score_and_keeps_the_order_of_ties(data, n):
    scores = data.draw(arrays(np.float64, n, elements=SCORES))
    labels = data.draw(arrays(np.int64, n, elements=st.integers(0, 14)))
    ranking = rank(FlatBoxes(np.arange(n), labels, np.zeros((n, 4)), scores))
    assert ranking.rows.tolist() == ranking.images.tolist() == np.lexsort((-scores, labels)).tolist()
    assert ranking.scores.tolist() == scores[ranking.rows].tolist()
    assert np.diff(ranking.starts).tolist() == np.bincount(labels, minlength=15).tolist()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_matches_say_where_each_detection_stood(seed):
    detections, truths = tied_images(seed)
    flat, _ = flatten(detections, truths)
    matches = match(detections, truths)
    assert sorted(matches.rows.tolist()) == list(range(len(flat.scores)))
    assert (flat.scores[matches.rows] == matches.scores).all()
    assert (flat.images[matches.rows] == matches.images).all()
    for label in range(15):
        rows = slice(matches.starts[label], matches.starts[label + 1])
        assert (flat.labels[matches.rows[rows]] == label).all()
        assert (np.diff(matches.scores[rows]) <= 0).all()


def test_detections_are_joined_by_id_and_not_by_place():
    detections, truths = random_images(3)
    matches = match(detections[::-1], truths)
    assert matches.is_true_positive.sum() == match(detections, truths).is_true_positive.sum() > 0


def test_voc_ignores_every_detection_of_an_ignored_finding():
    three = found("a", [TARGET, TARGET, OTHER], [0.9, 0.8, 0.7])
    matches = matched([three], [truth("a", [TARGET])], [0])
    assert matches.scores.tolist() == pytest.approx([0.7])
    assert matches.is_true_positive.tolist() == [False]
    assert matches.num_truths.sum() == 0


def test_voc_ignores_what_lies_best_on_an_ignored_finding_though_another_is_free():
    # Both findings overlap the box by more than 0.4, the ignored one by more.
    truths = [truth("a", [[0, 0, 10, 14], TARGET])]
    assert matched([found("a", [TARGET], [0.9])], truths, [1]).scores.tolist() == []
    assert matched([found("a", [TARGET], [0.9])], truths, [0]).is_true_positive.tolist() == [True]


@pytest.mark.parametrize("ignored", [0, 1])
def test_coco_prefers_what_is_to_be_found_and_lets_an_ignored_finding_be_taken_once(ignored):
    to_be_found, other = [0, 0, 10, 14], TARGET
    truths = [truth("a", [other, to_be_found] if ignored == 0 else [to_be_found, other])]
    boxes = found("a", [TARGET, TARGET, TARGET], [0.9, 0.8, 0.7])
    matches = matched([boxes], truths, [ignored], coco=True)
    # The best takes the one to be found, though it overlaps the other more; that one is the second's, none the third's.
    assert matches.scores.tolist() == pytest.approx([0.9, 0.7])
    assert matches.is_true_positive.tolist() == [True, False]


@pytest.mark.parametrize("coco", [False, True])
def test_a_detection_outside_is_ignored_only_when_it_matches_nothing(coco):
    boxes = found("a", [TARGET, OTHER, OTHER], [0.9, 0.8, 0.7])
    matches = matched([boxes], [truth("a", [TARGET])], [], outside=[0, 1], coco=coco)
    assert matches.scores.tolist() == pytest.approx([0.9, 0.7])
    assert matches.is_true_positive.tolist() == [True, False]


def test_a_second_detection_on_a_finding_is_false_in_voc_though_it_is_outside():
    boxes = found("a", [TARGET, TARGET], [0.9, 0.8])
    matches = matched([boxes], [truth("a", [TARGET])], [], outside=[1])
    assert matches.is_true_positive.tolist() == [True, False]
