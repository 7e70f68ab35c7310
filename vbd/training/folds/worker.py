"""The loop on one worker of a Ray Train run."""

import errno
import logging
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
from ray.train import get_context
from ray.train.v2._internal.execution import context as ray_context
from ray.train.v2._internal.util import logger as ray_train_log

from vbd import storage
from vbd.cluster.nodes import on_host
from vbd.cluster.versions import check_versions
from vbd.config import RunOptions, checked, train_config_from
from vbd.config.checked import Size
from vbd.data.batches.make import training_batches
from vbd.data.prepared import open_dataset
from vbd.errors import FullError, InputError, StoreError, UnreachableError
from vbd.records import Batch, Detections
from vbd.training.checkpoint import read_info, whole_checkpoints
from vbd.training.folds.best import keep_if_best
from vbd.training.loop import Ranks, Report, TrainingError, train
from vbd.training.memory import MemoryShort
from vbd.training.recurrence import returned

# In the folder of a run: how many images go through a detector at a time since memory ran out, and why the run cannot go on.
MICRO_BATCH, STOP = "micro_batch.json", "stop.json"


@dataclass(frozen=True)
class _MicroBatch:
    micro_batch: Size


@dataclass(frozen=True)
class _Stop:
    reason: str


class AttemptError(Exception):
    """This attempt ends, on all workers; the next one reads in the run's folder what to do otherwise."""


def train_worker(task: dict[str, Any]) -> str:
    """Trains what `task` says: `config`, `options`, `data` (location), `run` (folder). Every rank reports the one score.

    Returns why the run could not go on, or "".
    """
    ray_train_log.addFilter(_one_line)
    try:
        with tempfile.TemporaryDirectory(prefix="vbd-") as parent:
            return attempt(
                task,
                task["run"],
                resume_from=lambda: _earlier(task["run"], Path(parent) / "resume"),
                report=_reporter(task["run"]),
            )
    except (UnreachableError, FullError) as error:
        if get_context().get_world_size() == 1:
            return str(error)  # it was waited for, or waiting does not help: no further attempt
        raise


def _one_line(record: logging.LogRecord) -> bool:
    """Keeps Ray Train from logging the traceback of an error that says in one line what the user can do."""
    error = sys.exc_info()[1]
    if isinstance(error, (InputError, AttemptError)):
        record.msg, record.args = str(error), ()
    return True


def attempt(
    task: dict[str, Any],
    folder: str,
    *,
    resume_from: Callable[[], str | None],
    report: Report,
    until: int | None = None,
) -> str:
    """One attempt of one worker at a run whose folder is `folder`; returns why it could not go on, or "".

    When it is one worker of several that cannot go on, the others may wait for it for ever: it writes why, and dies, so that
    Ray starts all of them again.
    """
    # A line for every report; this logger is named after its file, so that the log level of the run does not reach it.
    ray_context.logger.setLevel(logging.WARNING)
    check_versions()
    say = _teller(Path(folder).name)
    if storage.exists(storage.join(folder, STOP)):
        return checked.read(storage.join(folder, STOP), _Stop, again="remove it").reason
    config, options = train_config_from(task["config"]), RunOptions(**task["options"])
    micro_batch = _micro_batch(folder)
    is_first = get_context().get_world_rank() == 0
    if micro_batch and is_first:
        say(f"memory ran out before: at most {micro_batch} images at a time on each worker")
    try:
        start = resume_from()
        if start and is_first:
            say(f"goes on from step {read_info(start).step}")
        train(
            config,
            open_dataset(task["data"]),
            options=options,
            report=report,
            resume_from=start,
            ranks=_ranks(),
            batches=_batches(options),
            say=say,
            micro_batch=micro_batch,
            until=until,
        )
    except MemoryShort as short:
        storage.write_json(storage.join(folder, MICRO_BATCH), {"micro_batch": short.micro_batch})
        raise AttemptError(f"memory ran out; from here {short.micro_batch} images at a time") from None
    except StoreError:
        raise  # the store may answer at the next attempt
    except (TrainingError, InputError) as error:
        reason = str(error)
    except Exception as error:
        reason = returned(folder, error, rank=get_context().get_world_rank())
        if not reason:
            raise
    else:
        return ""
    if get_context().get_world_size() > 1:
        storage.write_json(storage.join(folder, STOP), {"reason": reason})
        raise AttemptError(reason)
    return reason


def _batches(options: RunOptions) -> Callable[..., Iterable[Batch]]:
    if options.input == "loader":
        return training_batches
    from vbd.data.batches.on_ray import ray_batches  # loads Ray Data: seconds

    return ray_batches


def _teller(name: str) -> Callable[[str], None]:
    def say(text: str) -> None:
        # Not `print`, which Ray Train also turns into a log record: each line would be told twice.
        sys.stdout.write("".join(f"{name}{on_host()}: {line}\n" for line in text.splitlines()))
        sys.stdout.flush()

    return say


def _earlier(run: str, folder: Path) -> str | None:
    """The checkpoint to go on from: the last that Ray knows of, or else the newest that is whole."""
    known = ray.train.get_checkpoint()
    if known is not None:
        return known.to_directory(str(folder))
    return next(reversed(whole_checkpoints(run)), None)


def _micro_batch(run: str) -> int | None:
    location = storage.join(run, MICRO_BATCH)
    return checked.read(location, _MicroBatch, again="remove it").micro_batch if storage.exists(location) else None


def _reporter(run: str) -> Report:
    workers = {"workers": get_context().get_world_size()}

    def report(metrics: dict[str, Any], folder: Path | None) -> None:
        if folder is None:  # another rank than the first
            ray.train.report(metrics | workers)
            return
        keep_if_best(run, folder, metrics)
        storage.exists(run)  # waits where the store does not answer, which Ray's upload would not
        try:
            ray.train.report(metrics | workers, checkpoint=ray.train.Checkpoint.from_directory(str(folder)))
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise FullError(
                    f"{run}: no space left for a checkpoint; free some or choose another --output"
                ) from error
            what = str(error).splitlines()[0]
            raise StoreError(f"{run}: a checkpoint cannot be written ({what}); choose another --output") from error

    return report


def _ranks() -> Ranks:
    """This worker among the others of its Ray Train run."""
    import torch.distributed
    from ray.train.torch import prepare_model

    world = get_context().get_world_size()
    if world == 1:
        return Ranks()

    def gather(found: list[Detections]) -> list[Detections]:
        shares: list[list[Detections]] = [[] for _ in range(world)]
        torch.distributed.all_gather_object(shares, found)
        return [item for share in shares for item in share]

    return Ranks(
        get_context().get_world_rank(), world, gather, lambda model: prepare_model(model, move_to_device=False)
    )
