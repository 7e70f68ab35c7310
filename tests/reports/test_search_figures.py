import math

import numpy as np
import pytest

from tests.reports.searches import BASES, STARTED, history_of, search_of, trial_of
from vbd.config import TrainConfig
from vbd.reports.page import Plot
from vbd.reports.search.figures import curves, described, rate_in_words, short, strength_in_words, thinned

YOLOX, RCNN, _ = BASES
PHASES = {"phase_steps": (1_000, 2_000), "phase_strengths": (0.4, 0.6), "phase_rates": (0.8, 1.2)}


def test_a_schedule_is_told_in_words() -> None:
    config = TrainConfig(policy="E", strength=0.5, learning_rate=1e-3, **PHASES)
    assert strength_in_words(config) == "0.5, from 1,000: 0.4, from 2,000: 0.6"
    assert rate_in_words(config) == "0.001, from 1,000: ×0.8, from 2,000: ×1.2"
    assert strength_in_words(TrainConfig(policy="A", strength=0.5, **PHASES)) == "0"
    assert described(TrainConfig(policy="A")) == "yolox nano, policy A, learning rate 0.001"


@pytest.mark.parametrize(
    ("value", "text"), [((), "-"), ((0.5, 2.0), "0.5, 2"), (None, "-"), ("", "-"), (0.123456, "0.1235"), (True, "True")]
)
def test_values_are_short(value: object, text: str) -> None:
    assert short(value) == text


def test_a_thinned_line_keeps_its_ends() -> None:
    assert thinned(range(5), 10) == [0, 1, 2, 3, 4]
    assert thinned(range(1001), 11) == list(range(0, 1001, 100))


def test_curves_hold_the_reports_but_not_the_unknown_ones() -> None:
    history = history_of(YOLOX, 0.3, start=STARTED, steps=3_000)
    history[1] |= {"score": None, "loss": math.nan}
    (plot,) = curves([trial_of(YOLOX, 0.3, history=history), trial_of(RCNN, 0.2)]).blocks
    assert isinstance(plot, Plot)
    score, loss = plot.figure.data
    assert list(score.x) == list(loss.x) == [1_000, 3_000]
    np.testing.assert_allclose(score.y, [history[0]["score"], history[2]["score"]])
    assert "of each trial" in plot.caption


def test_the_curves_of_many_trials_are_those_of_the_best() -> None:
    trials = sorted(search_of(100), key=lambda t: math.inf if math.isnan(t.score) else -t.score)
    (plot,) = curves(trials).blocks
    assert isinstance(plot, Plot)
    assert len(plot.figure.data) == 120
    assert "the best 60 of 100 trials" in plot.caption
    assert trials[0].trial_id in plot.figure.data[-1].text
    assert sum(bool(line.showlegend) for line in plot.figure.data) == len({t.config.policy for t in trials[:60]})


def test_without_reports_it_says_so() -> None:
    assert curves([trial_of(YOLOX, math.nan)]).blocks == ["No trial reported anything."]
