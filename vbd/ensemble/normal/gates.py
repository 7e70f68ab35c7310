"""What P(no finding) does to an image's boxes: nothing, damp their scores, or take them away.

Every gate appends `14 p 0 0 1 1`. What the others add is measured on images that neither the gate's parameter nor anything
before it was fitted on: tuned on the known images, scored on the unseen ones.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, assert_never, get_args

import numpy as np
from numpy.typing import NDArray

from vbd.config.checked import between
from vbd.evaluation.average_precision import average_precisions, mean_over_known
from vbd.evaluation.intervals import Interval, percentile_interval, replicate, with_means
from vbd.evaluation.matching import FlatBoxes, Matches, flatten, match_flat
from vbd.labels import NUM_FINDINGS
from vbd.records import Detections, Truth

Kind = Literal["append", "damp", "replace", "quota"]
KINDS: tuple[Kind, ...] = get_args(Kind)
# `auto`: append, and damp where that gains on unseen images; what takes boxes away must be asked for.
GateFlag = Literal["auto", "append", "damp", "replace", "quota"]

# Parameters that are tried, the first of which changes nothing.
GRIDS: dict[Kind, tuple[float, ...]] = {
    "append": (0.0,),
    "damp": (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0, 1.5),
    "replace": (1.0, 0.99, 0.98, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5),
    "quota": (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8),
}
# From this probability of a finding downwards all images are damped alike: what is below 1e-6 cannot be submitted in order.
_LEAST = 0.01


@dataclass(frozen=True)
class Gate:
    """A rule and its parameter: the exponent of `damp`, the threshold of `replace`, the share of `quota`."""

    kind: Kind = "append"
    parameter: Annotated[float, between(0, 100)] = 0.0

    def factors(self, p: NDArray) -> NDArray[np.float64]:
        """What the scores of each image's boxes are multiplied by, given P(no finding) (n,) -> (n,); at 0 they are left out."""
        p = np.asarray(p, np.float64)
        match self.kind:
            case "append":
                return np.ones(len(p))
            case "damp":
                return np.maximum(1 - p, _LEAST) ** self.parameter
            case "replace":
                return (p <= self.parameter).astype(np.float64)
            case "quota":
                likeliest = np.argsort(-p, kind="stable")[: int(self.parameter * len(p))]
                return np.where(np.isin(np.arange(len(p)), likeliest), 0.0, 1.0)
            case _:
                assert_never(self.kind)

    def apply(self, detections: Sequence[Detections], p: NDArray) -> list[Detections]:
        """Detections with `no_finding` set to p (n,), and their boxes as the gate leaves them."""
        return [
            _gated(found, factor, probability)
            for found, factor, probability in zip(detections, self.factors(p), np.asarray(p).tolist(), strict=True)
        ]


def _gated(found: Detections, factor: float, p: float) -> Detections:
    if factor == 0:
        return Detections(found.image_id, no_finding=p)
    scores = (found.scores.astype(np.float64) * factor).astype(np.float32)
    return dataclasses.replace(found, scores=scores, no_finding=p)


class GatedScore:
    """map_40 of detections behind any gate, on fixed images with given P(no finding); flattened once."""

    def __init__(self, detections: Sequence[Detections], p: NDArray, truths: Sequence[Truth]) -> None:
        """detections, p and truths (n,) are of the same images in the same order."""
        self._p = np.asarray(p, np.float64)
        with_p = [
            dataclasses.replace(found, no_finding=value)
            for found, value in zip(detections, self._p.tolist(), strict=True)
        ]
        self._found, self._wanted = flatten(with_p, truths)
        self._num_images = len(truths)

    def matches(self, gate: Gate | None) -> Matches:
        """Verdicts behind a gate; None: without any estimate of normal images."""
        found = self._found
        is_box = found.labels < NUM_FINDINGS
        factor = np.ones(self._num_images) if gate is None else gate.factors(self._p)
        kept = (factor[found.images] > 0) & is_box if gate is None else (factor[found.images] > 0) | ~is_box
        damped = (found.scores * factor[found.images]).astype(np.float32).astype(np.float64)
        scores = np.where(is_box, damped, found.scores)
        gated = FlatBoxes(found.images[kept], found.labels[kept], found.boxes[kept], scores[kept])
        return match_flat(gated, self._wanted, self._num_images)

    def score(self, gate: Gate | None) -> float:
        """map_40 of all images."""
        return mean_over_known(average_precisions(self.matches(gate)))

    def replicates(self, gate: Gate | None, *, seed: int, replicates: int) -> NDArray[np.float64]:
        """map_40 of all images, then that of each bootstrap replicate: -> (1 + replicates,)."""
        matches = self.matches(gate)
        values = replicate(matches, seed=seed, replicates=replicates)
        return with_means(np.concatenate([average_precisions(matches)[None], values]))[:, 0]


# ---------------------------------------------------------------------------------------------------- tuning and worth


@dataclass(frozen=True)
class Split:
    """Images that everything was fitted on, with P(no finding) out of fold, and images that took no part."""

    known: GatedScore
    unseen: GatedScore


@dataclass(frozen=True)
class Worth:
    """What one kind of gate is worth."""

    kind: Kind
    parameter: float  # tuned on all images
    parameters: tuple[float, ...]  # tuned on the known images of each split
    score: float  # map_40 of unseen images, mean over splits
    over_append: Interval  # paired bootstrap over the unseen images
    over_nothing: Interval
    grid: tuple[float, ...]
    known_scores: tuple[float, ...]  # (grid,) on all images, out of fold but for the parameter
    unseen_scores: tuple[float, ...]  # (grid,) of a fixed parameter, mean over splits

    def to_json(self) -> dict[str, Any]:
        """Plain numbers."""
        return dataclasses.asdict(self)


def tune(kind: Kind, scored: GatedScore) -> tuple[Gate, tuple[float, ...]]:
    """The parameter with the highest map_40, the mildest of equals, and the score of each in the grid."""
    scores = tuple(scored.score(Gate(kind, parameter)) for parameter in GRIDS[kind])
    known = [score if score == score else -1.0 for score in scores]
    return Gate(kind, GRIDS[kind][int(np.argmax(known))]), scores


def measure_gates(
    everything: GatedScore, splits: Sequence[Split], *, seed: int, replicates: int = 1_000, level: float = 0.95
) -> dict[Kind, Worth]:
    """What each gate is worth on images that took no part; `everything` are all images, to tune what is submitted."""
    rest = {"replicates": replicates}
    seeds = [seed + i for i in range(len(splits))]
    nothing, append = (
        [split.unseen.replicates(gate, seed=s, **rest) for s, split in zip(seeds, splits, strict=True)]
        for gate in (None, Gate())
    )
    result: dict[Kind, Worth] = {}
    for kind in KINDS:
        tuned, known_scores = tune(kind, everything)
        gates = [tune(kind, split.known)[0] for split in splits]
        values = [
            split.unseen.replicates(gate, seed=s, **rest) for s, split, gate in zip(seeds, splits, gates, strict=True)
        ]
        unseen = [tune(kind, split.unseen)[1] for split in splits]
        result[kind] = Worth(
            kind=kind,
            parameter=tuned.parameter,
            parameters=tuple(gate.parameter for gate in gates),
            score=float(np.mean([value[0] for value in values])),
            over_append=_interval(values, append, level),
            over_nothing=_interval(values, nothing, level),
            grid=GRIDS[kind],
            known_scores=known_scores,
            unseen_scores=tuple(np.mean(unseen, axis=0).tolist()),
        )
    return result


def _interval(values: Sequence[NDArray], others: Sequence[NDArray], level: float) -> Interval:
    """The mean difference over splits, the first value of each being the estimate."""
    difference = np.mean([value - other for value, other in zip(values, others, strict=True)], axis=0)
    return percentile_interval(float(difference[0]), difference[1:], level)


def choose_kind(flag: GateFlag, worths: Mapping[Kind, Worth]) -> Kind:
    """The kind that was asked for; of itself damping where it gains on unseen images, and never what takes boxes away."""
    if flag != "auto":
        return flag
    damp = worths["damp"]
    return "damp" if damp.over_append.estimate > 0 and damp.parameter > 0 else "append"
