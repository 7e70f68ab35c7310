"""What the benchmarks of the search share: trials that Tune places as in a search, without forecast, proof and ensemble."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.schedulers import FIFOScheduler

from vbd.config import TrainConfig
from vbd.records import Trial
from vbd.search.kept.trial import read_trials
from vbd.search.propose.listed import Listed
from vbd.search.tune.handed_over import Workers
from vbd.search.tune.searcher import ProposalSearcher
from vbd.search.tune.tuner import Watch, build_tuner

os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # read when a search starts; no table of Tune's

# How a benchmark starts Ray: nothing of it is to be seen, and nobody looks at a dashboard.
QUIET: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}


def small(*, seed: int, steps: int, report_every: int) -> TrainConfig:
    """The smallest detector at 128 pixels: what a search adds to a trial is not hidden behind the trial."""
    return TrainConfig(
        detector="yolox",
        variant="nano",
        image_size=128,
        batch_size=8,
        warmup_steps=0,
        steps=steps,
        report_every=report_every,
        seed=seed,
    )


@dataclass
class Clock(tune.Callback):
    """When Tune began to place trials, Unix time."""

    started: float = 0.0

    def setup(self, *_: Any, **__: Any) -> None:
        """Called by Tune."""
        self.started = time.time()


def run_trials(
    trainable: Any, configs: Sequence[TrainConfig], run: Path, *, callbacks: Sequence[tune.Callback] = ()
) -> list[Trial]:
    """Runs `trainable` for each of the configs on a CPU of its own; returns what they left in the run folder."""
    searcher = ProposalSearcher(Listed(configs), str(run), [], lambda trial: None)
    build_tuner(
        trainable,
        Workers(1, 1, 0, 0),
        searcher=searcher,
        scheduler=FIFOScheduler(),
        watch=Watch(searcher),
        callbacks=callbacks,
        run=str(run),
    ).fit()
    return sorted(read_trials(str(run)), key=lambda trial: trial.number)
