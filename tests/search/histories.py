"""Trials as their reports leave them: at even speed, from a clock of our own."""

import math
from typing import Any

from vbd.config import TrainConfig, config_hash
from vbd.records import Trial


def reports(
    config: TrainConfig,
    upto: int,
    *,
    step: float = 1.0,
    validation: float = 2.0,
    start: float = 5.0,
    began: float = 1000.0,
    first: int = 0,
) -> list[dict[str, Any]]:
    """The reports of one attempt from step `first` to step `upto`, with seconds of a step, a validation and to start."""
    made = []
    for done in range(first + config.report_every, upto + 1, config.report_every):
        trained = (done - first) * step
        seconds = trained + (done - first) // config.report_every * validation
        made.append(
            {
                "step": done,
                "score": done / config.steps,
                "loss": 1.5,
                "images_per_second": config.batch_size * (done - first) / trained,
                "seconds": seconds,
                "validation_seconds": validation,
                "attempt_started": began,
                "timestamp": began + start + seconds,
            }
        )
    return made


def trial_of(config: TrainConfig, *history: dict[str, Any], status: str = "finished", **fields: Any) -> Trial:
    """A trial with its reports."""
    hash_ = config_hash(config)
    score = max((report["score"] for report in history), default=math.nan)
    steps = history[-1]["step"] if history else 0
    return Trial(hash_[:10], config, hash_, score, steps, "", status=status, history=history, **fields)
