"""What a search tells Ray's metrics, and so Prometheus and Grafana: there each name has `ray_` before it.

A value is told by the process that set it, and is gone some seconds after that process has ended.
"""

import math
from collections.abc import Mapping
from typing import Any

from ray.util.metrics import Gauge

from vbd.config import TrainConfig
from vbd.evaluation.score import SCORE

_OF_TRIALS = {
    "step": ("vbd_step", "Optimiser steps done"),
    "loss": ("vbd_loss", "Mean loss of the steps since the report before"),
    SCORE: ("vbd_score", "On the validation fold: map_40_findings of a detector, ap_no_finding of a classifier"),
    "images_per_second": ("vbd_images_per_second", "Training images per second, without validation"),
}


class TrialMetrics:
    """The last report of a trial, told by its own process with the tags `trial`, `family` and `policy`."""

    def __init__(self, config: TrainConfig, trial_id: str):
        tags = {"trial": trial_id, "family": config.detector, "policy": config.policy}
        self._gauges = {
            field: Gauge(name, description, tag_keys=tuple(tags)).set_default_tags(tags)
            for field, (name, description) in _OF_TRIALS.items()
        }

    def report(self, metrics: Mapping[str, Any]) -> None:
        """Tells what a report holds; a number that is missing or NaN leaves the last one."""
        for field, gauge in self._gauges.items():
            _set(gauge, metrics.get(field))


class SearchMetrics:
    """How far a search is, told by the driver with the tag `run`, its name."""

    def __init__(self, run: str):
        def gauge(name: str, description: str, *tags: str) -> Gauge:
            return Gauge(name, description, tag_keys=("run", *tags)).set_default_tags({"run": run})

        self._trials = gauge("vbd_trials", "Trials of the search by state", "state")
        self._best = gauge("vbd_best_score", "Best score of a family so far", "family")
        self._hours = gauge("vbd_device_hours", "Hours of a device that the trials have taken")
        self._forecast = gauge("vbd_forecast_device_hours", "Hours of a device expected for the whole search")

    def update(
        self,
        states: Mapping[str, int],
        best: Mapping[str, float],
        *,
        device_hours: float,
        forecast_device_hours: float = math.nan,
    ) -> None:
        """Trials by state, the best score by family, and device-hours; NaN where nothing is known."""
        for state, count in states.items():
            self._trials.set(count, tags={"state": state})
        for family, score in best.items():
            _set(self._best, score, {"family": family})
        _set(self._hours, device_hours)
        _set(self._forecast, forecast_device_hours)


def _set(gauge: Gauge, value: float | None, tags: dict[str, str] | None = None) -> None:
    if value is not None and math.isfinite(value):
        gauge.set(value, tags=tags)
