"""Final scores of our loop and of each library's own loop: the same data, steps and batch, random weights, several seeds.

    python benchmarks/parity.py [--family yolox] [--results parity.jsonl]

SYNTHETIC films: the scores say whether software learns, nothing about medicine. Every finished run is a line of the results'
file and is not run again; families may be run by two processes at once, which share that file.
"""

import dataclasses
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from library_loops import Predict, Recipe, train_by_library
from sample import phantom, training_rows

from vbd.config import Family, RunOptions, TrainConfig
from vbd.config.presets import smoke
from vbd.data.batches.make import Images, plain_batches
from vbd.data.prepared import PreparedDataset, read_truths, to_detections
from vbd.evaluation.average_precision import evaluate

FAMILIES: tuple[Family, ...] = ("yolox", "faster_rcnn", "efficientdet")
SEEDS = (0, 1, 2)
# Learning rates that a library's loop may choose from. The first is its recipe's, scaled to 8 images.
RATES: dict[Family, tuple[float, ...]] = {
    "yolox": (1.25e-3, 1e-2, 3e-2),
    "faster_rcnn": (1e-2, 3e-2),
    "efficientdet": (1e-2, 3e-2, 1e-1),
}
Side = Literal["ours", "library", "both"]


@dataclass(frozen=True)
class Run:
    """One training run; two equal ones are run once."""

    family: Family
    side: Side
    learning_rate: float
    augmented: bool
    seed: int
    steps: int
    image_size: int = 128  # pixels of a side that the network sees; of ours


def main(
    *,
    family: Literal["all", "yolox", "faster_rcnn", "efficientdet"] = "all",
    side: Side = "both",
    results: str = "parity.jsonl",
    folder: str | None = None,
    images: int = 1_500,
    steps_share: float = 1.0,
) -> None:
    """Runs what is missing in the results' file and prints the table of what is there."""
    torch.set_num_threads(1)
    place = Path(folder or Path(tempfile.gettempdir()) / f"vbd-parity-{images}")
    dataset = phantom(place, images=images, size=128, film=320)
    bench = Parity(dataset, Path(results), steps_share)
    print("SYNTHETIC films: scores say whether software learns, nothing about medicine.\n")
    print("| images of 128 px, 8 a step | steps | our loop | library's loop | difference | its choice | verdict |")
    print("|---|---|---|---|---|---|---|")
    for name in FAMILIES if family == "all" else (family,):
        ours = bench.ours(name) if side in ("ours", "both") else []
        theirs, choice = bench.library(name) if side in ("library", "both") else ([], "")
        print(table_row(bench.config(name), ours, theirs, choice=choice), flush=True)


class Parity:
    """What every run shares, and the file of what was run before."""

    def __init__(self, dataset: PreparedDataset, results: Path, steps_share: float):
        self.dataset, self.results, self.steps_share = dataset, results, steps_share

    def config(self, family: Family) -> TrainConfig:
        """Our side: the smoke preset without augmentation, at the middle of its range of learning rates, untuned."""
        candidate = next(found for found in smoke().candidates if found.base.detector == family)
        steps = max(1, round(candidate.base.steps * self.steps_share))
        rate = math.sqrt(math.prod(candidate.ranges["learning_rate"]))
        return dataclasses.replace(candidate.base, policy="A", learning_rate=rate, steps=steps, report_every=steps)

    def ours(self, family: Family) -> list[float]:
        """Our scores, one for each seed."""
        config = self.config(family)
        # torchvision's detector enlarges the same images to 320 pixels itself: so does ours.
        size = 320 if family == "faster_rcnn" else config.image_size
        runs = [Run(family, "ours", config.learning_rate, False, seed, config.steps, size) for seed in SEEDS]
        return [self.score(run, self._train_ours) for run in runs]

    def library(self, family: Family) -> tuple[list[float], str]:
        """The library's scores, one for each seed, and the recipe that was best on the first seed."""
        config = self.config(family)

        def run(rate: float, augmented: bool, seed: int = SEEDS[0]) -> Run:
            return Run(family, "library", rate, augmented, seed, config.steps)

        middle = RATES[family][1]
        # torchvision's recipe only mirrors.
        choices = [run(middle, False)] + ([run(middle, True)] if family != "faster_rcnn" else [])
        best = max(choices, key=self._library_score)
        best = max([run(rate, best.augmented) for rate in RATES[family]], key=self._library_score)
        scores = [self._library_score(dataclasses.replace(best, seed=seed)) for seed in SEEDS]
        return scores, f"rate {best.learning_rate:g}, {'its augmentation' if best.augmented else 'mirroring only'}"

    def _library_score(self, run: Run) -> float:
        return self.score(run, self._train_library)

    def score(self, run: Run, train: Callable[[Run], float]) -> float:
        """The score of a run, from the file where it is there; a run that diverges scores 0."""
        for line in self.results.read_text().splitlines() if self.results.exists() else []:
            content = json.loads(line)
            if content["run"] == dataclasses.asdict(run):
                return float(content["map_40_findings"])
        started = time.monotonic()
        try:
            value = train(run)
        except FloatingPointError:
            value = 0.0
        content = {"run": dataclasses.asdict(run), "map_40_findings": value, "seconds": time.monotonic() - started}
        with self.results.open("a") as file:
            file.write(json.dumps(content) + "\n")
        print(json.dumps(content), file=sys.stderr, flush=True)
        return value

    def _train_ours(self, run: Run) -> float:
        from vbd.training.loop import train

        config = dataclasses.replace(self.config(run.family), seed=run.seed, image_size=run.image_size)
        options = RunOptions(device="cpu", threads=1)
        metrics: dict[str, Any] = train(config, self.dataset, options=options, report=lambda *_: None)
        return float(metrics["map_40_findings"])

    def _train_library(self, run: Run) -> float:
        config = self.config(run.family)
        rows = training_rows(
            self.dataset,
            image_size=config.image_size,
            without_fold=config.fold,
            normal_share=config.normal_share,
        )
        recipe = Recipe(
            learning_rate=run.learning_rate,
            augmented=run.augmented,
            steps=run.steps,
            batch_size=config.batch_size,
            seed=run.seed,
        )
        return fold_score(train_by_library(run.family, rows, recipe), self.dataset, config)


@torch.inference_mode()
def fold_score(predict: Predict, dataset: PreparedDataset, config: TrainConfig) -> float:
    """`map_40_findings` on the held-out fold, in original pixels."""
    images = Images(dataset, config.fold, image_size=config.image_size)
    found = []
    for batch, rows in plain_batches(images, np.arange(len(images)), batch_size=config.batch_size):
        for row, prediction in zip(rows, predict(batch.images), strict=True):
            boxes, scores, labels = (prediction[name].numpy() for name in ("boxes", "scores", "labels"))
            hw = (int(row["original_hw"][0]), int(row["original_hw"][1]))
            found.append(
                to_detections(
                    row["image_id"],
                    boxes,
                    scores,
                    labels,
                    original_hw=hw,
                    image_size=config.image_size,
                    options=dataset.options,
                )
            )
    return evaluate(found, read_truths(dataset, config.fold)).map_40_findings


def table_row(config: TrainConfig, ours: list[float], theirs: list[float], *, choice: str) -> str:
    """One line of the table; the verdict allows for two standard errors of the difference."""
    cells = [f"{config.detector} {config.variant}", f"{config.steps}", _spread(ours), _spread(theirs)]
    if ours and theirs:
        difference = statistics.mean(ours) - statistics.mean(theirs)
        noise = 2 * math.sqrt(sum(statistics.variance(scores) / len(scores) for scores in (ours, theirs)))
        verdict = "not below" if difference >= -noise else "below"
        cells += [f"{difference:+.3f} (noise {noise:.3f})", choice, verdict]
    else:
        cells += ["", choice, ""]
    return f"| {' | '.join(cells)} |"


def _spread(scores: list[float]) -> str:
    """Mean and every seed's score."""
    if not scores:
        return ""
    return f"{statistics.mean(scores):.3f} ({', '.join(f'{score:.3f}' for score in scores)})"


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
