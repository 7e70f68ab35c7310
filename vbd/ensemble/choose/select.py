"""Which models to fuse, with what weights, and whether fusing is worth it at all.

An ensemble is made of images with ground truth by one procedure: calibrate, choose members, search weights. What it gains is
measured by the same procedure on a part of the images alone, scored on the others.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vbd.ensemble.choose.fused_score import FusedScore
from vbd.ensemble.choose.greedy import MIN_GAIN, Selection, Step, select_by_score, select_members
from vbd.ensemble.choose.weight_search import search_by_score, search_weights
from vbd.ensemble.scores.calibrate import Calibration, calibrate_crosswise, fit_calibration, split_parts
from vbd.errors import InputError
from vbd.evaluation.average_precision import average_precisions, mean_over_known
from vbd.evaluation.intervals import Interval, percentile_interval, replicate
from vbd.evaluation.matching import Matches
from vbd.fusion.detections import FusionOptions
from vbd.labels import NUM_FINDINGS
from vbd.records import Detections, Truth

__all__ = [
    "Choice",
    "FusionOptions",
    "HonestGain",
    "Procedure",
    "Selection",
    "Step",
    "Verdict",
    "choose",
    "honest_gain",
    "search_weights",
    "select_members",
]

# `single`: do not ensemble. `undecided`: the fused score is higher on held-out images, but the interval of the gain holds 0.
Verdict = Literal["ensemble", "undecided", "single"]


@dataclass(frozen=True)
class Procedure:
    """How an ensemble is made; see `choose`."""

    calibrate: bool = True  # else the detections are taken as they are
    rounds: int = 10  # of the greedy selection
    trials: int = 0  # of the weight search after it
    min_gain: float = MIN_GAIN  # what a round or the search must raise the score by
    options: FusionOptions = FusionOptions()  # noqa: RUF009 -- frozen; until the search chooses others


@dataclass(frozen=True)
class Choice:
    """What was chosen on some images, ready for any others."""

    selection: Selection
    calibrations: dict[str, Calibration]  # of the members and of the best single model; empty when not calibrated
    # Of the same models on the images they were chosen on: calibrated without each image.
    out_of_fold: dict[str, list[Detections]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def single(self) -> "Choice":
        """The best single model alone, in place of the members."""
        alone = dataclasses.replace(self.selection, weights={self.selection.best_single: 1.0})
        return dataclasses.replace(self, selection=alone)

    def calibrated(self, members: Mapping[str, Sequence[Detections]]) -> dict[str, list[Detections]]:
        """Raw detections of the members and of the best single model with the scores that they are fused by."""
        names = [*self.selection.weights, self.selection.best_single]
        return {
            name: self.calibrations[name].apply(members[name]) if self.calibrations else list(members[name])
            for name in dict.fromkeys(names)
        }

    def fuse(self, members: Mapping[str, Sequence[Detections]]) -> list[Detections]:
        """Raw detections of the members as one."""
        return self.selection.fuse(self.calibrated(members))


@dataclass(frozen=True)
class HonestGain:
    """Fused against the best single model, both chosen on other images than they are scored on.

    Scores are map_40_findings, the mean over the parts of the images.
    """

    fused: float
    single: float
    gain: Interval  # paired bootstrap over the images of each part
    verdict: Verdict
    choices: tuple[Choice, ...]  # one per part: chosen on all other parts

    @property
    def selections(self) -> tuple[Selection, ...]:
        """What was chosen for each part."""
        return tuple(choice.selection for choice in self.choices)


def held_out_parts(truths: Sequence[Truth], *, seed: int, parts: int = 2) -> NDArray[np.int64]:
    """The part that each image is in when the gain is measured: -> (n,)."""
    return split_parts([truth.image_id for truth in truths], parts, seed=seed, purpose="held out")


def choose(
    members: Mapping[str, Sequence[Detections]],
    truths: Sequence[Truth],
    *,
    seed: int,
    procedure: Procedure | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Choice:
    """Makes an ensemble of raw out-of-fold detections by model name, of the images in `truths`; deterministic for a seed.

    Members are chosen and weighed by scores that each image has from a calibration without it; the calibrations of the
    result are fitted on all images. `say` is told how far it is. Raises InputError without members and for detections of
    an image without ground truth.
    """
    if not members:
        raise InputError("there is no model to choose from; give the out-of-fold detections of at least one")
    how = procedure or Procedure()
    calibrated: Mapping[str, Sequence[Detections]] = members
    if how.calibrate:
        say(f"calibrating {len(members)} detectors on {len(truths):,} images")
        calibrated = {name: calibrate_crosswise(found, truths, seed=seed) for name, found in members.items()}
    say(f"choosing among {len(members)} detectors, by map_40_findings")
    fused = FusedScore(calibrated, truths)
    selection = select_by_score(fused, how.options, rounds=how.rounds, min_gain=how.min_gain, say=say)
    if how.trials:
        say(f"searching {how.trials} other weights and rules")
    selection = search_by_score(fused, selection, seed=seed, trials=how.trials, min_gain=how.min_gain)
    used = dict.fromkeys([*selection.weights, selection.best_single])
    return Choice(
        selection,
        {name: fit_calibration(members[name], truths, seed=seed) for name in used} if how.calibrate else {},
        {name: list(calibrated[name]) for name in used},
    )


def honest_gain(
    members: Mapping[str, Sequence[Detections]],
    truths: Sequence[Truth],
    *,
    seed: int,
    procedure: Procedure | None = None,
    options: FusionOptions | None = None,
    parts: int = 2,
    replicates: int = 1_000,
    level: float = 0.95,
    say: Callable[[str], None] = lambda line: None,
) -> HonestGain:
    """What `choose` gains on images it has not seen: all of it done on all parts but one, scored on that one.

    The best single model is chosen on the same images as the members, so that both sides have had equal luck. Parts
    are a stable hash of the image id. Scores are taken within a part: another part may have chosen other models.
    Without a `procedure`, detections are taken for calibrated, and members are chosen greedily and fused by `options`.
    """
    how = procedure or Procedure(calibrate=False, options=options or FusionOptions())
    part_of = held_out_parts(truths, seed=seed, parts=parts)
    choices, fused, single, gains = [], [], [], []
    for part in range(parts):
        known = [truth for truth, p in zip(truths, part_of, strict=True) if p != part]
        unseen = [truth for truth, p in zip(truths, part_of, strict=True) if p == part]
        say(f"the same without part {part + 1} of {parts}, which it is scored on")
        choice = choose(members_on(members, known), known, seed=seed, procedure=how, say=say)
        values = _on_unseen(choice, members_on(members, unseen), unseen, seed=seed + part, replicates=replicates)
        choices.append(choice)
        fused.append(values[0][0])
        single.append(values[1][0])
        gains.append(values[0] - values[1])
    # The first value of each row is the estimate on all images of the part, the rest are its replicates.
    gain = _mean(gains)
    interval = percentile_interval(float(gain[0]), gain[1:], level)
    return HonestGain(
        fused=float(_mean(fused)),
        single=float(_mean(single)),
        gain=interval,
        verdict=_verdict(interval, [choice.selection for choice in choices]),
        choices=tuple(choices),
    )


def _on_unseen(
    choice: Choice,
    members: Mapping[str, Sequence[Detections]],
    truths: Sequence[Truth],
    *,
    seed: int,
    replicates: int,
) -> list[NDArray[np.float64]]:
    """map_40_findings of the ensemble and of the best single model, on all images and in the same replicates of them."""
    selection, fused = choice.selection, FusedScore(choice.calibrated(members), truths)
    both = selection.weights, {selection.best_single: 1.0}
    return [
        _replicates(
            fused.matches([weights.get(name, 0.0) for name in fused.names], selection.options),
            seed=seed,
            replicates=replicates,
        )
        for weights in both
    ]


def _verdict(gain: Interval, selections: Sequence[Selection]) -> Verdict:
    if all(len(selection.weights) == 1 for selection in selections) or not gain.estimate > 0:
        return "single"
    return "ensemble" if gain.low > 0 else "undecided"


def _replicates(matches: Matches, *, seed: int, replicates: int) -> NDArray[np.float64]:
    """map_40_findings on all images, followed by that of each replicate: -> (1 + replicates,)."""
    values = np.concatenate([average_precisions(matches)[None], replicate(matches, seed=seed, replicates=replicates)])
    return np.array([mean_over_known(row[:NUM_FINDINGS]) for row in values])


def members_on(members: Mapping[str, Sequence[Detections]], truths: Sequence[Truth]) -> dict[str, list[Detections]]:
    """What each member found in the images of `truths`."""
    wanted = {truth.image_id for truth in truths}
    return {name: [found for found in member if found.image_id in wanted] for name, member in members.items()}


def _mean(values: Sequence[Any]) -> Any:
    """Mean over parts, leaving out those without ground truth."""
    table = np.array(values, np.float64)
    known = ~np.isnan(table)
    total = np.where(known, table, 0.0).sum(0)
    return np.where(known.any(0), total / np.maximum(known.sum(0), 1), np.nan)
