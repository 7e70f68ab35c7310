"""Whether a trial may claim its score: its id, its checkpoint and its detections must all tell the same."""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from vbd import storage
from vbd.config import config_hash
from vbd.data.prepared import PreparedDataset, read_truths
from vbd.detections import read_detections
from vbd.errors import InputError, StoreError
from vbd.evaluation.average_precision import evaluate
from vbd.evaluation.score import SCORE, score_of
from vbd.records import Trial, Truth
from vbd.search.kept.trial import trial_id_of
from vbd.training.checkpoint import read_info
from vbd.training.members import OUT_OF_FOLD

# How far a score may be from that of the detections. They are those of the loop's validation, to the last bit.
TOLERANCE = 1e-9
TruthsOfFold = Callable[[int], Sequence[Truth]]


def truths_of_fold(dataset: PreparedDataset) -> TruthsOfFold:
    """The truths of any fold of a dataset, each read once."""
    return functools.cache(lambda fold: read_truths(dataset, fold))


def prove(trial: Trial, truths_of_fold: TruthsOfFold) -> Trial:
    """The trial; or refused, without a score, when what it kept does not bear out what it tells.

    Its id must be its config's; its checkpoint must be whole, of the very config, step and score; and its detections must
    score the same. Where no weights were kept its detections are the proof. A failed trial has no score to prove. Raises
    StoreError when the store is out of reach, which proves nothing.
    """
    reason = _fault_of_config(trial)
    if not reason and trial.status == "failed":
        return replace(trial, score=math.nan)
    if not reason and trial.checkpoint:
        reason = fault_of_checkpoint(trial, trial.checkpoint)
    if not reason and not math.isnan(trial.score):
        reason = _fault_of_detections(trial, truths_of_fold)
    return replace(trial, status="refused", reason=reason, score=math.nan) if reason else trial


def _fault_of_config(trial: Trial) -> str:
    if config_hash(trial.config) != trial.config_hash:
        return f"its config has the hash {config_hash(trial.config)}, not {trial.config_hash}"
    if trial_id_of(trial.config) != trial.trial_id:
        return f"its config is that of trial {trial_id_of(trial.config)}"
    return ""


def fault_of_checkpoint(trial: Trial, folder: str) -> str:
    """Why a folder is not the checkpoint that a trial's score is of; empty when it is."""
    try:
        info = read_info(folder)
        sizes = {name: facts.size for name, facts in storage.list_files(folder).items()}
    except StoreError:
        raise
    except InputError as error:
        return str(error)
    if info.config_hash != trial.config_hash:
        return f"its checkpoint was trained with config {info.config_hash}, not {trial.config_hash}"
    if info.step != trial.steps:
        return f"its checkpoint is of step {info.step}, its score of step {trial.steps}"
    if not agree(_score(info.metrics.get(SCORE)), trial.score, tolerance=0):
        return f"its checkpoint scored {info.metrics.get(SCORE)}, not {trial.score}"
    for name, facts in info.files.items():
        if sizes.get(name) != facts.size:
            return f"its checkpoint is not whole: {name} has {sizes.get(name, 0)} of {facts.size} bytes"
    return ""


def _fault_of_detections(trial: Trial, truths_of_fold: TruthsOfFold) -> str:
    if not trial.detections:
        return "it kept no detections, from which its score could be told again"
    try:
        score = score_of_detections(trial, truths_of_fold(trial.config.fold))
        # What the ensemble reads is the copy in the checkpoint.
        own = storage.join(trial.checkpoint, OUT_OF_FOLD) if trial.checkpoint else ""
        differ = own and storage.read_bytes(own) != storage.read_bytes(trial.detections)
    except StoreError:
        raise
    except InputError as error:
        return str(error)
    if not agree(score, trial.score, tolerance=TOLERANCE):
        return f"its detections score {score:.9g}, not {trial.score:.9g}"
    return "the detections in its checkpoint are others than its own" if differ else ""


def score_of_detections(trial: Trial, truths: Sequence[Truth]) -> float:
    """The score of the detections that a trial kept; raises InputError for a file that is missing, broken or of other images."""
    return score_of(trial.config.detector, evaluate(read_detections(trial.detections), truths))


def agree(one: float, other: float, *, tolerance: float) -> bool:
    """Whether two scores are the same; two unknown ones are."""
    return abs(one - other) <= tolerance or (math.isnan(one) and math.isnan(other))


def _score(value: float | None) -> float:
    """A score as JSON keeps it: null when a fold has no findings."""
    return math.nan if value is None else value
