"""The best checkpoint of a run that is still going on, kept beside the newest ones."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vbd import storage
from vbd.config import checked
from vbd.config.checked import Count, SafeName, Share
from vbd.evaluation.score import SCORE
from vbd.training.members import delete_checkpoint

_POINTER = "best.json"


@dataclass(frozen=True)
class Best:
    """A checkpoint and its proof."""

    folder: SafeName  # in `best.json` a name beside it, in memory its whole path
    score: Share
    step: Count


def score_of(metrics: Mapping[str, Any]) -> float:
    """A fold without findings has no score, and is as good as nothing."""
    value = metrics.get(SCORE)
    return 0.0 if value is None or math.isnan(value) else float(value)


def best_of(run: str) -> Best | None:
    """The best checkpoint of a run so far."""
    location = storage.join(run, _POINTER)
    if not storage.exists(location):
        return None
    best = checked.read(location, Best, again=f"remove {run} to train the fold again")
    return replace(best, folder=storage.join(run, best.folder))


def keep_if_best(run: str, checkpoint: str | Path, metrics: Mapping[str, Any]) -> None:
    """Copies a checkpoint to `<run>/best-<step>` when it is better than all before.

    Whatever moment the process is killed at, `best.json` names a whole checkpoint: it changes, in one write, when the copy is
    whole, and the older one goes last.
    """
    before = best_of(run)
    if before is not None and score_of(metrics) <= before.score:
        return
    name = f"best-{metrics['step']:08d}"
    storage.copy_folder(str(checkpoint), storage.join(run, name))
    storage.write_json(
        storage.join(run, _POINTER), {"folder": name, "score": score_of(metrics), "step": metrics["step"]}
    )
    for other in storage.list_names(run):
        if other.startswith("best-") and other != name:
            delete_checkpoint(storage.join(run, other))
