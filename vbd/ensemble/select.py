"""Which models to fuse, with what weights, and whether fusing is worth it at all.

Caruana, Niculescu-Mizil, Crew and Ksikes, "Ensemble selection from libraries of models", 2004: members are added one
at a time, with replacement, as long as the fused score rises. All detections are out of fold.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vbd.ensemble.calibrate import split_parts
from vbd.ensemble.fusion import FlatMembers, flatten_members, fuse_flat
from vbd.errors import InputError
from vbd.evaluation.average_precision import (
    FlatBoxes,
    Matches,
    average_precisions,
    flatten,
    match_flat,
    mean_over_known,
)
from vbd.evaluation.intervals import Interval, percentile_interval, replicate
from vbd.fusing import Confidence
from vbd.labels import NUM_FINDINGS
from vbd.records import Detections, Truth

# `undecided`: the fused score is higher on held-out images, but the interval of the gain holds 0.
Verdict = Literal["ensemble", "undecided", "single"]


@dataclass(frozen=True)
class FusionOptions:
    """How members are fused while they are being chosen; see `fusion.fuse_all`."""

    iou_threshold: float | Mapping[int, float] = 0.5
    skip_threshold: float = 0.0
    confidence: Confidence = "avg"


@dataclass(frozen=True)
class Step:
    """One round of the selection: who was added, and the fused score with them."""

    added: str
    score: float


@dataclass(frozen=True)
class Selection:
    """Members and their weights, which sum to 1; a model without a weight is not a member."""

    weights: dict[str, float]
    score: float  # map_40_findings on the images that the members were chosen on: too good
    history: tuple[Step, ...]
    single_scores: dict[str, float]  # of every candidate alone
    best_single: str


@dataclass(frozen=True)
class HonestGain:
    """Fused against the best single model, both chosen on other images than they are scored on.

    Scores are map_40_findings, the mean over the parts of the images.
    """

    fused: float
    single: float
    gain: Interval  # paired bootstrap over the images of each part
    verdict: Verdict
    selections: tuple[Selection, ...]  # one per part: chosen on all other parts


class _Scorer:
    """Fused scores on fixed images: members are flattened once, and no weighting is scored twice."""

    def __init__(
        self, members: Mapping[str, Sequence[Detections]], truths: Sequence[Truth], options: FusionOptions
    ) -> None:
        self.names = list(members)
        self.options = options
        self.num_images = len(truths)
        self.wanted = _findings(flatten([], truths)[1])
        self.flat = _on_images(flatten_members(list(members.values())), [truth.image_id for truth in truths])
        self._scores: dict[tuple[int, ...], float] = {}

    def score(self, counts: Sequence[int]) -> float:
        """map_40_findings of members fused with weights proportional to `counts`; 0 without ground truth."""
        key = tuple(int(count) for count in np.array(counts) // max(np.gcd.reduce(counts), 1))
        if key not in self._scores:
            score = mean_over_known(average_precisions(self.matches(key))[:NUM_FINDINGS])
            self._scores[key] = 0.0 if np.isnan(score) else score
        return self._scores[key]

    def matches(self, counts: Sequence[float]) -> Matches:
        """Verdicts on the fused boxes; a lone member's boxes count as they are, not fused among themselves."""
        flat, used = self.flat, np.flatnonzero(counts)
        if len(used) == 1:
            own = flat.models == used[0]
            found = FlatBoxes(flat.images[own], flat.labels[own], flat.boxes[own], flat.scores[own])
        else:
            fused = fuse_flat(
                flat,
                counts,
                iou_threshold=self.options.iou_threshold,
                skip_threshold=self.options.skip_threshold,
                confidence=self.options.confidence,
            )
            # Detections carry float32: score what they will carry.
            scores = fused.scores.astype(np.float32).astype(np.float64)
            found = FlatBoxes(fused.images, fused.labels, fused.boxes.astype(np.float64), scores)
        return match_flat(found, self.wanted, self.num_images)


def select_members(
    members: Mapping[str, Sequence[Detections]],
    truths: Sequence[Truth],
    *,
    rounds: int = 10,
    options: FusionOptions | None = None,
) -> Selection:
    """Chooses members greedily by map_40_findings, starting from the best single model.

    members: calibrated out-of-fold detections by model name, of the images in `truths`. A round adds the model, chosen
    before or not, that raises the fused score most; the first round that raises nothing is the last.
    Raises InputError without members and for detections of an image without ground truth.
    """
    if not members:
        raise InputError("there is no model to choose from; give the out-of-fold detections of at least one")
    return _select(_Scorer(members, truths, options or FusionOptions()), rounds)


def honest_gain(
    members: Mapping[str, Sequence[Detections]],
    truths: Sequence[Truth],
    *,
    seed: int,
    rounds: int = 10,
    parts: int = 2,
    replicates: int = 1_000,
    level: float = 0.95,
    options: FusionOptions | None = None,
) -> HonestGain:
    """What `select_members` gains on images it has not seen: chosen on all parts but one, scored on that one.

    The best single model is chosen on the same images as the members, so that both sides have had equal luck. Parts
    are a stable hash of the image id. Scores are taken within a part: another part may have chosen other models.
    """
    part_of = split_parts([truth.image_id for truth in truths], parts, seed=seed)
    selections, fused, single, gains = [], [], [], []
    for part in range(parts):
        known = [truth for truth, p in zip(truths, part_of, strict=True) if p != part]
        unseen = [truth for truth, p in zip(truths, part_of, strict=True) if p == part]
        selection = select_members(_members_on(members, known), known, rounds=rounds, options=options)
        scorer = _Scorer(_members_on(members, unseen), unseen, options or FusionOptions())
        values = [
            _replicates(scorer.matches(weights), seed=seed + part, replicates=replicates)
            for weights in (
                [selection.weights.get(name, 0.0) for name in scorer.names],
                [float(name == selection.best_single) for name in scorer.names],
            )
        ]
        selections.append(selection)
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
        verdict=_verdict(interval, selections),
        selections=tuple(selections),
    )


def _select(scorer: _Scorer, rounds: int) -> Selection:
    size = len(scorer.names)
    singles = [scorer.score([int(i == k) for i in range(size)]) for k in range(size)]
    best = int(np.argmax(singles))
    counts = [int(k == best) for k in range(size)]
    history = [Step(scorer.names[best], singles[best])]
    for _ in range(rounds - 1):
        trials = [scorer.score([count + (i == k) for i, count in enumerate(counts)]) for k in range(size)]
        # One more of a lone member is the same ensemble: its score cannot be higher than now.
        added = int(np.argmax(trials))
        if trials[added] <= history[-1].score:
            break
        counts[added] += 1
        history.append(Step(scorer.names[added], trials[added]))
    total = sum(counts)
    return Selection(
        weights={name: count / total for name, count in zip(scorer.names, counts, strict=True) if count},
        score=history[-1].score,
        history=tuple(history),
        single_scores=dict(zip(scorer.names, singles, strict=True)),
        best_single=scorer.names[best],
    )


def _verdict(gain: Interval, selections: Sequence[Selection]) -> Verdict:
    if all(len(selection.weights) == 1 for selection in selections) or not gain.estimate > 0:
        return "single"
    return "ensemble" if gain.low > 0 else "undecided"


def _replicates(matches: Matches, *, seed: int, replicates: int) -> NDArray[np.float64]:
    """map_40_findings on all images, followed by that of each replicate: -> (1 + replicates,)."""
    values = np.concatenate([average_precisions(matches)[None], replicate(matches, seed=seed, replicates=replicates)])
    return np.array([mean_over_known(row[:NUM_FINDINGS]) for row in values])


def _members_on(members: Mapping[str, Sequence[Detections]], truths: Sequence[Truth]) -> dict[str, list[Detections]]:
    wanted = {truth.image_id for truth in truths}
    return {name: [found for found in member if found.image_id in wanted] for name, member in members.items()}


def _on_images(flat: FlatMembers, image_ids: Sequence[str]) -> FlatMembers:
    """The same boxes with images numbered as in `image_ids`."""
    index = {image_id: position for position, image_id in enumerate(image_ids)}
    unknown = [image_id for image_id in flat.image_ids if image_id not in index]
    if unknown:
        raise InputError(f"detections of image {unknown[0]!r}: the ground truth does not have this image")
    position = np.array([index[image_id] for image_id in flat.image_ids], np.int64)
    return FlatMembers(
        image_ids=tuple(image_ids),
        boxes=flat.boxes,
        scores=flat.scores,
        labels=flat.labels,
        models=flat.models,
        images=position[flat.images] if len(position) else flat.images,
        no_finding=np.full((len(flat.no_finding), len(image_ids)), np.nan),
    )


def _findings(wanted: FlatBoxes) -> FlatBoxes:
    """Ground truth without class 14, which fusing boxes does not touch."""
    rows = wanted.labels < NUM_FINDINGS
    return FlatBoxes(wanted.images[rows], wanted.labels[rows], wanted.boxes[rows], wanted.scores[rows])


def _mean(values: Sequence[Any]) -> Any:
    """Mean over parts, leaving out those without ground truth."""
    table = np.array(values, np.float64)
    known = ~np.isnan(table)
    total = np.where(known, table, 0.0).sum(0)
    return np.where(known.any(0), total / np.maximum(known.sum(0), 1), np.nan)
