"""A search's run folder read for its report, whether the search has ended, still runs, or was killed."""

from collections.abc import Sequence
from dataclasses import dataclass

from vbd import storage
from vbd.data.prepared import PreparedDataset, open_dataset
from vbd.errors import InputError
from vbd.records import Trial
from vbd.search.kept.claim import read_claim
from vbd.search.kept.leaderboard import Leaderboard, is_scored, ranked, read_leaderboard
from vbd.search.kept.trial import read_trials
from vbd.training.members import MANIFEST

_IN_HAND = ("running", "waiting", "died", "unfinished")  # states of trials that a search would still go on with


@dataclass(frozen=True)
class SearchRun:
    """What is known of a search."""

    location: str
    board: Leaderboard
    unfinished: str  # why this is not all of it, in words; empty when it is
    dataset: PreparedDataset | None  # with its truth, when it was given


def read_search(run: str, data: str | None = None) -> SearchRun:
    """The leaderboard of a run, or its trials as they stand where there is none or they have gone on since.

    Raises InputError when the folder holds neither, and when `data` is another dataset than the search's.
    """
    dataset = open_dataset(data) if data else None
    board = read_leaderboard(run) if storage.exists(storage.join(run, "leaderboard.json")) else None
    claim = read_claim(run)
    if board is None and claim is None:
        raise InputError(f"{run}: neither leaderboard.json nor run.json; give the folder of a search (jobs/tune.py)")
    fingerprint = board.dataset if board else claim.dataset if claim else ""
    if dataset is not None and dataset.fingerprint != fingerprint:
        raise InputError(
            f"{run}: a search on dataset {fingerprint}, but {dataset.location} is {dataset.fingerprint}; give --data the "
            "dataset of this run"
        )
    trials = read_trials(run, fingerprint)
    if board is None or _has_gone_on(board, trials):
        preset = claim.preset if claim else "unknown"
        synthetic = board.synthetic if board else _is_synthetic(dataset, claim.data if claim else "")
        why = "it has gone on since its leaderboard was written" if board else "it has no leaderboard yet"
        return SearchRun(run, Leaderboard(preset, fingerprint, synthetic, ranked(trials)), why, dataset)
    return SearchRun(run, board, _why_unfinished(run, board), dataset)


def _why_unfinished(run: str, board: Leaderboard) -> str:
    """Why a run whose leaderboard is written has more to do; empty when it has not."""
    waiting = sum(trial.status in _IN_HAND for trial in board.trials)
    if waiting:
        return f"{waiting} of its trials {'has' if waiting == 1 else 'have'} not ended"
    # Written last, by a search that has come to its end.
    if any(map(is_scored, board.trials)) and not storage.exists(storage.join(run, "best", MANIFEST)):
        return "it was stopped before all of its trials were drawn"
    return ""


def _has_gone_on(board: Leaderboard, trials: Sequence[Trial]) -> bool:
    """Whether trials on the disk are not on the board, or have reported since."""
    reports = {trial.trial_id: len(trial.history) for trial in board.trials}
    return any(len(trial.history) > reports.get(trial.trial_id, -1) for trial in trials)


def _is_synthetic(dataset: PreparedDataset | None, location: str) -> bool:
    """A run without a leaderboard does not say so itself; its dataset does, where it is within reach."""
    if dataset is None and location:
        try:
            dataset = open_dataset(location)
        except InputError:
            return False
    return dataset is not None and dataset.synthetic
