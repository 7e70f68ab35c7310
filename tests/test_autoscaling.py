"""A cluster that grows for a search and shrinks after it; its nodes are processes that Ray's own autoscaler starts and ends."""

import json
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.nodes import Job, Nodes, wait_until
from vbd.cli import main
from vbd.cluster.connect import connect
from vbd.config import Candidate, RunOptions, SearchConfig, TrainConfig

pytestmark = pytest.mark.slow


class GrowingNodes(Nodes):
    """With the autoscaler that `ray up` starts, the only one that heeds labels."""

    def __init__(self, types: Mapping[str, Mapping[str, Any]]):
        """Nodes of these types may come."""
        from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID, FAKE_HEAD_NODE_TYPE

        head = {"RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID, "RAY_NODE_TYPE_NAME": FAKE_HEAD_NODE_TYPE}
        super().__init__(autoscaling=types, RAY_enable_autoscaler_v2="1", **head)

    def _autoscaling_config(self, types: Mapping[str, Mapping[str, Any]]) -> str:
        path = super()._autoscaling_config(types)
        config = json.loads(Path(path).read_text())
        # By its short name it would read defaults from a file that no release of Ray has.
        config["provider"] |= {
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
        }
        Path(path).write_text(json.dumps(config))
        return path


@pytest.fixture(scope="module")
def growing() -> Iterator[Nodes]:
    """A head without cores, and up to three workers of one core with a GPU that is only a number."""
    gpu = {"resources": {"CPU": 1, "GPU": 1}, "labels": {"vbd-role": "gpu"}, "max_workers": 3}
    with GrowingNodes({"gpu_spot": gpu}) as nodes:
        yield nodes


def search(data: str, folder: str, *, trials: int, gpus: float | None = None) -> None:
    """In a driver: a search alone, as jobs/tune.py starts it."""

    def tune() -> None:
        connect()
        from vbd.search.run import run_search  # after it, as in a job: what is set there is read when Ray is loaded

        config = TrainConfig(image_size=64, variant="nano", batch_size=4, steps=3, report_every=3, pretrained=False)
        candidate = Candidate(config, ranges={"learning_rate": (1e-4, 1e-3)}, trials=trials)
        what = SearchConfig(preset="growing", candidates=(candidate,), scheduler="fifo", gpus_per_trial=gpus)
        run_search(what, data=data, storage_root=folder, name="run", options=RunOptions())

    sys.argv = ["tune"]
    main(tune)


def _start(nodes: Nodes, data: str, folder: Path, **settings: float) -> Job:
    told = "".join(f", {name}={value}" for name, value in settings.items())
    code = f"from tests.test_autoscaling import search; search({data!r}, {str(folder)!r}{told})"
    return nodes.start([sys.executable, "-c", code], cwd=folder)


def test_what_no_node_can_ever_hold_is_refused_at_once(growing: Nodes, prepared: str, tmp_path: Path) -> None:
    job = _start(growing, prepared, tmp_path, trials=1, gpus=4)
    assert job.end() == 2, job.output
    (error,) = job.errors
    assert "of a trial of 4 GPU each: the cluster has 0 GPU" in error
    assert "its autoscaler starts at most 3 gpu_spot of 1 GPU" in error
    assert growing.alive == ["head"]


def test_a_search_starts_from_no_worker_and_leaves_none(growing: Nodes, prepared: str, tmp_path: Path) -> None:
    job = _start(growing, prepared, tmp_path, trials=6)
    most = 0

    def has_ended() -> bool:
        nonlocal most
        most = max(most, len(growing.alive) - 1)
        time.sleep(0.2)
        return not job.is_running

    wait_until(has_ended, lambda: job.output, seconds=600)
    assert job.end() == 0, job.output
    assert "No available node types" not in job.output  # which Ray would tell every second of each trial that waits
    waiting = [line for line in job.output.splitlines() if line.startswith("waiting for ")]
    assert "1 CPU and 1 GPU on a node labelled vbd-role=gpu: no node has that yet; of the autoscaler: " in waiting[0]
    told = json.loads(job.output.splitlines()[-1])
    assert told["trials"] == {"finished": 6}
    from vbd.search.kept.leaderboard import read_leaderboard

    board = read_leaderboard(str(tmp_path / "run"))
    # Nobody said that trials are to have a GPU: the autoscaler's config did.
    assert {trial.metrics["device"] for trial in board.trials} == {"cuda:0"}
    assert 1 < most <= 3
    wait_until(lambda: growing.alive == ["head"], lambda: f"still there: {growing.alive}")
