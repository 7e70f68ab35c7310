"""The scores of a search told again: each from its trial's checkpoint, by the very validation that the loop ran.

Where a trial's weights were not kept, its detections are what is left to score again.
"""

import difflib
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from vbd import storage
from vbd.config import Device
from vbd.data.prepared import PreparedDataset, open_dataset
from vbd.detections import read_detections
from vbd.errors import InputError, StoreError
from vbd.evaluation.average_precision import evaluate
from vbd.evaluation.score import score_of
from vbd.records import Detections, Trial
from vbd.search.kept.claim import read_claim
from vbd.search.kept.leaderboard import is_scored, ranked, read_leaderboard
from vbd.search.kept.proof import TruthsOfFold, agree, prove, score_of_detections, truths_of_fold
from vbd.search.kept.trial import TrialFolder, read_trials
from vbd.training.members import read_members
from vbd.training.replay import detect_again, device_to_replay

TOLERANCE = 1e-6
_WIDTHS = (10, 12, 10, 10, 10, 38)


@dataclass(frozen=True)
class Replay:
    """A trial, and what its score is when it is computed again."""

    trial: Trial  # with the score that is told of it
    source: str  # what it was recomputed from, and on which device
    recomputed: float = math.nan  # NaN when that could not be
    fault: str = ""  # why the trial may not claim its score, whatever was recomputed
    note: str = ""  # what else was seen: of the detections, or the likely reason of a difference

    @property
    def agrees(self) -> bool:
        """Whether the score is proven."""
        return not self.fault and agree(self.recomputed, self.trial.score, tolerance=TOLERANCE)


def replay_run(
    run: str,
    *,
    trial: str = "best",
    data: str | None = None,
    device: Device = "auto",
    say: Callable[[str], None] | None = None,
) -> bool:
    """Tells the scores of trials of a search again, a line for each, and whether all are what was told; needs no Ray.

    `trial` is an id, `best` (the first of each family in `best/`, with the weights there) or `all` that have a score.
    `data` is by default where the search found its dataset. Raises InputError for a run or a trial that is not there, and for
    another dataset.
    """
    say = say or functools.partial(print, flush=True)
    trials, fingerprint, whence = _told(run)
    dataset = _dataset_of(run, data, fingerprint)
    chosen = _chosen(run, trials, trial, dataset)
    for each in chosen:
        check_device(each, device)
    label = " (synthetic data)" if dataset.synthetic else ""
    say(f"{storage.shown(run)}: scores of {whence}, told again on {storage.shown(dataset.location)}{label}")
    say(_line("trial", "family", "told", "recomputed", "difference", "from", "verdict"))
    truths = truths_of_fold(dataset)
    replays = []
    for each in chosen:
        replays.append(_replay(run, each, dataset, truths, device=device))
        say(_line(*_cells(replays[-1])))
    say(_summary(replays))
    return all(replay.agrees for replay in replays)


# ------------------------------------------------------------------------------------------------------- what is asked


def _told(run: str) -> tuple[Sequence[Trial], str, str]:
    """The trials with the scores that are told of them, the fingerprint of their dataset, and where they stand."""
    if storage.exists(storage.join(run, "leaderboard.json")):
        board = read_leaderboard(run)
        return [_where_it_lies(run, trial) for trial in board.trials], board.dataset, "leaderboard.json"
    claim = read_claim(run)
    if claim is None:
        raise InputError(f"{run}: holds no search (no run.json); give the folder of one (jobs/tune.py)")
    return ranked(read_trials(run, claim.dataset)), claim.dataset, "trials/, as there is no leaderboard yet"


def _where_it_lies(run: str, trial: Trial) -> Trial:
    """With its files as they lie now: when a search is extended, weights go that the leaderboard names until its end."""
    now = TrialFolder(run, trial.trial_id).read()
    if now is None or (now.steps, now.score) != (trial.steps, trial.score):
        return trial
    return replace(trial, checkpoint=now.checkpoint, detections=now.detections)


def _dataset_of(run: str, data: str | None, fingerprint: str) -> PreparedDataset:
    claim = read_claim(run)
    own = claim.data if claim else ""
    if data is None and not (own and storage.exists(storage.join(own, "dataset.json"))):
        told = f"its dataset is not at {own} any more" if own else "run.json does not tell where its dataset is"
        raise InputError(f"{run}: {told}; give --data, the prepared dataset {fingerprint}")
    dataset = open_dataset(data or own)
    if dataset.fingerprint != fingerprint:
        raise InputError(
            f"{run}: a search on dataset {fingerprint}, but {data or own} is {dataset.fingerprint}; give --data the dataset "
            "of this run"
        )
    return dataset


def _chosen(run: str, trials: Sequence[Trial], which: str, dataset: PreparedDataset) -> list[Trial]:
    match which:
        case "all":
            chosen = [trial for trial in trials if is_scored(trial)]
            if not chosen:
                raise InputError(f"{run}: none of its {len(trials)} trials has a score to tell again")
            return chosen
        case "best":
            return _best(run, trials, dataset)
        case _:
            return [_by_id(run, trials, which)]


def _best(run: str, trials: Sequence[Trial], dataset: PreparedDataset) -> list[Trial]:
    """The first of each family, its checkpoint the copy that the ensemble reads."""
    folder = storage.join(run, "best")
    first = [member for member in read_members(folder, dataset) if member.name.endswith("-1")]
    by_id = {trial.trial_id: trial for trial in trials}
    for member in first:
        if member.trial_id not in by_id:
            raise InputError(
                f"{folder}: {member.name} is trial {member.trial_id}, of which the leaderboard knows nothing"
            )
    return [replace(by_id[member.trial_id], checkpoint=member.folders[0]) for member in first]


def _by_id(run: str, trials: Sequence[Trial], trial_id: str) -> Trial:
    ids = [trial.trial_id for trial in trials]
    if trial_id not in ids:
        begins = [known for known in ids if trial_id and known.startswith(trial_id)]
        near = begins[:3] or difflib.get_close_matches(trial_id, ids)
        stand = storage.join(
            run, "leaderboard.txt" if storage.exists(storage.join(run, "leaderboard.txt")) else "trials"
        )
        hint = f"did you mean {' or '.join(near)}? All ids" if near else "give best, all or an id; the ids"
        raise InputError(f"--trial {trial_id}: no trial of {run}; {hint} stand in {stand}")
    trial = trials[ids.index(trial_id)]
    if not is_scored(trial):
        reason = f": {trial.reason}" if trial.reason else ""
        raise InputError(f"--trial {trial_id}: has no score to tell again ({trial.status}{reason})")
    return trial


def check_device(trial: Trial, device: Device) -> None:
    """Raises InputError for a trial whose precision the device that it would be recomputed on has not."""
    where = device_to_replay(device, trained_on=trial.device)
    if trial.checkpoint and trial.config.precision == "fp16" and where.type == "cpu":
        raise InputError(f"trial {trial.trial_id}: its precision fp16 needs a GPU; recompute it where there is one")


# ------------------------------------------------------------------------------------------------------- and the answer


def _replay(run: str, trial: Trial, dataset: PreparedDataset, truths: TruthsOfFold, *, device: Device) -> Replay:
    proven = prove(trial, truths)
    fault = proven.reason if proven.status == "refused" else ""
    if not trial.checkpoint:
        replay = Replay(trial, "detections, weights not kept", fault=fault)
        try:
            return replace(replay, recomputed=score_of_detections(trial, truths(trial.config.fold)))
        except StoreError:
            raise
        except InputError as error:
            return replace(replay, fault=fault or str(error))
    where = device_to_replay(device, trained_on=trial.device)
    place = trial.checkpoint.removeprefix(f"{run.rstrip('/')}/").removeprefix(f"trials/{trial.trial_id}/")
    replay = Replay(trial, f"checkpoint {place} on {where.type}", fault=fault)
    report = next((report for report in trial.history if report["step"] == trial.steps), {})
    try:
        found = detect_again(trial.checkpoint, dataset, device=where, workers=report.get("workers", 1))
    except StoreError:
        raise
    except InputError as error:
        return replace(replay, fault=fault or str(error))
    scores = evaluate(found, truths(trial.config.fold))
    replay = replace(replay, recomputed=score_of(trial.config.detector, scores))
    if fault:
        return replay
    notes = [_compared(found, trial.detections)]
    return replace(replay, note="; ".join(notes if replay.agrees else [_likely_reason(trial, where.type), *notes]))


def _compared(found: Sequence[Detections], kept: str) -> str:
    """How many images have detections that are not those kept, to the last bit."""
    before = {detections.image_id: detections for detections in read_detections(kept)}
    others = sum(not _is_same(one, before.get(one.image_id)) for one in found)
    return (
        f"detections other than kept in {others} of {len(found)} images" if others else "detections bit for bit as kept"
    )


def _is_same(one: Detections, other: Detections | None) -> bool:
    return other is not None and all(
        np.array_equal(getattr(one, name), getattr(other, name)) for name in ("boxes", "scores", "labels")
    )


def _likely_reason(trial: Trial, where: str) -> str:
    """What may have made a score another that nothing else speaks against."""
    precision = trial.config.precision
    coarsely = f" in {precision}, which rounds coarsely" if precision != "fp32" else ""
    if trial.device and not trial.device.startswith(where):
        return (
            f"likely as it was trained on {trial.device} and recomputed on {where}{coarsely}: devices round differently"
        )
    if coarsely:
        return f"likely as it was computed{coarsely}, on other hardware or with other libraries"
    return "its weights, the dataset's images, the libraries or the options (--set threads ...) are not those of the training"


def _cells(replay: Replay) -> tuple[str, ...]:
    trial, difference = replay.trial, replay.recomputed - replay.trial.score
    verdict = f"refused: {replay.fault}" if replay.fault else "agrees" if replay.agrees else "differs"
    return (
        *(trial.trial_id, trial.config.detector, _number(trial.score), _number(replay.recomputed)),
        "-" if math.isnan(difference) else f"{difference:+.1e}" if difference else "0",
        *(replay.source, f"{verdict}; {replay.note}" if replay.note else verdict),
    )


def _number(score: float) -> str:
    return "-" if math.isnan(score) else f"{score:.8f}"


def _line(*cells: str) -> str:
    *columns, last = cells
    return "  ".join([*(cell.ljust(width) for cell, width in zip(columns, _WIDTHS, strict=True)), last])


def _summary(replays: Sequence[Replay]) -> str:
    good = sum(replay.agrees for replay in replays)
    detections = sum(not replay.trial.checkpoint for replay in replays)
    checkpoints = len(replays) - detections
    origins = [f"{checkpoints} by their checkpoints" if checkpoints else ""]
    origins += [f"{detections} by their kept detections alone, as their weights were not kept" if detections else ""]
    return f"{good} of {len(replays)} agree to {TOLERANCE:g}; {', '.join(filter(None, origins))}"
