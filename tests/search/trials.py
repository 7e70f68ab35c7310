"""Trials for the tests of what a search leaves: with detections that score what they say, and weights of nothing."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from vbd import storage
from vbd.config import TrainConfig, config_hash
from vbd.data.prepared import PreparedDataset, open_dataset, read_truths
from vbd.evaluation.average_precision import evaluate
from vbd.evaluation.score import SCORE
from vbd.records import Detections, Trial, Truth, detections_to_table
from vbd.search.kept.trial import TrialFolder, trial_id_of
from vbd.training.checkpoint import write_checkpoint
from vbd.training.members import OUT_OF_FOLD

RCNN = {"detector": "faster_rcnn", "variant": "resnet50"}


def config_of(seed: int, **fields: Any) -> TrainConfig:
    """Forty steps; each seed is another trial."""
    return replace(TrainConfig(steps=40, report_every=10, seed=seed), **fields)


def trial_of(seed: int, score: float, **fields: Any) -> Trial:
    """A finished trial that left nothing on the disk."""
    config = config_of(seed, **fields)
    return Trial(trial_id_of(config), config, config_hash(config), score, 40, "")


def seen(truth: Truth, skill: float) -> Detections:
    """The findings of an image, each but a share of them found."""
    kept = np.arange(len(truth.labels)) < round(skill * len(truth.labels))
    scores = np.full(int(kept.sum()), 0.9, np.float32)
    return Detections(truth.image_id, truth.boxes[kept], scores, truth.labels[kept])


def checkpoint_of(folder: Path, config: TrainConfig, data: str, *, step: int, skill: float = 0.5) -> dict[str, Any]:
    """A checkpoint with the detections of some skill on the config's fold; returns the metrics it carries."""
    dataset = open_dataset(data)
    truths = read_truths(dataset, config.fold)
    found = [seen(truth, skill) for truth in truths]
    metrics = {"step": step, SCORE: evaluate(found, truths).map_40_findings}
    _write(folder, config, dataset, metrics, found)
    return metrics


def _write(folder: Path, config: TrainConfig, dataset: PreparedDataset, metrics: dict, found: list[Detections]) -> None:
    write_checkpoint(
        folder, config=config, dataset=dataset, weights={}, state={}, step=metrics["step"], metrics=metrics
    )
    storage.write_table(str(folder / OUT_OF_FOLD), detections_to_table(found))


def ended_trial(run: str, scratch: Path, config: TrainConfig, data: str, *, skill: float = 0.5) -> Trial:
    """A trial in the folder of a run, with one report at its last step."""
    folder = TrialFolder(run, trial_id_of(config))
    folder.begin(config, dataset=open_dataset(data).fingerprint, number=config.seed)
    metrics = checkpoint_of(scratch / folder.trial_id, config, data, step=config.steps, skill=skill)
    folder.keep(metrics | {"seconds": 1.0}, scratch / folder.trial_id)
    return folder.finish()


class FakeTrials:
    """Trials whose checkpoints are two small files, to count what lies on a disk or in a store."""

    def __init__(self, run: str, scratch: Path, data: str):
        self.run, self.dataset = run, open_dataset(data)
        self._made = scratch / "checkpoint"

    def folder(self, config: TrainConfig) -> TrialFolder:
        """The folder of a trial."""
        return TrialFolder(self.run, trial_id_of(config))

    def begin(self, config: TrainConfig) -> None:
        """The trial runs."""
        self.folder(config).begin(config, dataset=self.dataset.fingerprint, number=config.seed)

    def report(self, config: TrainConfig, *, step: int, score: float) -> None:
        """One report, and its checkpoint."""
        metrics = {"step": step, SCORE: score}
        _write(self._made, config, self.dataset, metrics, [Detections("one")])
        self.folder(config).keep(metrics, self._made)

    def checkpoints(self) -> list[str]:
        """All checkpoints of the run, as <trial>/<step>."""
        trials = storage.join(self.run, "trials")
        return [
            f"{trial}/{name}"
            for trial in storage.list_names(trials)
            for name in storage.list_names(storage.join(trials, trial))
            if name.startswith("step-")
        ]
