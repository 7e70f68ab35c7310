"""A trial that spans several workers: a Ray Train run inside the trial's process, which itself computes nothing.

It costs some twenty seconds and 1.3 GB more than a trial in one process, so one device per trial is a plain function.
"""

import dataclasses
from pathlib import Path
from typing import Any

import ray.train
from ray.train import get_context
from ray.train.torch import TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback

from vbd import storage
from vbd.config import RunOptions
from vbd.data.prepared import open_dataset
from vbd.errors import input_error_within
from vbd.search.kept.trial import TrialFolder, trial_id_of
from vbd.search.propose.proposal import Proposal
from vbd.search.tune.handed_over import Workers, proposal_of
from vbd.search.tune.report import Keeping
from vbd.training.folds.worker import attempt
from vbd.training.loop import TrainingError


def train_on_workers(
    proposal: Proposal, number: int, *, location: str, run: str, options: RunOptions, workers: Workers
) -> None:
    """Trains a proposal on several workers, whose reports reach Tune from there.

    Raises TrainingError when they cannot go on, whoever tries again.
    """
    config = proposal.config
    # Each time that memory runs out costs an attempt, and halves what goes through at a time.
    attempts = workers.max_failures + config.batch_size.bit_length()
    trainer = TorchTrainer(
        _worker,
        train_loop_config={
            "proposal": dataclasses.asdict(proposal) | {"number": number},
            "config": dataclasses.asdict(config),
            "options": dataclasses.asdict(options),
            "data": location,
            "run": run,
        },
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers.number,
            use_gpu=workers.gpus > 0,
            resources_per_worker=workers.each,
            label_selector=dict(workers.selector) or None,
        ),
        run_config=ray.train.RunConfig(
            name=f"train-{trial_id_of(config)}",
            storage_path=storage.join(run, "tune"),
            callbacks=[TuneReportCallback()],
            failure_config=ray.train.FailureConfig(max_failures=attempts),
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),  # or each worker that is lost leaves a traceback
        ),
    )
    try:
        reason = trainer.fit().return_value
    except ray.train.WorkerGroupError as error:
        for failure in error.worker_failures.values():
            if cause := input_error_within(failure):
                raise cause from error
        raise
    if reason:
        raise TrainingError(reason)


def _worker(task: dict[str, Any]) -> str:
    """One worker. The first of them writes the trial's folder; all go on from the same checkpoint in it."""
    proposal, number = proposal_of(task)
    config, context = proposal.config, get_context()
    folder = TrialFolder(task["run"], trial_id_of(config))
    is_first = context.get_world_rank() == 0
    keep = Keeping(folder, proposal, workers=context.get_world_size())

    def start() -> str | None:
        dataset = open_dataset(task["data"]).fingerprint
        return folder.begin(config, dataset=dataset, number=number) if is_first else folder.newest(config, dataset)

    def report(metrics: dict[str, Any], checkpoint: Path | None) -> None:
        ray.train.report(keep(metrics, checkpoint) if is_first else metrics)

    return attempt(task, folder.location, resume_from=start, report=report, until=proposal.until)
