"""Successive halving against the whole grid: what it finds, and for how many optimiser steps.

    python benchmarks/search_halving.py [--family classifier] [--steps 180]

Both search the same 27 configurations of the smallest model of a family on the same SYNTHETIC films at 64 pixels. The
configuration that each picks is trained again with other seeds, on which neither has chosen: a trial's score is that of its
best report, and the best of many is flattered. The noise is that of training with another seed.
"""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
import tyro
from ray import tune
from sample import phantom
from searches import QUIET, run_trials, small

from vbd.config import VARIANTS, Candidate, Family, RunOptions, SearchConfig, TrainConfig
from vbd.records import Trial
from vbd.search.kept.leaderboard import ranked
from vbd.search.run import run_search
from vbd.search.tune.trial import run_trial

CPU = RunOptions(device="cpu")
CHOICES: dict[str, tuple[Any, ...]] = {
    "policy": ("A", "E"),
    "strength": (0.3, 0.8),
    "learning_rate": tuple(float(f"{rate:.2g}") for rate in np.geomspace(3e-4, 2e-2, 9)),
}


def main(*, family: Family = "classifier", steps: int = 180, seeds: int = 4) -> None:
    """Prints the table and the verdict."""
    base = replace(
        small(seed=0, steps=steps, report_every=steps // 9),
        detector=family,
        variant=VARIANTS[family][0],
        image_size=64,
        warmup_steps=steps // 18,
        normal_share=0.5,
    )
    with tempfile.TemporaryDirectory(prefix="vbd-bench-") as folder:
        dataset = phantom(Path(folder), images=600, size=64, film=160)
        ray.init("local", num_cpus=2, **QUIET)
        grid = SearchConfig("grid", (Candidate(base, choices=CHOICES),), searcher="grid", scheduler="fifo")
        found = {
            name: run_search(search, data=dataset.location, storage_root=folder, name=name, options=CPU).trials
            for name, search in {"grid": grid, "halving": replace(grid, preset="halving", scheduler="halving")}.items()
        }
        picked = {name: ranked(trials)[0] for name, trials in found.items()}
        again = {
            name: _trained_again(trial.config, dataset.location, Path(folder, f"{name}-again"), seeds)
            for name, trial in picked.items()
        }
        ray.shutdown()
    _tell(found, picked, again)


def _trained_again(config: TrainConfig, location: str, run: Path, seeds: int) -> list[float]:
    """The scores of a configuration with other seeds."""
    trainable = tune.with_parameters(run_trial, location=location, run=str(run), options=CPU)
    return [trial.score for trial in run_trials(trainable, [replace(config, seed=1 + i) for i in range(seeds)], run)]


def _tell(found: dict[str, tuple[Trial, ...]], picked: dict[str, Trial], again: dict[str, list[float]]) -> None:
    steps = {
        name: sum(trial.history[-1]["step"] for trial in trials if trial.history) for name, trials in found.items()
    }
    print("| search | trials | optimiser steps | share | picked | its score | the same with other seeds |")
    print("|---|---|---|---|---|---|---|")
    for name, trials in found.items():
        config, scores = picked[name].config, again[name]
        strength = "" if config.policy == "A" else f" x{config.strength:g}"
        print(
            f"| {name} | {len(trials)} | {steps[name]:,} | {steps[name] / steps['grid']:.2f} | {config.policy}{strength}, rate "
            f"{config.learning_rate:g} | {picked[name].score:.3f} | {np.mean(scores):.3f} ({np.std(scores, ddof=1):.3f}) |"
        )
    deviations = [np.std(scores, ddof=1) ** 2 / len(scores) for scores in again.values()]
    noise = 2 * float(np.sqrt(sum(deviations)))
    short = float(np.mean(again["grid"]) - np.mean(again["halving"]))
    verdict = "within noise" if short <= noise else "worse"
    print(
        f"\nThe grid's pick is better by {short:+.3f} (noise, two standard errors: {noise:.3f}): halving's is {verdict}."
    )


if __name__ == "__main__":
    tyro.cli(main)
