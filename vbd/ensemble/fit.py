"""From out-of-fold detections to a recipe, and what the recipe is worth on images that took no part in making it.

Detectors are calibrated, chosen and fused; classifiers, and the fused boxes, tell normal images; a gate says what that does
to the boxes. All of it is done once on all images, which gives the recipe, and once without each part of them, which is
then told by it and scored.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vbd.ensemble.choose.select import Choice, HonestGain, Procedure, choose, held_out_parts, honest_gain, members_on
from vbd.ensemble.normal.gates import Gate, GatedScore, GateFlag, Kind, Split, Worth, choose_kind, measure_gates
from vbd.ensemble.normal.no_finding import (
    Evidence,
    FittedNoFinding,
    Source,
    SourceScore,
    are_normal,
    fit_best_source,
    fit_no_finding,
    mean_logits,
    score_probabilities,
)
from vbd.ensemble.recipe import Recipe
from vbd.errors import InputError
from vbd.fusion.detections import FusionOptions
from vbd.records import Detections, Truth

PARTS = 2


@dataclass(frozen=True)
class Plan:
    """How an ensemble is made and measured."""

    seed: int = 0
    gate: GateFlag = "auto"
    procedure: Procedure = Procedure()  # noqa: RUF009 -- frozen
    replicates: int = 1_000  # of every interval


def plan_of(*, gate: GateFlag, trials: int, seed: int, replicates: int) -> Plan:
    """A Plan from the flags of jobs/ensemble.py; raises InputError for numbers that mean nothing."""
    for flag, value, least in (("--trials", trials, 0), ("--seed", seed, 0), ("--replicates", replicates, 1)):
        if value < least:
            raise InputError(f"{flag} {value}: want {least} or more")
    return Plan(seed=seed, gate=gate, procedure=Procedure(trials=trials), replicates=replicates)


@dataclass(frozen=True)
class Fitted:
    """The recipe, and how it fares on images it was made without."""

    recipe: Recipe
    choice: Choice | None  # of detectors, on all images; None without detectors
    gain: HonestGain | None
    no_finding: FittedNoFinding  # on all images
    sources: dict[Source, SourceScore]  # of unseen images, each source alone
    best_source: SourceScore  # of unseen images, the source chosen without them
    gates: dict[Kind, Worth]
    unseen: list[Detections]  # every image told by a recipe made without it, in the order of the truths
    ungated: list[Detections]  # the same before the gate


def fit_ensemble(
    detectors: Mapping[str, Sequence[Detections]],
    classifiers: Mapping[str, Sequence[Detections]],
    truths: Sequence[Truth],
    plan: Plan,
    *,
    say: Callable[[str], None] = lambda line: None,
) -> Fitted:
    """Makes a recipe of out-of-fold detections by member, all of the images in `truths`; deterministic for a seed.

    Raises InputError without members, or with too few images to leave a part out.
    """
    if not detectors and not classifiers:
        raise InputError("there is no member to make an ensemble of; train a detector or a classifier first")
    part_of = held_out_parts(truths, seed=plan.seed, parts=PARTS)
    if len(np.unique(part_of)) < PARTS:
        raise InputError(f"{len(truths)} images with out-of-fold detections are too few; validate on more of them")
    choice = gain = None
    if detectors:
        choice = choose(detectors, truths, seed=plan.seed, procedure=plan.procedure, say=say)
        gain = honest_gain(
            detectors,
            truths,
            seed=plan.seed,
            procedure=plan.procedure,
            parts=PARTS,
            replicates=plan.replicates,
            say=say,
        )
        if gain.verdict == "single":
            choice = choice.single
    say("telling normal images")
    everything = _known(choice, classifiers, truths)
    best = fit_best_source(everything, are_normal(truths), seed=plan.seed)
    parts = [
        _leave_out(part_of == part, gain.choices[part] if gain else None, gain, detectors, classifiers, truths, plan)
        for part in range(PARTS)
    ]
    say("measuring gates")
    on_all = GatedScore(everything.detections, best.out_of_fold, truths)
    gates = measure_gates(on_all, [part.split for part in parts], seed=plan.seed, replicates=plan.replicates)
    kind = choose_kind(plan.gate, gates)
    scores = _score_sources(parts, part_of, are_normal(truths), plan)
    return Fitted(
        recipe=_recipe(choice, tuple(classifiers), best, Gate(kind, gates[kind].parameter)),
        choice=choice,
        gain=gain,
        no_finding=best,
        sources={source: scores[source] for source in everything.sources},
        best_source=scores["best"],
        gates=gates,
        unseen=_unseen(parts, part_of, [Gate(kind, parameter) for parameter in gates[kind].parameters]),
        ungated=_unseen(parts, part_of, [Gate()] * PARTS),
    )


@dataclass(frozen=True)
class _Part:
    """A part of the images, told by what was fitted on all others."""

    split: Split
    detections: Sequence[Detections]  # of the part, fused
    told: dict[str, NDArray[np.float64]]  # P(no finding) of the part by each source, and by the "best" of them


def _leave_out(
    is_unseen: NDArray[np.bool_],
    choice: Choice | None,
    gain: HonestGain | None,
    detectors: Mapping[str, Sequence[Detections]],
    classifiers: Mapping[str, Sequence[Detections]],
    truths: Sequence[Truth],
    plan: Plan,
) -> _Part:
    """Fits P(no finding) on all but a part, whose `choice` of detectors was made without it as well."""
    known = [truth for truth, out in zip(truths, is_unseen, strict=True) if not out]
    unseen = [truth for truth, out in zip(truths, is_unseen, strict=True) if out]
    if choice is not None and gain is not None and gain.verdict == "single":
        choice = choice.single
    seen, normal = _known(choice, classifiers, known), are_normal(known)
    boxes = None if choice is None else choice.fuse(members_on(detectors, unseen))
    evidence = _evidence(boxes, classifiers, unseen)
    fitted = fit_best_source(seen, normal, seed=plan.seed)
    told: dict[str, NDArray[np.float64]] = {
        source: fit_no_finding(seen, normal, source).probabilities(evidence) for source in seen.sources
    }
    told["best"] = fitted.model.probabilities(evidence)
    split = Split(
        known=GatedScore(seen.detections, fitted.out_of_fold, known),
        unseen=GatedScore(evidence.detections, told["best"], unseen),
    )
    return _Part(split, evidence.detections, told)


def _known(choice: Choice | None, classifiers: Mapping[str, Sequence[Detections]], truths: Sequence[Truth]) -> Evidence:
    """The images that a choice was made on; their boxes calibrated without each image."""
    return _evidence(None if choice is None else choice.selection.fuse(choice.out_of_fold), classifiers, truths)


def _evidence(
    boxes: Sequence[Detections] | None, classifiers: Mapping[str, Sequence[Detections]], truths: Sequence[Truth]
) -> Evidence:
    """In the order of the truths."""
    image_ids = [truth.image_id for truth in truths]
    by_id = {found.image_id: found for found in boxes or ()}
    detections = [by_id.get(image_id, Detections(image_id)) for image_id in image_ids]
    logits = mean_logits({name: [found] for name, found in classifiers.items()}, image_ids)
    return Evidence(detections, logits, boxes is not None)


def _recipe(choice: Choice | None, classifiers: tuple[str, ...], best: FittedNoFinding, gate: Gate) -> Recipe:
    weights = {} if choice is None else choice.selection.weights
    return Recipe(
        weights=dict(sorted(weights.items())),
        options=FusionOptions() if choice is None else choice.selection.options,
        calibrations={} if choice is None else {name: choice.calibrations[name] for name in weights},
        classifiers=() if best.model.source == "boxes" else tuple(sorted(classifiers)),
        no_finding=best.model,
        gate=gate,
    )


def _score_sources(
    parts: Sequence[_Part], part_of: NDArray[np.int64], normal: NDArray[np.bool_], plan: Plan
) -> dict[str, SourceScore]:
    """The probabilities of all parts together, against the truth."""
    scores = {}
    for source in parts[0].told:
        p = np.empty(len(normal))
        for number, part in enumerate(parts):
            p[part_of == number] = part.told[source]
        scores[source] = score_probabilities(p, normal, seed=plan.seed, replicates=plan.replicates)
    return scores


def _unseen(parts: Sequence[_Part], part_of: NDArray[np.int64], gates: Sequence[Gate]) -> list[Detections]:
    """What each part is told behind the gate that was tuned without it, in the order of all images."""
    gated = [iter(gate.apply(part.detections, part.told["best"])) for part, gate in zip(parts, gates, strict=True)]
    return [next(gated[part]) for part in part_of]
