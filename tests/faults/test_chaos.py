"""From raw films to a submission while workers, nodes and drivers are killed at random: the same submission, byte for byte."""

import os
import random
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.data.folders import hashes_of
from tests.nodes import Job, Node, Nodes
from vbd import storage
from vbd.config import PrepareConfig, RunOptions
from vbd.config.presets import preset_of
from vbd.data.prepare.dataset import prepare
from vbd.pipeline import run_pipeline
from vbd.search.kept.leaderboard import read_leaderboard
from vbd.search.space.settings import search_from

pytestmark = pytest.mark.slow  # a search on a cluster

FAMILIES = ("yolox", "classifier")
SETTINGS = ("image_size=64", "batch_size=4", "report_every=20", "warmup_steps=2", "max_failures=20")


# What Ray calls idle workers, and the agents of a node, without which that is lost.
_NO_WORKERS = ("ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent")


class Chaos:
    """Kills something of a job every few seconds, as often as it is told to; what is gone comes back."""

    def __init__(self, nodes: Nodes, folder: Path, *, seed: int):
        """Jobs run in `folder`."""
        self._nodes, self._folder, self._rng = nodes, folder, random.Random(seed)
        self.killed: list[str] = []

    def run(self, name: str, command: Sequence[str], kinds: Sequence[str]) -> Job:
        """Runs a job to its end, and kills things of these kinds meanwhile, in any order."""
        left = self._rng.sample(kinds, len(kinds))
        job = self._start(name, command)
        while left and job.is_running:
            # Once it is at work: what has not begun cannot be disturbed.
            job.wait_until(lambda job=job: self._workers() or not job.is_running)
            time.sleep(self._rng.uniform(1, 4))
            if job.is_running:
                job = self._kill(left.pop(), name, command, job)
        assert job.end() == 0, job.output
        assert not job.tracebacks, job.output
        return job

    def _start(self, name: str, command: Sequence[str]) -> Job:
        return self._nodes.start(command, cwd=self._folder, log=f"{name}.txt")

    def _kill(self, kind: str, name: str, command: Sequence[str], job: Job) -> Job:
        """Returns the job that runs now."""
        self.killed.append(kind)
        if kind == "driver":
            job.kill()
            return self._start(name, command)
        if kind == "node":
            self._rng.choice(self._nodes.working).kill()
            self._nodes.add(cpus=1)
        elif workers := self._workers():
            with_luck = self._rng.choice(workers)
            try:
                os.kill(with_luck, signal.SIGKILL)
            except ProcessLookupError:
                self.killed.pop()
        return job

    def _workers(self) -> list[int]:
        return [pid for node in self._nodes.working for pid in _busy(node)]


def _busy(node: Node) -> list[int]:
    """Its workers that do something: Ray calls them by that."""
    found = []
    for pid in node.pids:
        try:
            title = Path(f"/proc/{pid}/cmdline").read_text()
        except OSError:
            continue
        if title.startswith("ray::") and not title.startswith(_NO_WORKERS):
            found.append(pid)
    return found


def test_a_whole_run_in_chaos_ends_with_the_submission_of_an_undisturbed_one(
    nodes: Nodes, ray_session: None, phantom: Path, tmp_path: Path
) -> None:
    chaos = Chaos(nodes, tmp_path, seed=11)
    data = str(tmp_path / "data")
    command = ["jobs/prepare.py", "--source", str(phantom), "--output", data, "--image-size", "64", "--folds", "3"]
    chaos.run("prepare", command, ["node"])
    flags = ["--data", data, "--storage", str(tmp_path / "runs"), "--name", "run", "--steps", "80", "--trials", "1"]
    flags += ["--device", "cpu", "--families", *FAMILIES, *(f"--set={setting}" for setting in SETTINGS)]
    chaos.run("tune", ["jobs/tune.py", "smoke", *flags], ["worker", "node", "driver", "worker"])

    whole = str(tmp_path / "whole")
    prepare(str(phantom), whole, PrepareConfig(image_size=64, num_folds=3))
    assert hashes_of(data) == hashes_of(whole)
    search = search_from(preset_of("smoke"), steps=80, trials=1, families=FAMILIES, set=SETTINGS)
    calm = RunOptions(device="cpu")
    run_pipeline(search, data=whole, storage_root=str(tmp_path / "runs"), name="calm", options=calm)
    found, wanted = (read_leaderboard(str(tmp_path / "runs" / name)).trials for name in ("run", "calm"))
    assert [(trial.trial_id, trial.status, trial.score) for trial in found] == [
        (trial.trial_id, trial.status, trial.score) for trial in wanted
    ]
    for mine, theirs in zip(found, wanted, strict=True):
        assert storage.read_bytes(mine.detections) == storage.read_bytes(theirs.detections)
    submissions = [(tmp_path / "runs" / name / "submission.csv").read_bytes() for name in ("run", "calm")]
    assert submissions[0] == submissions[1]
    assert any(
        len(row["PredictionString"].split()) > 6 for row in storage.read_csv(f"{tmp_path}/runs/run/submission.csv")
    )
    assert chaos.killed, "nothing was disturbed"
