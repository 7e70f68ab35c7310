"""How long a trial takes to its first step, against importing its libraries, and how long a device idles between two.

    python benchmarks/search_start.py [--rounds 5]

A round is a search of its own: its first trial begins in a new process of Ray, and is timed from when Tune asks for a trial to
the end of the first optimiser step. A fresh Python then imports the very modules that the trial had loaded, in their order.
The others follow on the same device: idle is the time from a trial's last report to the end of the first step of the next.
"""

import json
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import ray
import tyro
from ray import tune
from sample import phantom
from searches import QUIET, Clock, run_trials, small

from vbd.config import RunOptions
from vbd.records import Trial
from vbd.search.tune.trial import run_trial

TRIALS = 4  # of a round

_IMPORT = """
import importlib, json, sys
for name in json.load(open(sys.argv[1])):
    try:
        importlib.import_module(name)
    except Exception:
        pass  # made by its parent, no module of its own
"""


def main(*, rounds: int = 5) -> None:
    """Prints the two figures."""
    with tempfile.TemporaryDirectory(prefix="vbd-bench-") as folder:
        dataset = phantom(Path(folder), images=200, size=128, film=160)
        ray.init("local", num_cpus=1, **QUIET)
        starts, imports, idle = [], [], []
        for number in range(rounds):
            run, modules = Path(folder, f"run-{number}"), Path(folder, "modules.json")
            clock = Clock()
            trials = run_trials(
                tune.with_parameters(_told, location=dataset.location, run=str(run), modules=str(modules)),
                [small(seed=10 * number + i, steps=2, report_every=1) for i in range(TRIALS)],
                run,
                callbacks=[clock],
            )
            starts.append(_first_step(trials[0]) - clock.started)
            idle += [_first_step(after) - before.history[-1]["timestamp"] for before, after in pairwise(trials)]
            imports.append(_seconds_to_import(modules))
        ray.shutdown()
    ratios = sorted(start / own for start, own in zip(starts, imports, strict=True))
    print("| | median | range |")
    print("|---|---|---|")
    print(f"| imports in a fresh Python, s | {_row(imports)} |")
    print(f"| from asked for to the first step done, s | {_row(starts)} |")
    print(f"| ratio | {median(ratios):.2f} | {ratios[0]:.2f} to {ratios[-1]:.2f} |")
    print(f"| idle between two trials on a device, s | {_row(idle)} |")


def _told(drawn: dict[str, Any], *, location: str, run: str, modules: str) -> None:
    """A trial that also writes down which modules it has loaded."""
    run_trial(drawn, location=location, run=run, options=RunOptions(device="cpu"))
    Path(modules).write_text(json.dumps([name for name in sys.modules if name != "__main__"]))


def _first_step(trial: Trial) -> float:
    """Unix time."""
    report = trial.history[0]
    return report["timestamp"] - report["validation_seconds"]


def _seconds_to_import(modules: Path) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", _IMPORT, str(modules)], check=True, capture_output=True)
    return time.perf_counter() - started


def _row(seconds: list[float]) -> str:
    return f"{median(seconds):.2f} | {min(seconds):.2f} to {max(seconds):.2f}"


if __name__ == "__main__":
    tyro.cli(main)
