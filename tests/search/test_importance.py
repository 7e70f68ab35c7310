"""The importance of fields, on made-up trials of which it is known what their scores depend on."""

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest

from vbd.config import TrainConfig, config_hash
from vbd.records import Trial
from vbd.reports.search.fanova import MIN_TRIALS, Weighed, shares_of, varied, weighed

BASE = TrainConfig(steps=400, report_every=100)


def trial(config: TrainConfig, scores: list[float | None], *, status: str = "finished") -> Trial:
    """A trial that reported these scores, 100 steps apart."""
    history = [{"step": 100 * (i + 1), "score": score} for i, score in enumerate(scores)]
    name = config_hash(config)
    return Trial(name[:10], config, name, 0.0, 0, "", history=history, status=status)


def configs(count: int, *, seed: int = 0) -> list[TrainConfig]:
    """Drawn at random in four fields."""
    rng = np.random.default_rng(seed)
    return [
        dataclasses.replace(
            BASE,
            policy="ABE"[int(rng.integers(3))],
            strength=float(rng.choice([0.25, 0.5, 1.0])),
            learning_rate=float(np.exp(rng.uniform(-9, -5))),
            weight_decay=float(rng.uniform(0.01, 0.1)),
        )
        for _ in range(count)
    ]


def scored(count: int, score: Callable[[TrainConfig], float], *, noise: float = 0.01) -> Weighed:
    rng = np.random.default_rng(1)
    drawn = configs(count)
    return Weighed(tuple(drawn), np.array([score(c) + rng.normal(0, noise) for c in drawn]), 400, 0)


def by_rate(config: TrainConfig) -> float:
    return 0.3 - 0.05 * abs(math.log(config.learning_rate) + 7)


def test_the_field_that_makes_the_scores_comes_first_and_beyond_chance() -> None:
    first, *others = shares_of(scored(60, by_rate))
    assert first.name == "learning_rate"
    assert first.estimate > 0.7
    assert 0.5 < first.low <= first.high <= 1
    assert first.is_beyond_chance
    assert {share.name for share in others} == {"policy", "strength", "weight_decay"}
    assert max(share.estimate for share in others) < 0.1
    assert [share.estimate for share in others] == sorted((s.estimate for s in others), reverse=True)


def test_a_label_without_an_order_is_weighed_too() -> None:
    first, *_ = shares_of(scored(60, lambda config: 0.1 * (config.policy == "B")))
    assert (first.name, first.is_beyond_chance) == ("policy", True)


def test_of_scores_by_chance_alone_nothing_is_beyond_chance() -> None:
    shares = shares_of(scored(MIN_TRIALS, lambda config: 0.3))
    assert len(shares) == 4
    assert not any(share.is_beyond_chance for share in shares)
    assert max(share.high - share.low for share in shares) > 0.2  # few trials: wide ranges


def test_equal_trials_have_equal_shares() -> None:
    trials = scored(MIN_TRIALS, by_rate)
    assert shares_of(trials, seed=3) == shares_of(trials, seed=3)
    assert shares_of(trials, seed=3) != shares_of(trials, seed=4)


def test_where_nothing_varies_or_no_score_differs_there_are_no_shares() -> None:
    assert shares_of(Weighed((BASE,) * 30, np.arange(30.0), 400, 0)) == ()
    assert shares_of(Weighed(tuple(configs(30)), np.full(30, 0.3), 400, 0)) == ()


# ------------------------------------------------------------------------------------------------------------ columns


def test_the_strength_of_policy_a_is_nought() -> None:
    columns = varied([dataclasses.replace(BASE, policy=p, strength=s) for p, s in (("A", 1.0), ("B", 0.5), ("B", 1.0))])
    assert columns["strength"].places.tolist() == [0, 1, 2]
    assert columns["policy"].is_label
    assert not columns["strength"].is_label


def test_numbers_count_by_rank_and_seeds_as_names() -> None:
    rates = [
        dataclasses.replace(BASE, learning_rate=rate, seed=i % 3) for i, rate in enumerate((1e-2, 1e-5, 1e-3, 2e-5))
    ]
    columns = varied(rates)
    assert columns["learning_rate"].places.tolist() == [3, 0, 2, 1]
    assert columns["seed"].is_label
    assert set(columns) == {"learning_rate", "seed"}


def test_a_seed_of_its_own_for_each_trial_is_no_field() -> None:
    many = [dataclasses.replace(BASE, seed=i, batch_size=8 + i % 2) for i in range(20)]
    assert set(varied(many)) == {"batch_size"}


def test_fields_that_always_change_together_are_one() -> None:
    pairs = [dataclasses.replace(BASE, variant=v, batch_size=b) for v, b in (("nano", 16), ("s", 8), ("nano", 16))]
    assert list(varied(pairs)) == ["variant, batch_size"]
    # Each trial has values of its own of both: they part the trials alike, but order them otherwise.
    apart = [
        dataclasses.replace(BASE, learning_rate=r, weight_decay=w) for r, w in ((1e-3, 0.1), (2e-3, 0.3), (3e-3, 0.2))
    ]
    assert list(varied(apart)) == ["learning_rate", "weight_decay"]
    turned = [dataclasses.replace(BASE, learning_rate=r, weight_decay=1 - r) for r in (0.1, 0.2, 0.3)]
    assert list(varied(turned)) == ["learning_rate, weight_decay"]


def test_values_without_an_order_of_their_own_are_weighed() -> None:
    ratios = [dataclasses.replace(BASE, detector="faster_rcnn", anchor_ratios=r) for r in ((), (0.5, 2.0), ())]
    assert varied(ratios)["anchor_ratios"].places.tolist() == [0, 1, 0]


def test_of_a_schedule_its_last_values_count() -> None:
    phases = {"phase_steps": (100,), "phase_strengths": (0.8,), "phase_rates": (0.5,)}
    columns = varied([dataclasses.replace(BASE, policy="E"), dataclasses.replace(BASE, policy="E", **phases)])
    assert list(columns) == ["last strength, last rate"]


# ------------------------------------------------------------------------------------------------------------- trials


def test_trials_are_weighed_at_the_last_step_that_all_reached() -> None:
    one, other, third, fourth = configs(4)
    found = weighed([
        trial(one, [0.1, 0.3, 0.2, 0.4]),
        trial(other, [0.2, 0.1], status="stopped"),
        trial(third, [0.9], status="failed"),
        trial(fourth, [0.5], status="running"),
    ])  # fmt: skip
    assert found.configs == (one, other)
    assert found.scores.tolist() == [0.3, 0.2]
    assert (found.step, found.stopped) == (200, 1)


def test_without_stopped_trials_the_end_counts() -> None:
    found = weighed([trial(config, [0.1, 0.2, 0.4, 0.3]) for config in configs(3)])
    assert found.scores.tolist() == [0.4] * 3
    assert (found.step, found.stopped) == (400, 0)


def test_longer_runs_and_trials_without_a_score_are_left_out() -> None:
    one, other, third = configs(3)
    longer = dataclasses.replace(third, steps=800)
    found = weighed([trial(one, [0.1]), trial(other, [None]), trial(longer, [0.9])])
    assert found.configs == (one,)


@pytest.mark.parametrize("trials", [[], [trial(BASE, [])], [trial(BASE, [0.1], status="failed")]])
def test_nothing_to_weigh_is_not_enough(trials: list[Trial]) -> None:
    found = weighed(trials)
    assert found.configs == ()
    assert not found.is_enough


def test_enough_begins_at_the_least_number() -> None:
    assert not scored(MIN_TRIALS - 1, by_rate).is_enough
    assert scored(MIN_TRIALS, by_rate).is_enough
