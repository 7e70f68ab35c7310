"""How far a run is and how fast: the numbers of a report, and a line for whoever watches."""

import math
import time
from collections.abc import Callable
from typing import Any

from vbd.config import TrainConfig
from vbd.console.words import in_time
from vbd.evaluation.score import SCORE, score_name

_SECONDS_BETWEEN_LINES = 30.0


class Meter:
    """Counts steps from `first_step` to `until`, by default the last; what it averages starts anew with each report."""

    def __init__(
        self, config: TrainConfig, *, first_step: int, say: Callable[[str], None] | None, until: int | None = None
    ) -> None:
        self._config, self._first, self._say = config, first_step, say
        self._until = config.steps if until is None else until
        self._started = self._told = time.monotonic()
        self._validating = 0.0  # seconds, in all
        self._done = first_step
        self._losses: list[float] = []
        self._norms: list[float] = []

    def count(self, step: int, *, loss: float, norm: float) -> None:
        """A step is done; a step that was skipped for want of range (fp16) has no finite norm and is not averaged."""
        self._done = step + 1
        if math.isfinite(norm):
            self._losses.append(loss)
            self._norms.append(norm)

    def report(self, *, validation_seconds: float, learning_rate: float) -> dict[str, Any]:
        """The numbers since the last report; seconds and images per second (without validation) since the start."""
        self._validating += validation_seconds
        seconds = time.monotonic() - self._started
        numbers = {
            "step": self._done,
            "loss": _mean(self._losses),
            "gradient_norm": _mean(self._norms),
            "learning_rate": learning_rate,
            "images_per_second": self._images_per_second(),
            "seconds": seconds,
            "validation_seconds": validation_seconds,
        }
        self._losses, self._norms = [], []
        return numbers

    def tell(self, *, learning_rate: float) -> None:
        """Says a line when the last one is half a minute old."""
        if self._say and time.monotonic() - self._told >= _SECONDS_BETWEEN_LINES:
            self._line(_mean(self._losses[-100:]), learning_rate, note="")

    def tell_report(self, metrics: dict[str, Any]) -> None:
        """Says a line about a report."""
        if self._say:
            name, score = score_name([self._config.detector]), metrics[SCORE]
            note = f", {name} {score:.4f}" if math.isfinite(score) else ", nothing to score on"
            self._line(metrics["loss"], metrics["learning_rate"], note=note)

    def _line(self, loss: float, learning_rate: float, *, note: str) -> None:
        assert self._say
        self._told = time.monotonic()
        of_step = (self._told - self._started) / max(1, self._done - self._first)
        left = of_step * (self._until - self._done)
        goal = "" if self._until == self._config.steps else f" to step {self._until}"
        self._say(
            f"step {self._done}/{self._config.steps}: loss {loss:.4g}, learning rate {learning_rate:.3g}, "
            f"{self._images_per_second():.1f} images/s, {in_time(left)} left{goal}{note}"
        )

    def _images_per_second(self) -> float:
        training = time.monotonic() - self._started - self._validating
        return (self._done - self._first) * self._config.batch_size / max(training, 1e-9)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan
