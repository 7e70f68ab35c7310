"""Images in parts."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.evaluation.images import found, random_images, tied_images, truth
from vbd.errors import InputError
from vbd.evaluation import stream
from vbd.evaluation.average_precision import evaluate
from vbd.evaluation.matching import match
from vbd.evaluation.stream import Evaluator

BOX, AWAY = [0, 0, 10, 10], [50, 50, 60, 60]


def evaluated(detections, truths, cuts):
    """An evaluator that was given the images in parts."""
    evaluator = Evaluator()
    for start, end in zip([0, *cuts], [*cuts, len(truths)], strict=True):
        evaluator.add(detections[start:end], truths[start:end])
    return evaluator


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.booleans(), st.lists(st.integers(0, 8), max_size=6))
def test_parts_give_the_very_scores_of_the_whole(seed, tied, cuts):
    detections, truths = tied_images(seed) if tied else random_images(seed, num_images=8)
    evaluator = evaluated(detections, truths, sorted(cuts))
    assert str(evaluator.scores()) == str(evaluate(detections, truths))
    whole = match(detections, truths)
    for name, values in vars(evaluator.matches).items():
        assert values.tolist() == vars(whole)[name].tolist(), name


def test_an_empty_evaluator():
    assert math.isnan(Evaluator().scores().map_40)
    assert Evaluator().num_images == 0


def test_scores_may_be_asked_for_at_any_time():
    evaluator = Evaluator()
    evaluator.add([found("a", [BOX], [0.5])], [truth("a", [BOX])])
    assert evaluator.scores().map_40 == 1
    evaluator.add([], [truth("b", [BOX])])
    assert (evaluator.scores().map_40, evaluator.num_images) == (0.5, 2)


def test_equal_scores_count_in_the_order_of_the_parts():
    parts = [([found("a", [BOX], [0.5])], [truth("a", [BOX])]), ([found("b", [AWAY], [0.5])], [truth("b", [BOX])])]
    values = []
    for ordered in (parts, parts[::-1]):
        evaluator = Evaluator()
        for part in ordered:
            evaluator.add(*part)
        values.append(evaluator.scores().map_40)
    assert values == [0.5, 0.25]


def test_the_threshold_is_that_of_the_evaluator():
    evaluator = Evaluator(iou_threshold=0.95)
    evaluator.add([found("a", [[0, 0, 10, 9]], [0.5])], [truth("a", [BOX])])
    assert evaluator.scores().map_40 == 0


def test_what_was_matched_is_not_matched_again(monkeypatch):
    seen = []

    def counting(found, *args, **kwargs):
        seen.append(np.unique(found.images).size)
        return judge(found, *args, **kwargs)

    judge = stream.judge
    monkeypatch.setattr(stream, "judge", counting)
    evaluator = Evaluator()
    for name in "abc":
        evaluator.add([found(name, [BOX], [0.5])], [truth(name, [BOX])])
        evaluator.scores()
    assert seen == [1] * 6  # by VOC's and by COCO's rule, one image each


def test_a_part_that_is_refused_leaves_nothing():
    evaluator = Evaluator()
    evaluator.add([], [truth("a", [BOX])])
    with pytest.raises(InputError, match="'a' was added before"):
        evaluator.add([], [truth("b"), truth("a")])
    with pytest.raises(InputError, match="not finite"):
        evaluator.add([found("c", [BOX], [np.nan])], [truth("c")])
    with pytest.raises(InputError, match="does not have this image"):
        evaluator.add([found("a")], [truth("d")])
    assert evaluator.num_images == 1
    evaluator.add([], [truth("b"), truth("c"), truth("d")])
    assert evaluator.num_images == 4
