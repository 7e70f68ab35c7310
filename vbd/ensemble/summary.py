"""What an ensemble is and what it is worth, in lines of a terminal."""

import math

from vbd.ensemble.result import EnsembleResult
from vbd.evaluation.average_precision import Scores
from vbd.evaluation.intervals import Interval
from vbd.labels import NO_FINDING_NAME
from vbd.storage import shown

VERDICTS = {
    "ensemble": "the ensemble is better",
    "undecided": "better here, but the interval holds 0",
    "single": "do not ensemble; the best single model is submitted",
}
SOURCES = {"boxes": "the boxes", "classifiers": "the classifiers", "both": "both"}
GATES = {
    "append": "append `14 p 0 0 1 1`",
    "damp": "scores x (1 - p)^{parameter:g}",
    "replace": "no boxes above p {parameter:g}",
    "quota": "no boxes in the likeliest {parameter:.0%}",
}


def summary_of(result: EnsembleResult) -> str:
    """The table of members, and a line for each part of the recipe."""
    lines = [
        *_detector_lines(result),
        *_classifier_lines(result),
        *_gain_lines(result),
        *_diversity_lines(result),
        *_no_finding_lines(result),
        *_gate_lines(result),
    ]
    scores = [f"validation {result.out_of_fold.map_40:.4f}"]
    scores += [f"test {result.test['ensemble'].map_40:.4f}"] if result.test else []
    lines.append(f"map_40 with No finding: {', '.join(scores)}")
    lines.append(f"submission   {shown(result.output)} (checked)")
    return "\n".join(lines)


def gate_text(kind: str, parameter: float) -> str:
    """A gate in words."""
    return GATES[kind].format(parameter=parameter)


def interval_text(interval: Interval) -> str:
    """A difference with its interval."""
    if math.isnan(interval.low):
        return f"{interval.estimate:+.4f}"
    return f"{interval.estimate:+.4f} (95 % interval {interval.low:+.4f} to {interval.high:+.4f})"


def _detector_lines(result: EnsembleResult) -> list[str]:
    if not result.detectors:
        return []
    title = "map_40_findings" + (" (synthetic data)" if result.dataset.synthetic else "")
    lines = [f"{title:32s}  weight  validation" + ("    test" if result.test else "")]
    rows: list[tuple[str, float, Scores]] = [
        (name, result.fitted.recipe.weights.get(name, 0.0), result.singles[name]) for name in result.detectors
    ]
    rows.append(("ensemble", 1.0, result.out_of_fold))
    for name, weight, scores in rows:
        test = f"  {result.test[name].map_40_findings:.4f}" if result.test else ""
        lines.append(f"  {name:30s}  {weight:6.2f}  {scores.map_40_findings:10.4f}{test}")
    return lines


def _classifier_lines(result: EnsembleResult) -> list[str]:
    if not result.classifiers:
        return []
    title = "average precision of No finding"
    lines = [f"{title:32s}    used  validation" + ("    test" if result.test else "")]
    rows = [
        (name, "yes" if name in result.fitted.recipe.classifiers else "no", result.singles[name])
        for name in result.classifiers
    ]
    rows.append(("ensemble", "", result.out_of_fold))
    for name, used, scores in rows:
        test = f"  {result.test[name].per_class[NO_FINDING_NAME]:.4f}" if result.test else ""
        lines.append(f"  {name:30s}  {used:>6s}  {scores.per_class[NO_FINDING_NAME]:10.4f}{test}")
    return lines


def _gain_lines(result: EnsembleResult) -> list[str]:
    gain = result.fitted.gain
    if gain is None:
        return ["there is no detector: the submission tells normal images alone"]
    if len(result.detectors) == 1:
        return ["there is one detector: nothing to fuse"]
    return [
        "the ensemble's validation is on images that took no part in making it; there "
        f"ensemble {gain.fused:.4f}, best single {gain.single:.4f} (mean over two halves), "
        f"gain {interval_text(gain.gain)}: {VERDICTS[gain.verdict]}"
    ]


def _diversity_lines(result: EnsembleResult) -> list[str]:
    pairs = [pair for pair in result.diversity.pairs if pair.neither < 1]
    if not pairs:
        return []
    # Of the findings that either found, the share that both did (Jaccard).
    least = min(pairs, key=lambda pair: pair.both / (pair.both + pair.first_only + pair.second_only))
    return [
        f"most unlike   {least.first} and {least.second}: of the findings {least.both:.0%} found by both, "
        f"{least.first_only:.0%} and {least.second_only:.0%} by one alone, at "
        f"{result.diversity.false_per_image:g} false box an image"
    ]


def _no_finding_lines(result: EnsembleResult) -> list[str]:
    fitted = result.fitted
    chosen = fitted.recipe.no_finding.source
    told = [
        f"{SOURCES[source]}{' (used)' if source == chosen else ''} AP {score.average_precision:.4f}, AUC {score.auc:.4f}, "
        f"log loss {score.log_loss.estimate:.4f}"
        for source, score in fitted.sources.items()
    ]
    return [f"P(no finding) from {'; '.join(told)}"]


def _gate_lines(result: EnsembleResult) -> list[str]:
    chosen = result.fitted.recipe.gate
    lines = []
    for kind, worth in result.fitted.gates.items():
        text = gate_text(kind, worth.parameter)
        against = (
            f"over none {interval_text(worth.over_nothing)}"
            if kind == "append"
            else f"over append {interval_text(worth.over_append)}"
        )
        lines.append(f"gate {text:32s}  map_40 {against}{': used' if kind == chosen.kind else ''}")
    return lines
