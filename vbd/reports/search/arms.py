"""The arms of a search: kinds and strengths of augmentation whose trials are alike in all else but seed and fold."""

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vbd import storage
from vbd.config import Policy, TrainConfig
from vbd.data.prepared import PreparedDataset, read_truths
from vbd.evaluation.arms import (
    Comparison,
    Errors,
    Spread,
    compare,
    errors_of,
    errors_of_samples,
    replicates_of,
    spread_of,
    whole_blocks,
)
from vbd.evaluation.matching import match
from vbd.records import Detections, Trial, Truth
from vbd.reports.search.figures import effective_strength, is_complete
from vbd.reports.search.measure import read_kept
from vbd.search.space.draws import block_of

_SEED = 0  # of the draws: equal trials get equal intervals
_READ_AT_ONCE = 4
_MOST_REPLICATES, _FEWEST_REPLICATES = 1_000, 200
# Boxes times replicates that are weighed in some minutes.
_MAX_WEIGHED = 10_000_000_000

Block = tuple[int, int]  # seed, fold
Redrawn = dict[str, NDArray[np.float64]]  # scores on redrawn images (replicates,), by trial id


@dataclass(frozen=True, order=True)
class Arm:
    """A kind of augmentation, how strong it is, and for how many steps it was trained."""

    policy: Policy
    strength: float  # 0 for policy A
    steps: int

    def __str__(self) -> str:
        return "no augmentation (policy A)" if self.policy == "A" else f"policy {self.short}"

    @property
    def short(self) -> str:
        """The arm in a table or a figure."""
        return "A (none)" if self.policy == "A" else f"{self.policy} at {self.strength:g}"


Cells = dict[Arm, dict[Block, Trial]]


@dataclass(frozen=True)
class Study:
    """The finished trials of one family that can be compared."""

    family: str
    cells: Cells  # at equal steps
    longer: Cells = field(default_factory=dict)  # of these arms, for more steps: at equal epochs
    others: int = 0  # finished trials that are none of them
    varied: tuple[str, ...] = ()  # the fields in which those differ

    @property
    def plain(self) -> Arm | None:
        """The arm without augmentation."""
        return next((arm for arm in self.cells if arm.policy == "A"), None)


@dataclass(frozen=True)
class Compared:
    """Arms held against each other, in this order."""

    arms: tuple[Arm, ...]
    basis: Literal[
        "blocks", "samples", "images"
    ]  # shared blocks; trials that share none; one block, by its images alone
    blocks: tuple[Block, ...]  # of all the arms; of samples those of any
    means: NDArray[np.float64]  # (arms,)
    errors: Errors
    comparison: Comparison
    spread: Spread
    left_out: int  # finished trials that belong to no whole block
    missing: tuple[Arm, ...]  # arms that have too few trials to be compared

    @property
    def covers_images(self) -> bool:
        """Whether the choice of images is counted beside that of blocks."""
        return self.spread.covers_images

    @property
    def best(self) -> Arm:
        """The arm of the best mean."""
        return self.arms[self.comparison.best]

    @property
    def rivals(self) -> list[Arm]:
        """The arms that are not shown to be worse than that, best mean first."""
        order = np.argsort(-self.means, kind="stable").tolist()
        return [self.arms[i] for i in order if self.comparison.may_be_best[i] and i != self.comparison.best]


# Why arms cannot be compared.
Obstacle = Literal["one arm", "one block", "no common block"]
Found = Compared | Obstacle


# -------------------------------------------------------------------------------------------------------------- trials


def study_of(family: str, trials: Sequence[Trial]) -> Study:
    """The largest set of a family's finished trials that differ in policy, strength, seed and fold alone.

    Of equally large ones that of fewer steps, then that of the best mean. Trials whose strength changed on the way are no arms.
    """
    mine = [t for t in trials if t.config.detector == family and is_complete(t) and not t.config.phase_steps]
    if not mine:
        return Study(family, {})
    alike: dict[TrainConfig, list[Trial]] = defaultdict(list)
    for trial in mine:
        alike[_all_else(trial.config)].append(trial)
    setting, chosen = max(alike.items(), key=_size)
    cells = _cells(chosen)
    longer = [
        trial
        for trial in mine
        if trial.config.steps > setting.steps
        and _without_budget(_all_else(trial.config)) == _without_budget(setting)
        and replace(_arm(trial.config), steps=setting.steps) in cells
    ]
    compared = {trial.trial_id for trial in (*chosen, *longer)}
    others = [trial for trial in mine if trial.trial_id not in compared]
    return Study(family, cells, _cells(longer), len(others), _varied([setting, *(t.config for t in others)]))


def _size(setting: tuple[TrainConfig, list[Trial]]) -> tuple[int, int, int, float]:
    config, trials = setting
    arms = {_arm(trial.config) for trial in trials}
    return len(arms), len(trials), -config.steps, float(np.mean([trial.score for trial in trials]))


def _arm(config: TrainConfig) -> Arm:
    return Arm(config.policy, effective_strength(config), config.steps)


def _all_else(config: TrainConfig) -> TrainConfig:
    return replace(config, policy="A", strength=1.0, seed=0, fold=0)


def _without_budget(config: TrainConfig) -> TrainConfig:
    """Equal epochs stretch the whole schedule."""
    return replace(config, steps=0, report_every=0, warmup_steps=0)


def _cells(trials: Sequence[Trial]) -> Cells:
    cells: Cells = defaultdict(dict)
    for trial in sorted(trials, key=lambda trial: (_arm(trial.config), block_of(trial.config))):
        cells[_arm(trial.config)].setdefault(block_of(trial.config), trial)
    return dict(cells)


def _varied(configs: Sequence[TrainConfig]) -> tuple[str, ...]:
    names = (f.name for f in dataclasses.fields(TrainConfig) if f.name not in ("policy", "strength", "seed", "fold"))
    return tuple(name for name in names if len({getattr(config, name) for config in configs}) > 1)


# -------------------------------------------------------------------------------------------------------------- images


def redraw(studies: Sequence[Study], dataset: PreparedDataset, *, max_weighed: int = _MAX_WEIGHED) -> Redrawn:
    """Scores of the studies' trials on redrawn images of their folds, the same for all trials of a fold.

    Trials whose detections are not there any more are left out. The more boxes, the fewer replicates.
    """
    cells = [cells for study in studies if len(study.cells) > 1 for cells in (study.cells, study.longer)]
    kept = [trial for each in cells for row in each.values() for trial in row.values() if trial.detections]
    truths: dict[int, list[Truth]] = {}
    found: Redrawn = {}
    replicates = _MOST_REPLICATES
    for start in range(0, len(kept), _READ_AT_ONCE):
        batch = kept[start : start + _READ_AT_ONCE]
        read = storage.in_threads(read_kept, [trial.detections for trial in batch])
        if start == 0:
            boxes = sum(len(each.boxes) for detections in read for each in detections) * len(kept) // len(batch)
            replicates = int(np.clip(max_weighed // max(boxes, 1), _FEWEST_REPLICATES, _MOST_REPLICATES))
        for trial, detections in zip(batch, read, strict=True):
            fold = trial.config.fold
            if fold not in truths:
                truths[fold] = read_truths(dataset, fold)
            if detections:
                found[trial.trial_id] = _redrawn(trial, detections, truths[fold], replicates=replicates)
    return found


def _redrawn(
    trial: Trial, detections: Sequence[Detections], truths: Sequence[Truth], *, replicates: int
) -> NDArray[np.float64]:
    config = trial.config
    found = match(detections, truths)
    return replicates_of(found, seed=config.fold, replicates=replicates, family=config.detector)[1]


# ---------------------------------------------------------------------------------------------------------- comparison


def compare_arms(cells: Cells, redrawn: Redrawn) -> Found:
    """The arms within their shared blocks; where they share none, as samples; in one block, by its images alone."""
    arms = sorted(cells)
    if len(arms) < 2:
        return "one arm"
    blocks = sorted({block for row in cells.values() for block in row})
    is_there = np.array([[block in cells[arm] for block in blocks] for arm in arms])
    rows, columns = _table(is_there)
    repeated = [arm for arm in arms if len(cells[arm]) > 1]
    is_table = len(rows) > 1 and len(columns) > 1
    # A table that leaves most trials out tells less than they do.
    if len(repeated) > 1 and not (is_table and 2 * len(rows) * len(columns) >= is_there.sum()):
        return _as_samples(cells, repeated)
    if len(rows) < 2 or len(columns) == 0:
        return "no common block"
    return _in_blocks(cells, [arms[i] for i in rows], [blocks[i] for i in columns], redrawn)


def _table(is_there: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The largest whole table, of two blocks or more where there is one: one block does not tell how training varies."""
    rows, columns = whole_blocks(is_there)
    repeated = np.flatnonzero(is_there.sum(1) > 1)
    if len(columns) == 1 and len(repeated) > 1:
        of_repeated, several = whole_blocks(is_there[repeated])
        if len(several) > 1 and len(of_repeated) > 1:
            return repeated[of_repeated], several
    return rows, columns


def _in_blocks(
    cells: Cells, arms: Sequence[Arm], blocks: Sequence[Block], redrawn: Redrawn
) -> Compared | Literal["one block"]:
    table = [[cells[arm][block] for block in blocks] for arm in arms]
    names = [[trial.trial_id for trial in row] for row in table]
    is_redrawn = all(name in redrawn for row in names for name in row)
    again = np.array([[redrawn[name] for name in row] for row in names]) if is_redrawn else None
    scores = np.array([[trial.score for trial in row] for row in table])
    spread = spread_of(scores, None if again is None else np.moveaxis(again, -1, 0))
    if not (spread.covers_images or spread.covers_training):
        return "one block"
    means, errors = scores.mean(1), errors_of(spread, seed=_SEED)
    return Compared(
        arms=tuple(arms),
        basis="blocks" if spread.covers_training else "images",
        blocks=tuple(blocks),
        means=means,
        errors=errors,
        comparison=compare(means, errors),
        spread=spread,
        left_out=sum(map(len, cells.values())) - scores.size,
        missing=tuple(arm for arm in cells if arm not in arms),
    )


def _as_samples(cells: Cells, arms: Sequence[Arm]) -> Compared:
    samples = [np.array([trial.score for trial in cells[arm].values()]) for arm in arms]
    means, errors = np.array([sample.mean() for sample in samples]), errors_of_samples(samples, seed=_SEED)
    degrees = sum(len(sample) - 1 for sample in samples)
    pooled = sum(float(((sample - sample.mean()) ** 2).sum()) for sample in samples) / degrees
    return Compared(
        arms=tuple(arms),
        basis="samples",
        blocks=tuple(sorted({block for arm in arms for block in cells[arm]})),
        means=means,
        errors=errors,
        comparison=compare(means, errors),
        spread=Spread(np.zeros((0, len(arms))), pooled, 0.0, min(map(len, samples))),
        left_out=sum(map(len, cells.values())) - sum(map(len, samples)),
        missing=tuple(arm for arm in cells if arm not in arms),
    )
