import dataclasses
import math

import pytest

from tests.reports.searches import BASES, search_of, trial_of
from vbd.config import TrainConfig
from vbd.reports.page import Plot
from vbd.reports.search.parallel import axis_of, parallel, varied

YOLOX, RCNN, _ = BASES


def test_fields_that_vary_have_an_axis_and_the_others_none() -> None:
    one = TrainConfig(policy="A", strength=0.7)
    two = TrainConfig(policy="E", strength=0.5, sampler="class_aware", weight_decay=0.1)
    columns, follow = varied([one, two])
    assert columns == {
        "policy": ["A", "E"],
        "strength": [0.0, 0.5],  # policy A has none, whatever its config says
        "sampler": ["repeat_factor", "class_aware"],
        "weight_decay": [0.05, 0.1],
    }
    assert follow == []


def test_fields_that_change_with_the_detector_alone_are_named_only() -> None:
    columns, follow = varied([YOLOX, dataclasses.replace(YOLOX, seed=1), RCNN])
    assert list(columns) == ["detector", "seed"]
    assert follow == ["variant", "image_size", "steps", "learning_rate"]
    # With one trial of each nothing of the kind can be told.
    assert varied([YOLOX, RCNN])[1] == []


def test_a_schedule_is_shown_by_its_end() -> None:
    phases = {"phase_steps": (100, 200), "phase_strengths": (0.4, 0.6), "phase_rates": (0.8, 1.2)}
    scheduled = TrainConfig(policy="E", strength=0.5, **phases)
    columns, _ = varied([scheduled, TrainConfig(policy="E", strength=0.5)])
    assert columns == {"last strength": [0.6, 0.5], "last rate": [1.2, 1.0]}


def test_few_values_stand_evenly_and_many_numbers_to_scale() -> None:
    few = axis_of("normal_share", [0.5, 0.1, 0.2])
    assert few.places == [1.0, 0.0, 0.5]
    assert few.ticks == [(0.0, "0.1"), (0.5, "0.2"), (1.0, "0.5")]
    many = axis_of("strength", [i / 10 for i in range(11)])
    assert many.places == pytest.approx([i / 10 for i in range(11)])
    assert many.ticks == [(0.0, "0"), (0.5, "0.5"), (1.0, "1")]
    wide = axis_of("weight_decay", [10.0**-i for i in range(10)])
    assert wide.places == pytest.approx([1 - i / 9 for i in range(10)])


def test_learning_rates_stand_by_their_logarithms_and_scores_to_scale() -> None:
    assert axis_of("learning_rate", [1e-4, 1e-3, 1e-2]).places == pytest.approx([0, 0.5, 1])
    assert axis_of("score", [0.001, 0.5005, 1.0]).places == pytest.approx([0, 0.5, 1])
    assert axis_of("score", [0.3, 0.3]).places == [0.5, 0.5]


def test_long_and_many_names_leave_room() -> None:
    axis = axis_of("anchor_ratios", [tuple([0.123] * i) for i in range(40)])
    assert len(axis.ticks) <= 16
    assert max(len(text) for _, text in axis.ticks) <= 16
    assert axis.ticks[0] == (0.0, "-")


def test_each_scored_trial_is_a_line_and_the_best_is_drawn_last() -> None:
    trials = sorted(search_of(30), key=lambda t: -math.inf if math.isnan(t.score) else -t.score)
    (plot,) = parallel(trials).blocks
    assert isinstance(plot, Plot)
    lines = plot.figure.data
    assert len(lines) == sum(not math.isnan(trial.score) for trial in trials)
    best = max(trials, key=lambda t: -1 if math.isnan(t.score) else t.score)
    assert lines[-1].name == best.trial_id
    assert lines[-1].y[-1] == 1
    assert list(plot.figure.layout.xaxis.ticktext)[:3] == ["detector", "policy", "strength"]


def test_names_of_many_axes_are_slanted() -> None:
    names = ("variant", "seed", "batch_size", "steps", "warmup_steps", "weight_decay", "grad_clip", "fold")
    values = ("m", 1, 8, 100, 5, 0.2, 5.0, 1)
    other = dataclasses.replace(YOLOX, **dict(zip(names, values, strict=True)))
    (plot,) = parallel([trial_of(YOLOX, 0.3), trial_of(other, 0.2)]).blocks
    assert isinstance(plot, Plot)
    assert plot.figure.layout.xaxis.tickangle == -25


@pytest.mark.parametrize("trials", [[], [trial_of(YOLOX, 0.3)], [trial_of(YOLOX, math.nan), trial_of(RCNN, 0.3)]])
def test_with_fewer_than_two_scores_there_is_nothing_to_compare(trials: list) -> None:
    assert parallel(trials).blocks == ["With fewer than two scored trials there is nothing to compare."]
