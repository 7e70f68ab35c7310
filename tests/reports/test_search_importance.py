"""The importance of fields as a page shows it; what the shares are is tested in tests/search/test_importance.py."""

import dataclasses
import math

import numpy as np

from tests.reports.searches import BASES, STARTED, history_of, search_of, trial_of
from vbd.records import Trial
from vbd.reports.page import Plot, Section
from vbd.reports.search.fanova import MIN_TRIALS
from vbd.reports.search.figures import families
from vbd.reports.search.importance import importance

YOLOX = BASES[0]


def trials_by_rate(count: int, *, matters: bool = True, stopped: int = 0) -> list[Trial]:
    """Of three fields that vary at random the learning rate makes the score, or nothing does."""
    rng = np.random.default_rng(0)
    trials = []
    for number in range(count):
        rate = float(np.exp(rng.uniform(-9, -5)))
        fields = {"policy": "ABE"[int(rng.integers(3))], "weight_decay": float(rng.uniform(0.01, 0.1))}
        config = dataclasses.replace(YOLOX, learning_rate=rate, **fields)
        score = 0.3 - 0.05 * abs(math.log(rate) + 7) * matters + float(rng.normal(0, 0.005))
        is_stopped = number < stopped
        steps = config.steps // 4 if is_stopped else config.steps
        history = history_of(config, score, start=STARTED, steps=steps)
        trials.append(trial_of(config, score, history=history, status="stopped" if is_stopped else "finished"))
    return trials


def section_of(trials: list[Trial]) -> Section:
    (section,) = importance(trials)
    return section


def plot_of(section: Section) -> Plot:
    (plot,) = [block for block in section.blocks if isinstance(block, Plot)]
    return plot


def test_the_field_that_makes_the_scores_is_told_and_drawn_first() -> None:
    section = section_of(trials_by_rate(40))
    assert str(section.blocks[0]).startswith("yolox: what mattered beyond chance is learning_rate (")
    bars, chance = plot_of(section).figure.data
    names = list(plot_of(section).figure.layout.yaxis.ticktext)
    assert names[0] == "learning_rate"
    assert {"policy", "weight_decay"} < set(names)
    assert bars.x[0] == max(bars.x) > 0.5
    assert bars.x[0] - bars.error_x.arrayminus[0] > chance.x[0]
    colours = list(bars.marker.color)
    assert colours[0] not in colours[1:]
    assert "from 40 trials compared by their best map_40_findings." in plot_of(section).caption


def test_stopped_trials_are_counted_and_the_step_is_told() -> None:
    caption = plot_of(section_of(trials_by_rate(24, stopped=5))).caption
    assert "from 24 trials, 5 of them stopped early, compared" in caption
    assert "up to step 2,000, the last that all of them reached" in caption


def test_of_scores_by_chance_no_field_is_told() -> None:
    section = section_of(trials_by_rate(MIN_TRIALS, matters=False))
    assert "no field is shown to matter more" in str(section.blocks[0])
    assert len(set(plot_of(section).figure.data[0].marker.color)) == 1


def test_too_few_trials_have_a_sentence_and_no_figure() -> None:
    section = section_of([*trials_by_rate(MIN_TRIALS - 1), trial_of(BASES[1], 0.3)])
    (text,) = section.blocks
    assert "cannot be told from so few trials" in str(text)
    assert f"(faster_rcnn 0, yolox {MIN_TRIALS - 1})" in str(text)


def test_where_no_score_differs_that_is_said() -> None:
    same = [dataclasses.replace(t, history=[r | {"score": 0.3} for r in t.history]) for t in search_of(90)]
    told = [block for block in section_of(same).blocks if isinstance(block, str)]
    counts = [sum(t.status != "failed" for t in same if t.config.detector == family) for family in families(same)]
    assert [text.partition(":")[2] for text in told] == [
        f" no field varied among its {count} trials, or no score differed." for count in counts
    ]


def test_seed_and_fold_are_told_to_be_no_settings() -> None:
    trials = []
    for number in range(30):
        config = dataclasses.replace(YOLOX, fold=number % 3, seed=number // 3, policy="AE"[number % 2])
        history = history_of(config, 0.2 + 0.1 * config.fold, start=STARTED, steps=config.steps)
        trials.append(trial_of(config, 0.3, history=history))
    assert "Seed and fold are no settings" in str(section_of(trials).blocks[0])


def test_without_trials_there_is_no_section() -> None:
    assert importance([]) == []
