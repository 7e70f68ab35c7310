"""One trial in a process of Ray Tune's, as a plain function on one device."""

import functools
import logging
import math
import sys
from typing import Any

from ray import tune

from vbd.cluster.versions import check_versions
from vbd.config import RunOptions
from vbd.data.prepared import open_dataset
from vbd.errors import InputError, StoreError, interruption_within
from vbd.evaluation.score import SCORE
from vbd.search.kept.trial import TrialFolder, trial_id_of
from vbd.search.tune.handed_over import Workers, proposal_of
from vbd.search.tune.report import Keeping, close, patiently
from vbd.training.checkpoint import read_info
from vbd.training.loop import TrainingError, train
from vbd.training.memory import forget_peak
from vbd.training.recurrence import returned


def run_trial(
    drawn: dict[str, Any], *, location: str, run: str, options: RunOptions, workers: Workers | None = None
) -> None:
    """One trial, in a Ray worker. What no second attempt would mend is reported as failed; the rest is raised and retried.

    With `workers` this process computes nothing: they train it together.
    """
    logging.getLogger("ray.train._internal.storage").setLevel(logging.WARNING)  # a line for every checkpoint
    silence_exits()
    try:
        check_versions()
        _run_trial(drawn, location, run, options, workers)
    except InputError as error:
        tune.report({SCORE: math.nan, "fault": str(error)})  # Tune keeps no error that the driver could read
        raise


@functools.cache
def silence_exits() -> None:
    """From now on Python does not print an exit that it cannot raise; once for a process that runs trial after trial.

    Ray ends a worker by an exception that its handler of SIGTERM raises wherever the process happens to be.
    """
    former = sys.unraisablehook

    def tell(fault: "sys.UnraisableHookArgs") -> None:
        if not isinstance(interruption_within(fault.exc_value), SystemExit):
            former(fault)

    sys.unraisablehook = tell


def _run_trial(drawn: dict[str, Any], location: str, run: str, options: RunOptions, workers: Workers | None) -> None:
    proposal, number = proposal_of(drawn)
    config = proposal.config
    folder = TrialFolder(run, trial_id_of(config))
    forget_peak()
    dataset = patiently(lambda: open_dataset(location), folder)  # what is wrong with it ends the search, not the trial
    try:
        start = patiently(lambda: folder.begin(config, dataset=dataset.fingerprint, number=number), folder)
        if start and read_info(start).step == proposal.until:  # killed after its last checkpoint, before that was told
            close(folder, proposal)
            tune.report(read_info(start).metrics)
        elif workers:
            from vbd.search.tune.trial_workers import train_on_workers  # loads Ray Train: seconds

            train_on_workers(proposal, number, location=location, run=run, options=options, workers=workers)
        else:
            keep = Keeping(folder, proposal)
            train(
                config,
                dataset,
                options=options,
                report=lambda metrics, checkpoint: tune.report(keep(metrics, checkpoint)),
                resume_from=start,
                until=proposal.until,
            )
    except StoreError:
        raise  # the store may answer at the next attempt
    except (TrainingError, InputError) as error:
        reason = str(error).splitlines()[0]
    except Exception as error:
        unexpected = error  # the name of a handler is gone after it, and with it what the lambda refers to
        reason = patiently(lambda: returned(folder.location, unexpected), folder)
        if not reason:
            raise
    else:
        return
    patiently(lambda: folder.fail(reason), folder)
    tune.report({SCORE: math.nan, "step": config.steps, "failed": reason})
