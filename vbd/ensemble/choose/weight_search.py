"""Weights, thresholds and rule of fusion, searched together from where the greedy selection ended.

Bergstra, Bardenet, Bengio and Kégl, "Algorithms for hyper-parameter optimization", 2011: the tree-structured Parzen estimator, as
Optuna has it.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from vbd.ensemble.choose.fused_score import FusedScore
from vbd.ensemble.choose.greedy import MIN_GAIN, Selection
from vbd.fusion.detections import LARGE_LABELS, METHODS, FusionOptions, Method
from vbd.fusion.wbf import CONFIDENCES, Confidence
from vbd.labels import NUM_FINDINGS
from vbd.records import Detections, Truth

if TYPE_CHECKING:
    import optuna

# Groups of labels that share an IoU threshold, by the size of their findings.
SIZE_GROUPS: dict[str, tuple[int, ...]] = {
    "large": LARGE_LABELS,
    "small": tuple(label for label in range(NUM_FINDINGS) if label not in LARGE_LABELS),
}
# Of the score after calibration.
SKIP_THRESHOLDS = (0.0, 1e-4, 1e-3, 1e-2, 3e-2)
# A member of a smaller weight is left out.
_LEAST_WEIGHT = 0.05


def search_weights(
    members: Mapping[str, Sequence[Detections]],
    truths: Sequence[Truth],
    start: Selection,
    *,
    seed: int,
    trials: int = 60,
    min_gain: float = MIN_GAIN,
) -> Selection:
    """Searches for better weights and options than those of `start`, by map_40_findings on the same images.

    Tried are a weight for each member, the rule and what it takes, an IoU threshold for each of SIZE_GROUPS and the skip
    threshold. The best trial becomes the selection when it is better than `start` by more than `min_gain`. Deterministic
    for a seed.
    """
    return search_by_score(FusedScore(members, truths), start, seed=seed, trials=trials, min_gain=min_gain)


def search_by_score(fused: FusedScore, start: Selection, *, seed: int, trials: int, min_gain: float) -> Selection:
    """`search_weights` of detections that are flattened already."""
    copies = fused.copies()
    names = [name for k, name in enumerate(fused.names) if k not in copies]
    if len(names) < 2 or trials < 1:
        return start
    best, scores = start, list[float]()
    study = _study(seed)
    for params in _first_trials(names, start):
        study.enqueue_trial(params)
    for _ in range(trials):
        trial = study.ask()
        weights, options = _draw_weights(trial, names), _draw_options(trial)
        score = fused.score([weights.get(name, 0.0) for name in fused.names], options)
        study.tell(trial, score)
        scores.append(score)
        if score > max(best.score, start.score + min_gain):
            best = dataclasses.replace(start, weights=weights, score=score, options=options)
    return dataclasses.replace(best, search=tuple(scores))


def _study(seed: int) -> "optuna.Study":
    import optuna  # 1 s: kept out of --help

    optuna.logging.set_verbosity(optuna.logging.WARNING)  # else a line for each trial
    return optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))


def _first_trials(names: Sequence[str], start: Selection) -> list[dict[str, Any]]:
    """The greedy selection's weights as they are and with the field's thresholds, and equal weights of all."""
    largest = max(start.weights.values())
    greedy = {f"weight {name}": start.weights.get(name, 0.0) / largest for name in names}
    equal = {f"weight {name}": 1.0 for name in names}
    thresholds = start.options.thresholds()
    own = {f"iou {group}": float(thresholds[labels[0]]) for group, labels in SIZE_GROUPS.items()}
    field = {"iou large": 0.4, "iou small": 0.5}
    rule = {"method": start.options.method, "confidence": start.options.confidence}
    return [greedy | own | rule, greedy | field | rule, equal | field | rule]


def _draw_weights(trial: "optuna.Trial", names: Sequence[str]) -> dict[str, float]:
    """Weights that sum to 1, of those members that are not left out."""
    drawn = {name: trial.suggest_float(f"weight {name}", 0.0, 1.0) for name in names}
    used = {name: weight for name, weight in drawn.items() if weight >= _LEAST_WEIGHT} or dict.fromkeys(names, 1.0)
    return {name: weight / sum(used.values()) for name, weight in used.items()}


def _draw_options(trial: "optuna.Trial") -> FusionOptions:
    groups = {group: trial.suggest_float(f"iou {group}", 0.2, 0.7) for group in SIZE_GROUPS}
    method = cast(Method, trial.suggest_categorical("method", METHODS))
    options = FusionOptions(
        method=method,
        iou_threshold={label: groups[group] for group, labels in SIZE_GROUPS.items() for label in labels},
        skip_threshold=trial.suggest_categorical("skip", SKIP_THRESHOLDS),
    )
    if method == "wbf":
        confidence = cast(Confidence, trial.suggest_categorical("confidence", CONFIDENCES))
        return dataclasses.replace(options, confidence=confidence)
    if method == "soft_nms_gaussian":
        return dataclasses.replace(options, sigma=trial.suggest_float("sigma", 0.1, 1.0))
    return options
