"""Which models to fuse, one after the other.

Caruana, Niculescu-Mizil, Crew and Ksikes, "Ensemble selection from libraries of models", 2004: members are added one
at a time, with replacement, as long as the fused score rises. All detections are out of fold.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vbd.ensemble.choose.fused_score import FusedScore
from vbd.errors import InputError
from vbd.fusion.detections import FusionOptions, fuse_all
from vbd.records import Detections, Truth

# A smaller rise is luck on a validation set of thousands of images, and noise fused in for it costs as much elsewhere.
MIN_GAIN = 5e-4


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
    options: FusionOptions = FusionOptions()  # noqa: RUF009 -- frozen
    search: tuple[float, ...] = ()  # fused score of each trial of the weight search, in their order

    def fuse(self, members: Mapping[str, Sequence[Detections]]) -> list[Detections]:
        """The members' detections as one; a lone member's as they are."""
        if len(self.weights) == 1:
            return list(members[next(iter(self.weights))])
        return fuse_all([members[name] for name in self.weights], list(self.weights.values()), self.options)


def select_members(
    members: Mapping[str, Sequence[Detections]],
    truths: Sequence[Truth],
    *,
    rounds: int = 10,
    options: FusionOptions | None = None,
    min_gain: float = MIN_GAIN,
) -> Selection:
    """Chooses members greedily by map_40_findings, starting from the best single model.

    members: calibrated out-of-fold detections by model name, of the images in `truths`. A round adds the model, chosen
    before or not, that raises the fused score most; the first round that raises it by `min_gain` or less is the last.
    Exact copies of a model are never chosen. Raises InputError without members and for detections of an image without
    ground truth.
    """
    if not members:
        raise InputError("there is no model to choose from; give the out-of-fold detections of at least one")
    return select_by_score(FusedScore(members, truths), options or FusionOptions(), rounds=rounds, min_gain=min_gain)


def select_by_score(
    fused: FusedScore,
    options: FusionOptions,
    *,
    rounds: int,
    min_gain: float,
    say: Callable[[str], None] = lambda line: None,
) -> Selection:
    """`select_members` of detections that are flattened already; `say` is told of each round."""
    names, copies = fused.names, fused.copies()
    known: dict[tuple[float, ...], float] = {}

    def score(counts: list[int]) -> float:
        key = tuple((np.array(counts) / sum(counts)).tolist())
        if key not in known:
            known[key] = fused.score(counts, options)
        return known[key]

    singles = [score([int(i == copies.get(k, k)) for i in range(len(names))]) for k in range(len(names))]
    best = copies.get(int(np.argmax(singles)), int(np.argmax(singles)))
    candidates = [k for k in range(len(names)) if k not in copies]
    counts = [int(k == best) for k in range(len(names))]
    history = [Step(names[best], singles[best])]
    say(f"  {names[best]} alone: {singles[best]:.4f}")
    for _ in range(rounds - 1):
        # One more of a lone member is the same ensemble: its score cannot be higher than now.
        trials = [score([count + (i == k) for i, count in enumerate(counts)]) for k in candidates]
        if max(trials) <= history[-1].score + min_gain:
            break
        added = candidates[int(np.argmax(trials))]
        counts[added] += 1
        history.append(Step(names[added], max(trials)))
        say(f"  with {names[added]}: {max(trials):.4f}")
    return Selection(
        weights={name: count / sum(counts) for name, count in zip(names, counts, strict=True) if count},
        score=history[-1].score,
        history=tuple(history),
        single_scores=dict(zip(names, singles, strict=True)),
        best_single=names[best],
        options=options,
    )
