from collections import Counter
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from tests.search.datasets import labels_alone
from vbd.config import Candidate, RunOptions, SearchConfig, TrainConfig, config_hash
from vbd.config.presets import smoke, study
from vbd.errors import InputError
from vbd.search.space.draws import check_micro_batches, describe, draw_configs, random_draws, spaces_of

SEARCH = SearchConfig(
    preset="test",
    candidates=(
        Candidate(
            TrainConfig(),
            choices={"policy": ("A", "B", "C"), "strength": (0.5, 1.0), "normal_share": (0.1, 0.4)},
            ranges={"learning_rate": (1e-4, 1e-2)},
            trials=12,
        ),
        Candidate(
            TrainConfig(detector="faster_rcnn", variant="resnet50", strength=0.5),
            choices={"policy": ("A", "E")},
            ranges={"learning_rate": (1e-5, 1e-3)},
            trials=4,
        ),
    ),
)


def _one(candidate: Candidate, **fields: object) -> SearchConfig:
    return replace(SEARCH, candidates=(candidate,), **fields)


def test_draws_repeat_with_the_seed_and_change_with_it() -> None:
    assert draw_configs(SEARCH) == draw_configs(SEARCH)
    assert draw_configs(SEARCH) != draw_configs(replace(SEARCH, seed=1))


def test_every_choice_is_drawn_equally_often() -> None:
    mine = [config for config in draw_configs(SEARCH) if config.detector == "yolox"]
    assert len(mine) == 12
    assert Counter(config.policy for config in mine) == {"A": 4, "B": 4, "C": 4}
    assert Counter(config.normal_share for config in mine) == {0.1: 6, 0.4: 6}


def test_learning_rates_fill_each_familys_own_range() -> None:
    for candidate in SEARCH.candidates:
        low, high = candidate.ranges["learning_rate"]
        rates = sorted(c.learning_rate for c in draw_configs(SEARCH) if c.detector == candidate.base.detector)
        assert low <= rates[0] <= rates[-1] <= high
        # One draw in each of n slices of the logarithmic range.
        ratio = (high / low) ** (1 / len(rates))
        for i, rate in enumerate(rates):
            assert low * ratio**i * 0.99 <= rate <= low * ratio ** (i + 1) * 1.01


def test_whole_fields_are_drawn_whole_and_bounds_from_zero_are_filled_evenly() -> None:
    ranges = {"warmup_steps": (100, 900), "normal_share": (0, 0.5), "learning_rate": (0.00123456, 0.00123457)}
    configs = draw_configs(_one(Candidate(TrainConfig(), ranges=ranges, trials=50)))
    assert len(configs) == 50
    assert all(type(config.warmup_steps) is int and 100 <= config.warmup_steps <= 900 for config in configs)
    assert sum(config.normal_share < 0.25 for config in configs) == 25
    # Three digits, but never outside.
    assert {config.learning_rate for config in configs} == {0.00123456}


def test_a_draw_that_is_there_already_is_drawn_again() -> None:
    candidate = Candidate(TrainConfig(), choices={"policy": ("A", "B"), "strength": (0.5, 1.0)}, trials=3)
    configs = draw_configs(_one(candidate))
    assert {(config.policy, config.strength) for config in configs} == {("A", 1.0), ("B", 0.5), ("B", 1.0)}
    few = Candidate(TrainConfig(), ranges={"batch_size": (1, 4)}, trials=4)
    assert sorted(config.batch_size for config in draw_configs(_one(few))) == [1, 2, 3, 4]


def test_a_space_that_holds_less_than_was_asked_for_is_drawn_whole_and_told() -> None:
    candidate = Candidate(TrainConfig(), choices={"policy": ("A", "B"), "strength": (0.5, 1.0)}, trials=9)
    assert len(draw_configs(_one(candidate))) == 3
    assert "yolox nano: 3 trials" in describe(_one(candidate))
    assert "9 were asked for, but the space holds no more" in describe(_one(candidate))
    assert "asked for" not in describe(SEARCH)


def test_fields_that_change_nothing_stand_at_one_value() -> None:
    choices = {
        "policy": ("A", "B"),
        "strength": (0.0, 0.5),
        "sampler": ("repeat_factor", "instance_aware", "class_aware"),
        "repeat_threshold": (0, 0.1),
    }
    configs = draw_configs(_one(Candidate(TrainConfig(), choices=choices), searcher="grid"))
    told = {(c.policy, c.strength, c.sampler, c.repeat_threshold) for c in configs}
    policies = {("A", 1.0), ("B", 0.5)}
    samplers = {("repeat_factor", 0.0), ("repeat_factor", 0.1), ("instance_aware", 0.1), ("class_aware", 0.0)}
    assert told == {(*policy, *sampler) for policy in policies for sampler in samplers}
    assert len(configs) == len(told)
    # A whole number and its float are one run, and one hash.
    assert {type(config.repeat_threshold) for config in configs} == {float}


def test_the_fusion_that_the_dataset_has_is_no_other_run(tmp_path: Path) -> None:
    candidate = Candidate(TrainConfig(), choices={"reader_fusion": ("", "wbf", "nms")})
    search = _one(candidate, searcher="grid")
    dataset = labels_alone(tmp_path / "three", [0])
    assert [config.reader_fusion for config in draw_configs(search, dataset)] == ["", "nms"]
    assert "reader_fusion as prepared|wbf|nms" in describe(search, dataset)
    single = labels_alone(tmp_path / "one", [0], readers=1)
    assert [config.reader_fusion for config in draw_configs(search, single)] == [""]
    asked = replace(search, candidates=(Candidate(TrainConfig(reader_fusion="nms")),))
    with pytest.raises(InputError, match=r"reader_fusion is 'nms' for yolox, but .* one reader only"):
        draw_configs(asked, single)


def test_what_a_space_draws_is_found_in_it_again() -> None:
    choices = {
        "policy": ("A", "B", "E"),
        "strength": (0.3, 0.6),
        "sampler": ("instance_aware", "class_aware"),
        "repeat_threshold": (0.0, 0.1),
        "anchor_ratios": ((), (0.5, 2.0)),
    }
    base = TrainConfig(detector="retinanet", variant="resnet18")
    (space,) = spaces_of(_one(Candidate(base, choices=choices, ranges={"learning_rate": (1e-4, 1e-3)})))
    for config in random_draws(space, 40, seed=1):
        values = space.values(config)
        assert values is not None
        assert space.config(values) == config
        assert ("strength" in values) == (config.policy != "A")
        assert ("repeat_threshold" in values) == (config.sampler != "class_aware" or values["sampler"] != "class_aware")
    inside = random_draws(space, 1, seed=1)[0]
    for change in ({"learning_rate": 2e-3}, {"variant": "resnet50"}, {"seed": 1}, {"policy": "C", "strength": 0.3}):
        assert space.values(replace(inside, **change)) is None, change


def test_the_first_trials_come_from_every_family() -> None:
    assert {config.detector for config in draw_configs(SEARCH)[:2]} == {"yolox", "faster_rcnn"}


def test_a_grid_too_large_is_counted() -> None:
    choices = {"seed": tuple(range(1000)), "batch_size": tuple(range(1, 201))}
    with pytest.raises(InputError, match="a grid of 200,000 combinations for yolox; want at most 100,000"):
        draw_configs(_one(Candidate(TrainConfig(), choices=choices), searcher="grid"))


def test_a_grid_too_large_is_counted_before_it_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vbd.search.space.draws._combinations", lambda space: pytest.fail("it was built"))
    choices = {name: tuple(i / 100 for i in range(1, 101)) for name in ("strength", "weight_decay", "multi_scale")}
    choices["multi_scale"] = tuple(i / 200 for i in range(100))
    with pytest.raises(InputError, match="a grid of 1,000,000 combinations for yolox"):
        spaces_of(_one(Candidate(TrainConfig(policy="B"), choices=choices), searcher="grid"))


@pytest.mark.parametrize(
    ("candidate", "told"),
    [
        (Candidate(TrainConfig(), choices={"colour": (1,)}), "yolox: colour is no field .* image_size"),
        (Candidate(TrainConfig(), choices={"detector": ("fcos",)}), "yolox: detector cannot be varied: each family"),
        (Candidate(TrainConfig(), ranges={"steps": (1, 2)}), "yolox: steps cannot be varied: .* equal steps"),
        (Candidate(TrainConfig(), choices={"phase_steps": ((1,),)}), "phase_steps cannot be varied"),
        (Candidate(TrainConfig(), choices={"policy": ()}), "yolox: policy has no values"),
        (Candidate(TrainConfig(), choices={"image_size": (128, 100)}), "image_size is 100 for yolox"),
        (Candidate(TrainConfig(), choices={"policy": ("A", "Z")}), "policy is 'Z'; want one of 'A', 'B'"),
        (Candidate(TrainConfig(), choices={"batch_size": (8, "x")}), "batch_size is 'x'; want a whole number"),
        (Candidate(TrainConfig(), choices={"anchor_ratios": ((), (1.0,))}), r"anchor_ratios is \(1.0,\) for yolox"),
        (Candidate(TrainConfig(), choices={"batch_size": (8, 2), "accumulate": (1, 4)}), "accumulate is 4 for yolox"),
        (
            Candidate(TrainConfig(), ranges={"learning_rate": (1e-2, 1e-3)}),
            r"learning_rate 0.01..0.001: .* lower first",
        ),
        (
            Candidate(TrainConfig(), ranges={"learning_rate": (0, 1e-3)}),
            "learning_rate is 0.0; want more than 0 and at most 10",
        ),
        (Candidate(TrainConfig(), ranges={"policy": (1, 2)}), "policy 1..2: the field is no number"),
        (Candidate(TrainConfig(), ranges={"pretrained": (0, 1)}), "pretrained 0..1: the field is no number"),
        (Candidate(TrainConfig(), ranges={"batch_size": (1.5, 4)}), "batch_size 1.5..4: want whole numbers"),
        (Candidate(TrainConfig(), ranges={"seed": (1, 2)}, choices={"seed": (1,)}), "seed has both values and bounds"),
        (Candidate(TrainConfig(), trials=0), "trials 0 for yolox: want 1 to 100000"),
    ],
)
@pytest.mark.parametrize("searcher", ["random", "optuna", "grid"])
def test_a_space_that_cannot_be_drawn_from_is_told_before_the_search(
    candidate: Candidate, told: str, searcher: str
) -> None:
    with pytest.raises(InputError, match=f"preset test: .*{told}") as caught:
        describe(_one(candidate, searcher=searcher))
    assert "\n" not in str(caught.value)


def test_a_fold_that_the_dataset_has_not_is_told(tmp_path: Path) -> None:
    search = _one(Candidate(TrainConfig(), choices={"fold": (0, 3)}))
    with pytest.raises(InputError, match=r"fold is 3 for yolox; .* has folds 0 to 2"):
        draw_configs(search, labels_alone(tmp_path, [0]))


def test_two_candidates_of_one_family_are_refused() -> None:
    with pytest.raises(InputError, match="families yolox, yolox; want one candidate for each"):
        spaces_of(replace(SEARCH, candidates=(SEARCH.candidates[0],) * 2))


def test_the_study_runs_whole_blocks_of_the_same_arms(tmp_path: Path) -> None:
    dataset = labels_alone(tmp_path, [0, 12], [3], [4], [5])
    configs = draw_configs(study(), dataset)
    assert len({config_hash(config) for config in configs}) == len(configs)
    blocks = [(block, list(mine)) for block, mine in groupby(configs, key=lambda c: (c.seed, c.fold))]
    assert [block for block, _ in blocks] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    arms = [{replace(config, seed=0, fold=0) for config in mine} for _, mine in blocks]
    assert all(arm == arms[0] for arm in arms)
    # Of each family: A, four policies at three strengths, and three at equal epochs.
    assert Counter(config.detector for config in arms[0]) == {"faster_rcnn": 16, "yolox": 16, "efficientdet": 16}
    assert {config.strength for config in arms[0] if config.policy == "A"} == {1.0}
    assert len({config.detector for config in blocks[0][1][:3]}) == 3


def test_the_study_compares_at_equal_steps_but_for_the_arms_of_equal_epochs(tmp_path: Path) -> None:
    dataset = labels_alone(tmp_path, [0, 12], [3], [4], [5])  # D draws the first seven times
    mine = [config for config in draw_configs(study(), dataset) if (config.detector, config.seed) == ("yolox", 0)]
    base = next(candidate.base for candidate in study().candidates if candidate.base.detector == "yolox")
    longer = {config.policy: config for config in mine if config.steps != base.steps}
    equal = [config for config in mine if config.steps == base.steps]
    assert len({(c.steps, c.learning_rate, c.batch_size, c.report_every, c.warmup_steps) for c in equal}) == 1
    assert {policy: config.steps / base.steps for policy, config in longer.items()} == {"B": 4, "C": 7, "D": 2.5}
    for config in longer.values():
        assert config.strength == 1.0
        assert config.steps % config.report_every == 0
        assert config.steps // config.report_every == base.steps // base.report_every
        assert config.warmup_steps / config.steps == base.warmup_steps / base.steps
    assert "at equal epochs: B 80,000 steps, C 140,000 steps, D 50,000 steps" in describe(study(), dataset)
    assert "6 blocks of one seed and fold" in describe(study(), dataset)


def test_the_description_counts_the_trials_and_says_when_a_field_means_something() -> None:
    text = describe(SEARCH)
    assert text.startswith("test: 16 trials, drawn at random")
    assert "  yolox nano: 12 trials, 20,000 steps x 16 images of 512 px" in text
    assert "policy A|B|C; strength 0.5|1 (not with policy A); normal_share 0.1|0.4" in text
    assert "learning_rate 0.0001..0.01" in text
    assert "learning_rate" not in describe(replace(SEARCH, searcher="grid"))
    assert max(map(len, text.splitlines())) <= 120


def test_the_smoke_search_has_every_family() -> None:
    assert {config.detector for config in draw_configs(smoke())} == {
        "yolox",
        "faster_rcnn",
        "efficientdet",
        "classifier",
    }


@pytest.mark.parametrize(
    ("choices", "workers", "options", "message"),
    [
        ({"batch_size": (1, 8)}, 1, RunOptions(), "batch_size 1 puts 1 image of 32 px"),
        (
            {"accumulate": (2, 8), "image_size": (32, 128)},
            1,
            RunOptions(),
            "batch_size 8 with accumulate 8 puts 1 image",
        ),
        ({"multi_scale": (0.0, 0.5)}, 8, RunOptions(), "batch_size 8 with 8 workers puts 1 image of 32 px"),
        ({"batch_size": (4, 8)}, 4, RunOptions(), "batch_size 4 with 4 workers"),
        ({"batch_size": (4, 8)}, 4, RunOptions(sync_batchnorm=True), ""),
        ({"batch_size": (2, 8)}, 1, RunOptions(), ""),
    ],
)
def test_a_space_with_too_few_images_at_a_time_is_refused_before_the_search(
    choices: dict[str, tuple[Any, ...]], workers: int, options: RunOptions, message: str
) -> None:
    base = TrainConfig(image_size=64 if "multi_scale" in choices else 32, batch_size=8)
    search = replace(_one(Candidate(base, choices=choices)), workers_per_trial=workers)
    if not message:
        check_micro_batches(search, options)
        return
    with pytest.raises(InputError, match=f"^preset test: {message}"):
        check_micro_batches(search, options)
