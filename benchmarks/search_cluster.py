"""How busy a search keeps a cluster that grows while it runs: simulated nodes, trials that sleep.

    python benchmarks/search_cluster.py [--trials 200]

Ray's own cluster utilities start one node of two devices and add three more; a trial sleeps and reports four times. Busy is the
time that trials slept, of the time that devices were there: from when a node joined to when no trial waited any more. What is not
busy is Tune placing trials, and the start of processes, which on a real cluster has cores of its own.
"""

import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import ray
import tyro
from ray import tune
from ray.cluster_utils import Cluster
from searches import QUIET, run_trials, small

from vbd.evaluation.score import SCORE

DEVICES = 2  # of a node
REPORTS = 4


def main(*, trials: int = 200, nodes: int = 4, seconds: float = 12.0, every: float = 30.0) -> None:
    """Prints the share of the devices that was busy."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    with tempfile.TemporaryDirectory(prefix="vbd-bench-") as folder:
        ray.init(address=cluster.address, **QUIET)
        notes = Path(folder, "notes")
        notes.mkdir()
        configs = [small(seed=seed, steps=REPORTS, report_every=1) for seed in range(trials)]
        searching = threading.Thread(
            target=run_trials,
            args=(tune.with_parameters(_sleep, seconds=seconds, notes=str(notes)), configs, Path(folder, "run")),
        )
        searching.start()
        joined = _grow(cluster, nodes, every)
        searching.join()
        spans = sorted(tuple(map(float, note.read_text().split())) for note in notes.iterdir())
        ray.shutdown()
    cluster.shutdown()
    last = spans[-1][0]  # after that no trial waits
    busy = sum(min(end, last) - start for start, end in spans)
    there = sum((last - since) * DEVICES for since in joined)
    print("| trials | nodes x devices | a trial sleeps s | whole search s | busy |")
    print("|---|---|---|---|---|")
    print(
        f"| {len(spans)} | 1 to {nodes} x {DEVICES} | {seconds:g} | {spans[-1][1] - joined[0]:.0f} | {busy / there:.1%} |"
    )


def _grow(cluster: Cluster, nodes: int, every: float) -> list[float]:
    """Adds the nodes one by one; returns when each had joined. Ray wants to do this in the main thread."""
    joined = []
    for number in range(nodes):
        if number:
            time.sleep(every)
        cluster.add_node(num_cpus=DEVICES)
        joined.append(time.time())
    return joined


def _sleep(drawn: dict[str, Any], *, seconds: float, notes: str) -> None:
    started = time.time()
    note = Path(notes, str(drawn["proposal"]["config"]["seed"]))
    for step in range(1, REPORTS + 1):
        time.sleep(seconds / REPORTS)
        note.write_text(f"{started} {time.time()}")  # before the last report, which may end this process
        tune.report({"step": step, SCORE: 0.5})


if __name__ == "__main__":
    tyro.cli(main)
