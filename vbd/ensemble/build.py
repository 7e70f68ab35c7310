"""From kept checkpoints to a checked submission; everything is fitted on out-of-fold detections alone.

Each member's scores are calibrated, members are chosen and weighed, their boxes fused, and P(no finding) estimated, on
images that the members were not trained on. What is reported as the gain is measured crosswise: on images that took no part
in the choice either.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from vbd import storage
from vbd.config import RunOptions
from vbd.data.prepared import PreparedDataset, image_sizes, open_dataset, read_truths, sample_submission_ids
from vbd.ensemble.calibrate import (
    Calibration,
    NoFinding,
    calibrate_crosswise,
    fit_calibration,
    fit_no_finding,
    no_finding_crosswise,
)
from vbd.ensemble.fusion import fuse_all
from vbd.ensemble.predict import images_of_part, predict
from vbd.ensemble.select import FusionOptions, HonestGain, Selection, honest_gain, select_members
from vbd.errors import InputError
from vbd.evaluation.average_precision import Scores, evaluate
from vbd.records import Detections, Truth, detections_to_table
from vbd.submission import check_submission, write_submission
from vbd.training.members import Member, read_members

SCHEMA = 1
FUSION = FusionOptions()


@dataclass(frozen=True)
class Recipe:
    """What turns the members' detections into a submission's."""

    weights: dict[str, float]
    calibrations: dict[str, Calibration]
    no_finding: NoFinding

    def apply(self, found: dict[str, list[list[Detections]]]) -> list[Detections]:
        """Raw detections of each checkpoint of the members that have a weight -> calibrated, fused, with P(no finding).

        A checkpoint is calibrated before it is fused with its member's others: the fit was made on single checkpoints.
        """
        calibrated = {
            name: _fuse_runs([self.calibrations[name].apply(run) for run in found[name]]) for name in self.weights
        }
        return self.no_finding.apply(_fuse(calibrated, self.weights))


@dataclass(frozen=True)
class EnsembleResult:
    """Where the submission is, how it was made, and a text for people."""

    output: str
    recipe: Recipe
    selection: Selection
    gain: HonestGain
    out_of_fold: Scores
    test: dict[str, Scores]  # of every member and of the ensemble; empty when the truth of the test part is not known
    summary: str


def build_ensemble(
    run: str,
    data: str,
    *,
    options: RunOptions,
    output: str | None = None,
    part: str = "test",
) -> EnsembleResult:
    """Builds the ensemble of a run's kept checkpoints and writes its submission; needs a Ray connection.

    `run` is the folder of a search or of a training over folds. Raises InputError when it has no members, or when they were
    trained on another dataset.
    """
    dataset = open_dataset(data)
    best = storage.join(run, "best")
    folder = best if storage.exists(storage.join(best, "manifest.json")) else run
    members = read_members(folder, dataset)
    out_of_fold, truths = _common_images({m.name: m.out_of_fold() for m in members}, read_truths(dataset, "train"))
    calibrated = {name: calibrate_crosswise(found, truths) for name, found in out_of_fold.items()}
    selection = select_members(calibrated, truths, options=FUSION)
    gain = honest_gain(calibrated, truths, seed=0, options=FUSION)
    recipe = _fit(selection, gain, out_of_fold, calibrated, truths)
    fused = no_finding_crosswise(_fuse(calibrated, recipe.weights), truths)

    truth_is_known = storage.exists(storage.join(dataset.location, "annotations", "instances_test.json"))
    wanted = [m for m in members if truth_is_known or m.name in recipe.weights]
    found = _predict_members(wanted, dataset, part, options=options)
    detections = recipe.apply(found)
    target = output or storage.join(run, "submission.csv")
    _write_checked(detections, target, dataset)
    result = EnsembleResult(
        output=target,
        recipe=recipe,
        selection=selection,
        gain=gain,
        out_of_fold=evaluate(fused, truths),
        test=_test_scores(found, detections, dataset) if truth_is_known else {},
        summary="",
    )
    result = dataclasses.replace(result, summary=_summary(result, dataset))
    storage.write_table(storage.join(run, "ensemble_out_of_fold.parquet"), detections_to_table(fused))
    storage.write_json(storage.join(run, "ensemble.json"), _to_json(result, dataset))
    return result


def _common_images(
    found: dict[str, list[Detections]], truths: Sequence[Truth]
) -> tuple[dict[str, list[Detections]], list[Truth]]:
    """The images that no member was trained on: only there can the members be compared."""
    common = set.intersection(*({d.image_id for d in detections} for detections in found.values()))
    if not common:
        raise InputError(
            "the members were validated on different folds and share no image; train them on the same folds"
        )
    return (
        {name: [d for d in detections if d.image_id in common] for name, detections in found.items()},
        [truth for truth in truths if truth.image_id in common],
    )


def _fit(
    selection: Selection,
    gain: HonestGain,
    out_of_fold: dict[str, list[Detections]],
    calibrated: dict[str, list[Detections]],
    truths: Sequence[Truth],
) -> Recipe:
    weights = {selection.best_single: 1.0} if gain.verdict == "single" else selection.weights
    return Recipe(
        weights=weights,
        calibrations={name: fit_calibration(out_of_fold[name], truths) for name in weights},
        no_finding=fit_no_finding(_fuse(calibrated, weights), truths),
    )


def _fuse(calibrated: dict[str, list[Detections]], weights: dict[str, float]) -> list[Detections]:
    if len(weights) == 1:
        return calibrated[next(iter(weights))]
    return fuse_all(
        [calibrated[name] for name in weights],
        list(weights.values()),
        iou_threshold=FUSION.iou_threshold,
        skip_threshold=FUSION.skip_threshold,
        confidence=FUSION.confidence,
    )


def _fuse_runs(runs: list[list[Detections]]) -> list[Detections]:
    """The detections of a member's checkpoints, one for each fold, as one."""
    return runs[0] if len(runs) == 1 else fuse_all(runs, [1.0] * len(runs))


def _predict_members(
    members: Sequence[Member], dataset: PreparedDataset, part: str, *, options: RunOptions
) -> dict[str, list[list[Detections]]]:
    """Raw detections of each checkpoint of each member; as they were made out of fold, without augmentation."""
    checkpoints = [folder for member in members for folder in member.folders]
    predictions = predict(checkpoints, images_of_part(dataset, part), options=options)
    if predictions.rejects:
        first = predictions.rejects[0]
        raise InputError(f"{first['file']}: {first['reason']}; prepare the dataset again")
    return {member.name: [predictions.by_checkpoint[folder] for folder in member.folders] for member in members}


def _write_checked(detections: Sequence[Detections], output: str, dataset: PreparedDataset) -> None:
    ids, sizes = sample_submission_ids(dataset), image_sizes(dataset, "test")
    write_submission(detections, output, image_ids=ids, original_hw=sizes)
    defects = check_submission(output, image_ids=ids, original_hw=sizes)
    if defects:
        raise RuntimeError(f"{output}: the submission that was written has defects: {defects[0]}")


def _test_scores(
    found: dict[str, list[list[Detections]]], detections: list[Detections], dataset: PreparedDataset
) -> dict[str, Scores]:
    truths = read_truths(dataset, "test")
    fused = {name: _fuse_runs(runs) for name, runs in found.items()} | {"ensemble": detections}
    return {name: evaluate(item, truths) for name, item in fused.items()}


def _summary(result: EnsembleResult, dataset: PreparedDataset) -> str:
    gain, singles = result.gain, result.selection.single_scores
    title = "map_40_findings" + (" (synthetic data)" if dataset.synthetic else "")
    lines = [f"{title:32s}  weight  validation" + ("    test" if result.test else "")]
    rows = [*((name, result.recipe.weights.get(name, 0.0), score) for name, score in singles.items())]
    rows.append(("ensemble", 1.0, result.out_of_fold.map_40_findings))
    for name, weight, score in rows:
        test = f"  {result.test[name].map_40_findings:.4f}" if result.test else ""
        lines.append(f"  {name:30s}  {weight:6.2f}  {score:10.4f}{test}")
    lines.append(
        "validation chose members and weights; on images that took no part: "
        f"ensemble {gain.fused:.4f}, best single {gain.single:.4f}, "
        f"gain {gain.gain.estimate:+.4f} (95 % interval {gain.gain.low:+.4f} to {gain.gain.high:+.4f}): {_VERDICTS[gain.verdict]}"
    )
    lines.append(
        f"map_40 with No finding: validation {result.out_of_fold.map_40:.4f}"
        + (f", test {result.test['ensemble'].map_40:.4f}" if result.test else "")
    )
    lines.append(f"submission   {result.output} (checked)")
    return "\n".join(lines)


_VERDICTS = {
    "ensemble": "the ensemble is better",
    "undecided": "better here, but the interval holds 0",
    "single": "do not ensemble; the best single model is submitted",
}


def _to_json(result: EnsembleResult, dataset: PreparedDataset) -> dict[str, object]:
    recipe = result.recipe
    return {
        "schema": SCHEMA,
        "dataset": dataset.fingerprint,
        "synthetic": dataset.synthetic,
        "weights": recipe.weights,
        "fusion": dataclasses.asdict(FUSION),
        "calibrations": {name: calibration.to_json() for name, calibration in recipe.calibrations.items()},
        "no_finding": recipe.no_finding.to_json(),
        "single_scores": result.selection.single_scores,
        "history": [dataclasses.asdict(step) for step in result.selection.history],
        "gain": {
            "fused": result.gain.fused,
            "single": result.gain.single,
            "interval": dataclasses.asdict(result.gain.gain),
            "verdict": result.gain.verdict,
        },
        "out_of_fold": dataclasses.asdict(result.out_of_fold),
        "test": {name: dataclasses.asdict(scores) for name, scores in result.test.items()},
        "submission": result.output.rsplit("/", 1)[-1],
    }
