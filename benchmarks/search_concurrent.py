"""Two trials at a time on two cores, against one alone: one torch thread each, so neither takes from the other.

    python benchmarks/search_concurrent.py [--rounds 3]

The same trial is run alone, then two at a time, in turns; timed from when Tune begins to place them to the last report, the start
of their processes, their imports and validations included.
"""

import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import median

import ray
import tyro
from ray import tune
from sample import phantom
from searches import QUIET, Clock, run_trials, small

from vbd.config import Family, RunOptions
from vbd.search.tune.trial import run_trial

SMALLEST: dict[Family, str] = {
    "yolox": "nano",
    "faster_rcnn": "mobilenet_v3_large_320",
    "efficientdet": "lite0",
}


def main(*, rounds: int = 3, steps: int = 240) -> None:
    """Prints a line for each detector."""
    with tempfile.TemporaryDirectory(prefix="vbd-bench-") as folder:
        dataset = phantom(Path(folder), images=200, size=128, film=160)
        print("| detector | one alone, s | two at a time, s | ratio (rounds) |")
        print("|---|---|---|---|")
        for family, variant in SMALLEST.items():
            base = replace(
                small(seed=0, steps=steps, report_every=steps // 2), detector=family, variant=variant, policy="E"
            )
            alone, together = [], []
            for number in range(rounds):
                for count, seconds in ((1, alone), (2, together)):
                    run, clock = Path(folder, f"{family}-{number}-{count}"), Clock()
                    # The very same work: fields that do not change it tell the trials apart.
                    configs = [replace(base, grad_clip=1e6 + i) for i in range(count)]
                    ray.init("local", num_cpus=count, **QUIET)
                    trials = run_trials(
                        tune.with_parameters(
                            run_trial, location=dataset.location, run=str(run), options=RunOptions(device="cpu")
                        ),
                        configs,
                        run,
                        callbacks=[clock],
                    )
                    ray.shutdown()
                    seconds.append(max(trial.history[-1]["timestamp"] for trial in trials) - clock.started)
            ratios = [two / one for one, two in zip(alone, together, strict=True)]
            told = ", ".join(f"{ratio:.2f}" for ratio in ratios)
            print(
                f"| {family} {variant} | {median(alone):.1f} | {median(together):.1f} | {median(ratios):.2f} ({told}) |",
                flush=True,
            )


if __name__ == "__main__":
    tyro.cli(main)
