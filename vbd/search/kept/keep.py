"""Which checkpoints of a search stay: while it runs those that may still be the best, and at its end the best.

A trial's place depends on its score and its id alone, so what is kept does not depend on who ended first.
"""

import re
from collections.abc import Collection, Iterable, Sequence

from vbd import storage
from vbd.config import FAMILIES
from vbd.errors import InputError
from vbd.records import Trial
from vbd.search.kept.leaderboard import Leaderboard, is_scored, ranked
from vbd.search.kept.trial import ENDED, TrialFolder, read_trials
from vbd.storage import deletion
from vbd.training.members import MANIFEST, OUT_OF_FOLD, Member, delete_checkpoint, write_members

# A kept checkpoint, or half of one: a process that is killed leaves it under another name.
_KEPT = re.compile(rf"({'|'.join(FAMILIES)})-[0-9]+(\.[0-9a-f]{{8}}\.tmp)?")


def best_of_families(trials: Sequence[Trial], *, per_family: int) -> dict[str, Trial]:
    """The best of each detector family by `<family>-<rank>`, of the trials that have a score and a checkpoint."""
    best: dict[str, Trial] = {}
    for trial in ranked(trials):
        family = trial.config.detector
        rank = 1 + sum(other.config.detector == family for other in best.values())
        if is_scored(trial) and trial.checkpoint and rank <= per_family:
            best[f"{family}-{rank}"] = trial
    return best


class Keeper:
    """Deletes the weights of trials that can no longer be among the best of their family; told of each that has ended.

    A trial that runs, waits or may be tried again is left alone: there are never more checkpoints than `per_family` for each
    family, beside those of such trials. All detections stay. Who falls out once never comes back, since with more trials
    nobody's place gets better. What it knows is read from the run folder, so a restart changes nothing.
    """

    def __init__(self, run: str, *, per_family: int, keep_all: bool = False, dataset: str | None = None):
        """Catches up with what a killed driver has left undone; `dataset` (fingerprint) as in `read_trials`."""
        self._run, self._per_family, self._keep_all = run, per_family, keep_all
        self._candidates: dict[str, Trial] = {}
        if not keep_all:
            trials = read_trials(run, dataset)
            self._sort_out(trials)
            self._clear_leftovers([trial for trial in trials if trial.status in ENDED and not trial.checkpoint])

    def tell(self, trial: Trial) -> list[str]:
        """A trial as it has ended; returns the ids of those whose weights went. May be told twice."""
        return [] if self._keep_all else self._sort_out([trial])

    def _sort_out(self, trials: Iterable[Trial]) -> list[str]:
        self._candidates |= {trial.trial_id: trial for trial in trials if trial.status in ENDED and trial.checkpoint}
        best = best_of_families([*self._candidates.values()], per_family=self._per_family).values()
        kept = {trial.trial_id: trial for trial in best}
        gone = [trial_id for trial_id in self._candidates if trial_id not in kept]
        for trial_id in gone:
            TrialFolder(self._run, trial_id).prune()
        self._candidates = kept
        return gone

    def _clear_leftovers(self, trials: Sequence[Trial]) -> None:
        """A driver may have been killed between saying that a trial's weights are gone and deleting them."""
        folders = [TrialFolder(self._run, trial.trial_id) for trial in trials]
        for folder, names in zip(
            folders, storage.in_threads(storage.list_names, [f.location for f in folders]), strict=True
        ):
            if any(name.startswith("step-") for name in names):
                folder.prune()


def keep_best(run: str, board: Leaderboard, *, per_family: int) -> list[Member]:
    """The best checkpoints of each family in `best/`, with the manifest that the ensemble reads.

    What is there already is not copied again. Whenever the process is killed, a manifest names whole copies only: before
    one of them changes it goes, and it is written when all are there.
    """
    folder = storage.join(run, "best")
    best = best_of_families(board.trials, per_family=per_family)
    if not best:
        _clear(folder, wanted=())
        raise InputError(f"{run}: no trial of the search ended with a score; see leaderboard.txt for the reasons")
    places = {name: storage.join(folder, name) for name in best}
    missing = [name for name, trial in best.items() if not _is_copy(trial.checkpoint, places[name])]
    if missing:
        storage.delete_file(storage.join(folder, MANIFEST))
    for name in missing:
        delete_checkpoint(places[name])
        storage.copy_folder(best[name].checkpoint, places[name])
    members = [Member(name, trial.trial_id, trial.score, (places[name],)) for name, trial in best.items()]
    write_members(folder, members, board.dataset, synthetic=board.synthetic)
    _clear(folder, wanted=(*best, MANIFEST))
    return members


def _clear(folder: str, *, wanted: Collection[str]) -> None:
    """Deletes what an earlier end of this search kept, or a killed one left, and what is not `wanted` now."""
    unwanted = [name for name in storage.list_names(folder) if name not in wanted and _KEPT.fullmatch(name)]
    deletion.keep_only(folder, {*wanted, *unwanted}, MANIFEST.__eq__)  # the manifest first: it names whole copies only
    for name in unwanted:
        delete_checkpoint(storage.join(folder, name))


def _is_copy(checkpoint: str, copy: str) -> bool:
    """Whether a folder holds the same files, whatever else; config.json tells the SHA-256 of those of weights."""
    sizes, copied = (
        {name: facts.size for name, facts in storage.list_files(folder).items()} for folder in (checkpoint, copy)
    )
    return sizes.items() <= copied.items() and all(
        storage.read_bytes(storage.join(checkpoint, name)) == storage.read_bytes(storage.join(copy, name))
        for name in ("config.json", OUT_OF_FOLD)
    )
