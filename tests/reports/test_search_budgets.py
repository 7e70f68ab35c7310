"""Equal steps against equal epochs, where it is known what the steps and what the augmentation give."""

import re

import pytest

from tests.reports.studies import BLOCKS, YOLOX, Effect, study_trials
from vbd.config import TrainConfig
from vbd.records import Trial
from vbd.reports.page import Plot, Section, Table
from vbd.reports.search.arms import Compared, compare_arms, study_of
from vbd.reports.search.budgets import budgets, pairs_of

EPOCHS = {"B": 4.0, "E": 1.5}


def by_steps(config: TrainConfig) -> float:
    """Augmentation does nothing, more steps do."""
    return 0.05 * (config.steps > YOLOX.steps)


def by_augmentation(config: TrainConfig) -> float:
    """Steps do nothing, augmentation does."""
    return 0.05 * (config.policy != "A")


def section_of(trials: list[Trial]) -> Section:
    (section,) = budgets([study_of("yolox", trials)], {})
    return section


def study(effect: Effect, **options: object) -> list[Trial]:
    return study_trials(effect, equal_epochs=EPOCHS, **options)  # type: ignore[arg-type]


def words(section: Section) -> str:
    return " ".join(block for block in section.blocks if isinstance(block, str))


def test_what_more_steps_give_is_mistaken_for_augmentation_at_equal_epochs() -> None:
    text = words(section_of(study(by_steps)))
    assert re.search(r"The additional steps alone give 0\.0[45]\d \([^)]*\) for B at 1 with 4 times", text)
    assert "at equal epochs that is mistaken for augmentation" in text
    assert "Only at equal epochs B at 1 and E at 1 would be told to be better than no augmentation." in text


def test_what_augmentation_gives_stays_at_equal_steps() -> None:
    text = words(section_of(study(by_augmentation)))
    assert "Whether the additional steps themselves change the scores cannot be told." in text
    assert "mistaken" not in text
    assert re.search(r"at equal steps, are B at 1 0\.0[45]\d and 0\.0[45]\d; E at 1", text)


def test_each_difference_is_that_of_the_means() -> None:
    found = study_of("yolox", study(by_steps, noise=0.0))
    cells = found.cells | found.longer
    compared = compare_arms(cells, {})
    assert isinstance(compared, Compared)
    first, second = pairs_of(found, compared)
    assert (str(first.arm), first.times, second.times) == ("policy B at 1", 4.0, 1.5)
    differences = [pair.estimate for pair in (first.at_steps, first.at_epochs, first.by_budget)]
    assert differences == pytest.approx([0.0, 0.05, 0.05], abs=1e-9)


def test_both_ways_stand_beside_each_other() -> None:
    section = section_of(study(by_steps))
    (plot,) = [block for block in section.blocks if isinstance(block, Plot)]
    steps, epochs = plot.figure.data
    assert (steps.name, epochs.name) == ("equal steps", "equal epochs")
    assert max(steps.x) < 0.02 < 0.04 < min(epochs.x)
    assert list(plot.figure.layout.yaxis.ticktext) == ["B at 1,<br>×4 steps", "E at 1,<br>×1.5 steps"]
    (found,) = [block for block in section.blocks if isinstance(block, Table)]
    assert [(row[0], row[3]) for row in found.rows] == [("B at 1", "4"), ("E at 1", "1.5")]


def test_too_few_common_blocks_cannot_tell() -> None:
    text = words(section_of(study(by_steps, blocks=BLOCKS[:1])))
    assert "yolox: too few of these trials finished on the same seeds and folds to tell." in text


def test_without_equal_epochs_or_no_augmentation_there_is_no_section() -> None:
    assert budgets([study_of("yolox", study_trials(by_steps))], {}) == []
    without = [trial for trial in study(by_steps) if trial.config.policy != "A"]
    assert budgets([study_of("yolox", without)], {}) == []
