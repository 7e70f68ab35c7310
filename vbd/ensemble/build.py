"""From kept checkpoints to a checked submission; everything is fitted on out-of-fold detections alone."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vbd import storage
from vbd.config import Family, RunOptions, finds_boxes
from vbd.console.words import count_of
from vbd.data.prepared import PreparedDataset, image_sizes, open_dataset, read_truths, sample_submission_ids
from vbd.ensemble.choose.diversity import diversity
from vbd.ensemble.fit import Plan, fit_ensemble
from vbd.ensemble.normal.no_finding import mean_logits
from vbd.ensemble.recipe import FILE, SCHEMA
from vbd.ensemble.result import ENSEMBLE, EnsembleResult
from vbd.errors import InputError
from vbd.evaluation.average_precision import Scores, evaluate
from vbd.fusion.detections import fuse_all
from vbd.predict.images import images_of_part
from vbd.predict.request import predict
from vbd.records import Detections, Truth, detections_to_table, finds_nothing
from vbd.storage.ownership import own
from vbd.submission.check import check_submission
from vbd.submission.file import write_submission
from vbd.training.checkpoint import family_of
from vbd.training.members import Member, members_folder, read_members


def build_ensemble(
    run: str,
    data: str,
    *,
    options: RunOptions,
    output: str | None = None,
    plan: Plan | None = None,
    say: Callable[[str], None] | None = None,
    connect: Callable[[], object] = lambda: None,
) -> EnsembleResult:
    """Builds the ensemble of a run's kept checkpoints and writes its submission; `connect` is called before Ray is needed.

    `run` is the folder of a search or of a training over folds. Raises InputError when it has no members, when they were
    trained on another dataset, when they share no image that none was trained on, or when another job works in the run.
    """
    say = say or functools.partial(print, flush=True)
    dataset = open_dataset(data)
    read_members(members_folder(run), dataset)  # a mistake is found before anything is written or Ray is started
    with own(run, "ensemble") as owner:
        connect()
        return _build(run, dataset, output, options=options, plan=plan or Plan(), say=say, check=owner.check)


def _build(
    run: str,
    dataset: PreparedDataset,
    output: str | None,
    *,
    options: RunOptions,
    plan: Plan,
    say: Callable[[str], None],
    check: Callable[[], None],
) -> EnsembleResult:
    """`check` is called before anything is written."""
    members = read_members(members_folder(run), dataset)
    families = {member.name: family_of(member) for member in members}
    found, truths = _common_images({m.name: m.out_of_fold() for m in members}, read_truths(dataset, "train"))
    for name, each in found.items():
        if finds_nothing(each):
            say(f"warning: {name}: finds nothing in all {len(each):,} images that none was trained on")
    boxes = {name: each for name, each in found.items() if finds_boxes(families[name])}
    whole = {name: each for name, each in found.items() if not finds_boxes(families[name])}
    say(
        f"{count_of(len(boxes), 'detector')} and {count_of(len(whole), 'classifier')} on {len(truths):,} images that none "
        "was trained on"
    )
    fitted = fit_ensemble(boxes, whole, truths, plan, say=say)

    truth_is_known = storage.exists(storage.join(dataset.location, "annotations", "instances_test.json"))
    wanted = [m for m in members if truth_is_known or m.name in fitted.recipe.members]
    predicted = _predict_members(wanted, dataset, options=options, say=say)
    for name, runs in predicted.items():
        if all(map(finds_nothing, runs)):
            say(f"warning: {name}: finds nothing in all {len(runs[0]):,} test images")
    detections = fitted.recipe.apply(predicted)
    target = output or storage.join(run, "submission.csv")
    check()
    _write_checked(detections, target, dataset)
    result = EnsembleResult(
        output=target,
        dataset=dataset,
        families=families,
        found=found,
        truths=truths,
        fitted=fitted,
        singles={name: evaluate(each, truths) for name, each in found.items()},
        out_of_fold=evaluate(fitted.unseen, truths),
        diversity=diversity(boxes, truths),
        test=_test_scores(predicted, families, detections, dataset) if truth_is_known else {},
        detections=detections,
    )
    storage.write_table(storage.join(run, "ensemble_out_of_fold.parquet"), detections_to_table(fitted.unseen))
    storage.write_json(storage.join(run, FILE), to_json(result))
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


def _predict_members(
    members: Sequence[Member], dataset: PreparedDataset, *, options: RunOptions, say: Callable[[str], None]
) -> dict[str, list[list[Detections]]]:
    """Raw detections of each checkpoint of each member; as they were made out of fold, without augmentation."""
    checkpoints = [folder for member in members for folder in member.folders]
    images = images_of_part(dataset, "test")
    say(f"predicting {len(images):,} test images with {count_of(len(checkpoints), 'checkpoint')}")
    predictions = predict(checkpoints, images, options=options)
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
    predicted: dict[str, list[list[Detections]]],
    families: dict[str, Family],
    detections: list[Detections],
    dataset: PreparedDataset,
) -> dict[str, Scores]:
    truths = read_truths(dataset, "test")
    fused = {name: _as_one(runs, is_classifier=not finds_boxes(families[name])) for name, runs in predicted.items()}
    return {name: evaluate(item, truths) for name, item in (fused | {ENSEMBLE: detections}).items()}


def _as_one(runs: list[list[Detections]], *, is_classifier: bool) -> list[Detections]:
    """What a member's checkpoints found, without an ensemble's recipe."""
    if len(runs) == 1 or not is_classifier:
        return runs[0] if len(runs) == 1 else fuse_all(runs, [1.0] * len(runs))
    image_ids = [found.image_id for found in runs[0]]
    logits = mean_logits({"member": runs}, image_ids)
    assert logits is not None
    p = 1 / (1 + np.exp(-logits))
    return [Detections(image_id, no_finding=value) for image_id, value in zip(image_ids, p.tolist(), strict=True)]


def to_json(result: EnsembleResult) -> dict[str, Any]:
    """What `ensemble.json` holds: the recipe, and what it and each of its parts are worth."""
    fitted, dataset = result.fitted, result.dataset
    gain, choice = fitted.gain, fitted.choice
    return {
        "schema": SCHEMA,
        "dataset": dataset.fingerprint,
        "synthetic": dataset.synthetic,
        "recipe": fitted.recipe.to_json(),
        "families": result.families,
        "single_scores": {name: result.singles[name].map_40_findings for name in result.detectors},
        "singles": {name: dataclasses.asdict(scores) for name, scores in result.singles.items()},
        "history": [dataclasses.asdict(step) for step in choice.selection.history] if choice else [],
        "gain": {
            "fused": gain.fused,
            "single": gain.single,
            "interval": dataclasses.asdict(gain.gain),
            "verdict": gain.verdict,
        }
        if gain
        else {},
        "no_finding": {
            "log_losses": fitted.no_finding.log_losses,
            "sources": {source: score.to_json() for source, score in fitted.sources.items()},
            "best": fitted.best_source.to_json(),
        },
        "gates": {kind: worth.to_json() for kind, worth in fitted.gates.items()},
        "diversity": result.diversity.to_json(),
        "out_of_fold": dataclasses.asdict(result.out_of_fold),
        "test": {name: dataclasses.asdict(scores) for name, scores in result.test.items()},
        "submission": result.output.rsplit("/", 1)[-1],
    }
