"""What a trial reports: kept in its folder first, then handed to Tune and to Ray's metrics."""

import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray.tune.result import TIMESTEPS_TOTAL

from vbd import storage
from vbd.cluster.nodes import on_host
from vbd.records import Trial
from vbd.search.kept.trial import TrialFolder
from vbd.search.propose.proposal import Proposal
from vbd.search.tune.metrics import TrialMetrics

T = TypeVar("T")


class Keeping:
    """Keeps what the loop reports in the trial's folder, and tells Ray's metrics."""

    def __init__(self, folder: TrialFolder, proposal: Proposal, **more: Any):
        """`more` goes into every report."""
        self._folder, self._proposal = folder, proposal
        self._more = {"host": socket.gethostname(), "device": device_name(), "attempt_started": time.time()} | more
        self._metrics = TrialMetrics(proposal.config, folder.trial_id)

    def __call__(self, metrics: dict[str, Any], checkpoint: Path | None) -> dict[str, Any]:
        """Returns the whole report, when it is safe on disk: who hears of it may end this process at once."""
        assert checkpoint is not None
        report = metrics | self._more | {"timestamp": time.time()}
        patiently(lambda: self._folder.keep(report, checkpoint, hold=self._proposal.hold), self._folder)
        if report["step"] == self._proposal.until:
            patiently(lambda: close(self._folder, self._proposal), self._folder)
        self._metrics.report(report)
        return report | {TIMESTEPS_TOTAL: report["step"]}  # the axis of TensorBoard, which else counts reports


def close(folder: TrialFolder, proposal: Proposal) -> Trial:
    """Records that a trial has come as far as proposed: it is finished, or waits for its population."""
    return folder.finish() if proposal.until == proposal.config.steps else folder.wait()


def patiently(action: Callable[[], T], folder: TrialFolder) -> T:
    """What `action` returns, tried again while the store is out of reach or the disk full."""

    def say(text: str) -> None:
        print(f"trial {folder.trial_id}{on_host()}: {text}", flush=True)

    return storage.patiently(action, seconds=storage.PATIENCE_SECONDS, say=say)


def device_name() -> str:
    """The device of this process among those of its host: `cuda:<index on the host>`, or `cpu`."""
    gpus = ray.get_gpu_ids()
    return "cuda:" + ",".join(map(str, gpus)) if gpus else "cpu"
