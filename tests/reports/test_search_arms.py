import dataclasses
import math

import numpy as np
import pytest

from tests.reports.searches import search_of, trial_of, with_detections
from tests.reports.studies import ARMS, BLOCKS, YOLOX, study_trials
from vbd.config import TrainConfig
from vbd.data.prepared import open_dataset
from vbd.records import Trial
from vbd.reports.search.arms import Arm, Compared, Study, compare_arms, redraw, study_of

PAIR = (("A", 1.0), ("E", 0.5))
PLAIN, STRONG = Arm("A", 0.0, 8_000), Arm("E", 0.5, 8_000)


def study(trials: list[Trial]) -> Study:
    return study_of("yolox", trials)


def compared(trials: list[Trial], redrawn: dict[str, np.ndarray] | None = None) -> Compared:
    found = compare_arms(study(trials).cells, redrawn or {})
    assert isinstance(found, Compared)
    return found


def with_cell(arm: str, block: tuple[int, int]) -> Trial:
    """A trial of one arm on one block."""
    policy, strength = next(pair for pair in ARMS if f"{pair[0]}{pair[1]:g}" == arm)
    config = dataclasses.replace(YOLOX, policy=policy, strength=strength, seed=block[0], fold=block[1])
    return trial_of(config, 0.3 + 0.01 * block[0])


# -------------------------------------------------------------------------------------------------------------- trials


def test_arms_are_policy_and_strength_and_blocks_seed_and_fold() -> None:
    found = study(study_trials())
    assert list(found.cells) == [PLAIN, *(Arm(p, s, 8_000) for p in "BE" for s in (0.25, 0.5, 1.0))]
    assert all(tuple(row) == BLOCKS for row in found.cells.values())
    assert found.plain == PLAIN
    assert (found.others, found.longer) == (0, {})
    assert [str(PLAIN), str(STRONG)] == ["no augmentation (policy A)", "policy E at 0.5"]


@pytest.mark.parametrize("change", [{"status": "stopped"}, {"status": "failed"}, {"score": math.nan}])
def test_only_trials_that_finished_with_a_score_count(change: dict) -> None:
    first, *rest = study_trials()
    assert sum(map(len, study([dataclasses.replace(first, **change), *rest]).cells.values())) == len(rest)


def test_trials_of_another_setting_or_family_or_with_a_schedule_are_no_arms() -> None:
    trials = study_trials()
    faster = [trial_of(dataclasses.replace(t.config, learning_rate=0.5), 0.9) for t in trials[:3]]
    phases = {"phase_steps": (10,), "phase_strengths": (0.4,), "phase_rates": (1.0,)}
    scheduled = trial_of(dataclasses.replace(YOLOX, **phases), 0.9)
    other = trial_of(TrainConfig(detector="fcos", variant="resnet50"), 0.9)
    found = study([*faster, *trials, scheduled, other])
    assert found.cells == study(trials).cells
    assert (found.others, found.varied) == (3, ("learning_rate",))


def test_of_equal_settings_that_of_the_better_mean_is_taken() -> None:
    trials = study_trials(arms=PAIR)
    better = [trial_of(dataclasses.replace(t.config, learning_rate=0.5), t.score + 0.1) for t in trials]
    (config,) = {
        dataclasses.replace(trial.config, seed=0, fold=0)
        for trial in study([*trials, *better]).cells[PLAIN].values()
    }  # fmt: skip
    assert config.learning_rate == 0.5


def test_longer_runs_of_the_same_arms_are_those_of_equal_epochs() -> None:
    trials = study_trials(equal_epochs={"B": 4.0, "E": 1.5})
    alone = trial_of(dataclasses.replace(YOLOX, policy="C", steps=16_000), 0.9)  # has no arm at equal steps
    found = study([*trials, alone])
    assert list(found.longer) == [Arm("B", 1.0, 32_000), Arm("E", 1.0, 12_000)]
    assert len(found.cells) == len(ARMS)
    assert found.others == 1


def test_a_family_without_finished_trials_has_no_arms() -> None:
    assert study([]) == Study("yolox", {})
    assert study([]).plain is None


# ---------------------------------------------------------------------------------------------------------- comparison


def test_whole_blocks_are_compared_and_what_is_left_out_is_counted() -> None:
    trials = study_trials(lambda config: 0.1 * (config.policy == "E"))
    found = compared(trials[:-2])  # the last block lacks two arms
    assert (found.basis, found.blocks, found.left_out, found.missing) == ("blocks", BLOCKS[:-1], 5, ())
    assert found.best.policy == "E"
    assert {arm.policy for arm in found.rivals} == {"E"}
    np.testing.assert_allclose(found.means[0], np.mean([t.score for t in trials[:-7] if t.config.policy == "A"]))


def test_an_arm_that_failed_almost_everywhere_costs_itself() -> None:
    trials = [t for t in study_trials() if t.config.policy != "A" or t.config.seed + t.config.fold == 0]
    found = compared(trials)
    assert (found.missing, len(found.blocks), found.left_out) == ((PLAIN,), 6, 1)


def test_two_blocks_of_some_arms_are_preferred_to_one_of_all() -> None:
    """One block does not tell how training varies."""
    found = compared(study_trials()[: len(ARMS) + 3])
    assert (found.basis, len(found.arms), len(found.blocks), len(found.missing)) == ("blocks", 3, 2, 4)


def test_arms_without_common_blocks_are_samples() -> None:
    trials = [with_cell("A1", (seed, 0)) for seed in (0, 2, 4)] + [with_cell("E0.5", (seed, 0)) for seed in (1, 3, 5)]
    found = compared([*trials, with_cell("B1", (9, 0))])
    assert (found.basis, found.arms, len(found.blocks)) == ("samples", (PLAIN, STRONG), 6)
    assert (found.left_out, found.missing) == (1, (Arm("B", 1.0, 8_000),))
    # Means 0.32 and 0.33, each of three trials with a variance of 0.0004.
    np.testing.assert_allclose(found.means, [0.32, 0.33])
    assert found.spread.residual == pytest.approx(0.0004)
    assert found.comparison.may_be_best == (True, True)


@pytest.mark.parametrize(
    ("trials", "obstacle"),
    [
        ([], "one arm"),
        ([with_cell("A1", (0, 0)), with_cell("A1", (1, 0))], "one arm"),
        ([with_cell("A1", (0, 0)), with_cell("E0.5", (0, 0))], "one block"),
        ([with_cell("A1", (0, 0)), with_cell("E0.5", (1, 0))], "no common block"),
    ],
)
def test_what_stands_in_the_way_is_named(trials: list[Trial], obstacle: str) -> None:
    assert compare_arms(study(trials).cells, {}) == obstacle


def test_random_draws_form_no_arms() -> None:
    assert compare_arms(study(search_of(30)).cells, {}) == "one arm"


# -------------------------------------------------------------------------------------------------------------- images


def test_one_block_is_compared_by_its_images_alone() -> None:
    trials = study_trials(arms=PAIR, blocks=[(0, 0)], noise=0)
    rng = np.random.default_rng(0)
    found = compared(trials, {t.trial_id: t.score + rng.normal(0, 0.01, 500) for t in trials})
    assert (found.basis, found.covers_images, found.spread.covers_training) == ("images", True, False)
    own = found.comparison.means[0]
    assert own.high - own.low == pytest.approx(2 * 1.96 * 0.01, rel=0.15)


def test_images_count_only_when_those_of_all_trials_are_there() -> None:
    trials = study_trials(arms=PAIR)
    rng = np.random.default_rng(0)
    redrawn = {t.trial_id: t.score + rng.normal(0, 0.01, 300) for t in trials}
    assert compared(trials, redrawn).covers_images
    assert not compared(trials, {name: redrawn[name] for name in list(redrawn)[1:]}).covers_images


def test_detections_are_redrawn_alike_within_a_fold(dataset: str, tmp_path) -> None:
    blocks = [(0, 0), (1, 0), (0, 1)]
    trials = with_detections(str(tmp_path), study_trials(arms=PAIR, blocks=blocks), dataset)
    found = redraw([study(trials)], open_dataset(dataset))
    assert set(found) == {trial.trial_id for trial in trials}
    assert {values.shape for values in found.values()} == {(1_000,)}
    # Each fold has one image with findings and one without: where the first is not drawn there is no score.
    unknown = {trial.trial_id: np.isnan(found[trial.trial_id]) for trial in trials}
    for fold in (0, 1):
        first, *others = [unknown[t.trial_id] for t in trials if t.config.fold == fold]
        assert 0.1 < first.mean() < 0.4
        assert all(np.array_equal(first, other) for other in others)


def test_many_boxes_are_redrawn_less_often_and_lost_detections_not_at_all(dataset: str, tmp_path) -> None:
    trials = with_detections(str(tmp_path), study_trials(arms=PAIR, blocks=[(0, 0)]), dataset)
    lost = dataclasses.replace(trials[0], detections=str(tmp_path / "gone.parquet"))
    found = redraw([study([lost, trials[1]])], open_dataset(dataset), max_weighed=1)
    assert {name: len(values) for name, values in found.items()} == {trials[1].trial_id: 200}


def test_trials_that_form_no_arms_are_not_read(dataset: str, tmp_path) -> None:
    trials = with_detections(str(tmp_path), study_trials(arms=PAIR[:1], blocks=[(0, 0), (1, 0)]), dataset)
    assert redraw([study(trials)], open_dataset(dataset)) == {}
