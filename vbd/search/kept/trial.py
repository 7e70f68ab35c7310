"""The trials of a run on disk: what each was, how far it came, and its checkpoints.

The run folder is the truth, Ray Tune only executes: whoever dies, what a search knows is read from here. A trial is named by
its config's hash, so the same configuration is the same trial, and goes on where it stopped.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vbd import storage
from vbd.config import TrainConfig, check_train_config, checked, config_hash
from vbd.config.phases import until
from vbd.evaluation.score import SCORE
from vbd.records import Trial
from vbd.training.checkpoint import CheckpointInfo, read_info, whole_checkpoints
from vbd.training.members import OUT_OF_FOLD, delete_checkpoint

SCHEMA = 2
# A trial in one of these states is not trained any more.
ENDED = ("finished", "stopped", "failed")


@dataclass(frozen=True)
class _OnDataset:
    """What trial.json holds beside the trial."""

    dataset: str  # fingerprint


def trial_id_of(config: TrainConfig) -> str:
    """The first digits of the config's hash."""
    return config_hash(config)[:10]


def trials_folder(run: str) -> str:
    """Where the trials of a run lie, each in a folder named by its id."""
    return storage.join(run, "trials")


def read_trials(run: str, dataset: str | None = None) -> list[Trial]:
    """All trials of a run in the order in which they were drawn; with a fingerprint only those on that dataset.

    Raises InputError for a trial.json that is broken.
    """
    folders = [TrialFolder(run, name) for name in storage.list_names(trials_folder(run)) if storage.is_safe_id(name)]
    found = storage.in_threads(lambda name: TrialFolder(run, name).read_with_dataset(), [f.trial_id for f in folders])
    mine = [trial for trial, fingerprint in filter(None, found) if dataset in (None, fingerprint)]
    return sorted(mine, key=lambda trial: (trial.number, trial.trial_id))


class TrialFolder:
    """The folder of one trial. One process writes it at a time: the trial's own, and when that has ended, the driver."""

    def __init__(self, run: str, trial_id: str):
        self.run, self.trial_id = run, trial_id
        self.location = storage.join(trials_folder(run), trial_id)
        self._json = storage.join(self.location, "trial.json")
        self._again = f"remove {self.location} to train the trial again"

    def read(self) -> Trial | None:
        """The trial, its paths absolute; None when it never began."""
        found = self.read_with_dataset()
        return found[0] if found else None

    def read_with_dataset(self) -> tuple[Trial, str] | None:
        """The trial and the fingerprint of the dataset that it is trained on."""
        if not storage.exists(self._json):
            return None
        data = storage.read_bytes(self._json)
        trial = checked.parse(data, Trial, where=self._json, schema=SCHEMA, again=self._again)
        dataset = checked.parse(data, _OnDataset, where=self._json, again=self._again)
        check_train_config(trial.config, where=f"{self._json}: config")
        if trial.trial_id != self.trial_id:
            problem = f"trial_id is {trial.trial_id}, but the folder is that of {self.trial_id}"
            raise checked.wrong(self._json, problem, again=self._again)
        places = {name: getattr(trial, name) for name in ("checkpoint", "detections")}
        inside: dict[str, Any] = {
            name: storage.join(self.location, place) if place else "" for name, place in places.items()
        }
        return dataclasses.replace(trial, **inside), dataset.dataset

    def _write(self, trial: Trial, dataset: str) -> Trial:
        names: dict[str, Any] = {
            name: getattr(trial, name).rstrip("/").rpartition("/")[2] for name in ("checkpoint", "detections")
        }  # relative: a run folder can be moved
        storage.write_json(
            self._json, {"schema": SCHEMA, "dataset": dataset} | dataclasses.asdict(dataclasses.replace(trial, **names))
        )
        return trial

    # ------------------------------------------------------------------------------------------------ its own process

    def begin(self, config: TrainConfig, *, dataset: str, number: int) -> str | None:
        """Begins the trial or goes on with it; returns the checkpoint to go on from.

        What it reports, and which checkpoint is its best, is set to what the disk holds up to there.
        """
        found = self.read_with_dataset()
        if found and found[1] != dataset:
            self._clear()  # the run was extended to another dataset: trained anew
            found = None
        trial = found[0] if found else None
        if trial is None:
            trial = Trial(self.trial_id, config, config_hash(config), math.nan, 0, "", number=number)
        own = self._own_checkpoints(config, dataset)
        start = max(own, default=0)
        history = [report for report in trial.history if report["step"] <= start]
        if own and (not history or history[-1]["step"] < start):  # killed between checkpoint and report
            history.append(own[start][1].metrics | {"step": start})
        trial = dataclasses.replace(trial, status="running", reason="", history=history)
        self._write(self._with_best(trial, own), dataset)
        return self.newest(config, dataset)

    def newest(self, config: TrainConfig, dataset: str) -> str | None:
        """The checkpoint to go on from: its own, or that of the trial it descends from; None when there is none."""
        own = self._own_checkpoints(config, dataset)
        return own[max(own)][0] if own else self._inherited(config, dataset)

    def _own_checkpoints(self, config: TrainConfig, dataset: str) -> dict[int, tuple[str, CheckpointInfo]]:
        """The whole checkpoints of this trial that fit the config, by step."""
        found = [(folder, read_info(folder)) for folder in whole_checkpoints(self.location, prefix="step-")]
        return {info.step: (folder, info) for folder, info in found if _fits(info, config, dataset)}

    def _inherited(self, config: TrainConfig, dataset: str) -> str | None:
        """The checkpoint at which the last phase begins, of the trial that this one descends from.

        When that is gone, the run is trained from further back, or from the beginning, and ends with the same weights.
        """
        if not config.phase_steps:
            return None
        begins = config.phase_steps[-1]
        parent = until(config, begins)
        folder = TrialFolder(self.run, trial_id_of(parent))
        own = folder._own_checkpoints(parent, dataset)
        usable = [step for step in own if step <= begins]
        return own[max(usable)][0] if usable else folder._inherited(parent, dataset)

    def _with_best(self, trial: Trial, own: dict[int, tuple[str, CheckpointInfo]]) -> Trial:
        """The trial with the best of the checkpoints on disk as its own, and that one's detections beside it."""
        last = trial.history[-1] if trial.history else {}
        trial = dataclasses.replace(
            trial, metrics=last, score=math.nan, steps=last.get("step", 0), checkpoint="", detections=""
        )
        if not own:
            return trial
        step = max(own, key=lambda step: (_rank(own[step][1].metrics.get(SCORE)), -step))
        folder, info = own[step]
        score = info.metrics.get(SCORE)
        return dataclasses.replace(
            trial,
            score=math.nan if score is None else score,
            steps=step,
            checkpoint=folder,
            detections=self._take_detections(folder),
        )

    def _take_detections(self, checkpoint: str) -> str:
        """Copies the detections beside a checkpoint to where they outlive it."""
        detections = storage.join(self.location, OUT_OF_FOLD)
        storage.write_bytes(detections, storage.read_bytes(storage.join(checkpoint, OUT_OF_FOLD)))
        return detections

    def keep(self, report: dict[str, Any], checkpoint: str | Path, *, hold: int = 0) -> Trial:
        """A report and its checkpoint: kept are the best checkpoint, the newest, and that of step `hold`.

        May be called again when it failed half-way.
        """
        found = self.read_with_dataset()
        assert found is not None, "begin comes first"
        before, dataset = found
        folder = storage.join(self.location, f"step-{report['step']:08d}")
        storage.copy_folder(str(checkpoint), folder)
        history = [*(earlier for earlier in before.history if earlier["step"] < report["step"]), report]
        trial = dataclasses.replace(
            before,
            history=history,
            metrics=report,
            host=report.get("host", before.host),
            device=report.get("device", before.device),
            seconds=seconds_of(history),
            peak_memory_mb=max((r.get("peak_memory_mb") or 0.0 for r in history), default=0.0),
        )
        if not before.checkpoint or _rank(report.get(SCORE)) > _rank(before.score):
            trial = dataclasses.replace(
                trial,
                score=report[SCORE],
                steps=report["step"],
                checkpoint=folder,
                detections=self._take_detections(folder),
            )
        self._write(trial, dataset)
        self._keep_only({trial.checkpoint, folder, storage.join(self.location, f"step-{hold:08d}")})
        return trial

    def finish(self) -> Trial:
        """All steps are done."""
        return self._end("finished", "")

    def wait(self) -> Trial:
        """Trained as far as it should be for now; its newest checkpoint stays."""
        return self._change(status="waiting", reason="")

    def fail(self, reason: str) -> Trial:
        """It cannot go on, whoever tries again."""
        return self._end("failed", reason)

    # ----------------------------------------------------------------------------------------------------- the driver

    def stop(self, reason: str) -> Trial:
        """The scheduler has ended it early."""
        return self._end("stopped", reason)

    def lose(self, reason: str) -> Trial:
        """Its process died time and again; the next search of this run tries it once more."""
        return self._change(status="died", reason=reason)

    def prune(self) -> Trial:
        """Deletes its checkpoints; its reports and the detections of the best stay."""
        trial = self._change(checkpoint="")  # first: what is told is there
        self._keep_only(set())
        return trial

    def _end(self, status: str, reason: str) -> Trial:
        trial = self._change(status=status, reason=reason)
        self._keep_only({trial.checkpoint})
        return trial

    def _change(self, **fields: Any) -> Trial:
        found = self.read_with_dataset()
        assert found is not None, "begin comes first"
        trial, dataset = found
        return self._write(dataclasses.replace(trial, **fields), dataset)

    def _clear(self) -> None:
        self._keep_only(set())
        for name in (self._json, storage.join(self.location, OUT_OF_FOLD)):
            storage.delete_file(name)

    def _keep_only(self, wanted: set[str]) -> None:
        for name in storage.list_names(self.location):
            folder = storage.join(self.location, name)
            if name.startswith("step-") and folder not in wanted:
                delete_checkpoint(folder)


def seconds_of(history: Sequence[dict[str, Any]]) -> float:
    """Seconds of training over all attempts, of which each report tells those of its own so far."""
    last: dict[Any, float] = {}
    for report in history:
        last[report.get("attempt_started")] = report.get("seconds") or 0.0
    return sum(last.values())


def _fits(info: CheckpointInfo, config: TrainConfig, dataset: str) -> bool:
    """Whether a run of `config` would have made this very checkpoint."""
    return info.dataset == dataset and until(info.config, info.step) == until(config, info.step)


def _rank(score: float | None) -> float:
    """A score to compare by; a fold without findings has none."""
    return -1.0 if score is None or score != score else score
