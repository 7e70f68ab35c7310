"""Our optimiser step against a bare loop on the same detector and batches, and the input pipeline beside it.

    python benchmarks/training_step.py [--detector yolox] [--steps 60]

The two loops take turns on every batch, and now the one, now the other goes first. The ratio is the median over these
pairs, with its quartiles; that of CPU seconds is disturbed less by whatever else the machine does. One torch thread.
"""

import dataclasses
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro
from sample import phantom

from vbd.config import FAMILIES, VARIANTS, Family, RunOptions, TrainConfig
from vbd.data.batches.make import training_batches
from vbd.data.prepared import PreparedDataset
from vbd.models import detector_of
from vbd.records import Batch
from vbd.training.loop import Ranks, TrainingRun

WARM_UP = 5  # steps that are not counted
RATE = 1e-5  # small: both sides keep the weights, and so the costs, that they start with


def main(*, detector: Family | Literal["all"] = "all", steps: int = 60) -> None:
    """Prints the table, a line for the smallest variant of each family."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="vbd-bench-") as folder:
        dataset = phantom(Path(folder), images=200, size=128, film=160)
        print(
            "| detector, 128 px, 8 images | bare step ms | our step ms | ratio (quartiles) | of CPU time | input batches/s |"
        )
        print("|---|---|---|---|---|---|")
        for family in FAMILIES if detector == "all" else (detector,):
            config = TrainConfig(
                detector=family,
                variant=VARIANTS[family][0],
                image_size=128,
                batch_size=8,
                policy="E",
                learning_rate=RATE,
                warmup_steps=0,
                steps=10**6,
                ema_decay=0.0,  # the bare loop keeps no running mean of the weights
            )
            batches, rate = _batches(dataset, config, steps + WARM_UP)
            bare, ours = _measure(dataset, config, batches)
            print(f"| {family} {config.variant} | {_compared(bare, ours)} | {rate:.0f} |", flush=True)


def _batches(dataset: PreparedDataset, config: TrainConfig, count: int) -> tuple[list[Batch], float]:
    """So many batches, and how many of them the input makes in a second, in line."""
    loader = iter(training_batches(dataset, config, first_step=0, loader_workers=0))
    next(loader)  # opens files and compiles
    started = time.perf_counter()
    batches = [next(loader) for _ in range(count)]
    return batches, count / (time.perf_counter() - started)


@dataclass
class Seconds:
    """Wall and CPU seconds of every counted step."""

    wall: list[float] = dataclasses.field(default_factory=list)
    cpu: list[float] = dataclasses.field(default_factory=list)

    def add(self, call: Callable[[], object]) -> None:
        """Times one call."""
        wall, cpu = time.perf_counter(), time.process_time()
        call()
        self.wall.append(time.perf_counter() - wall)
        self.cpu.append(time.process_time() - cpu)


def _measure(dataset: PreparedDataset, config: TrainConfig, batches: list[Batch]) -> tuple[Seconds, Seconds]:
    """The bare loop and ours, in turns on the same batches, without the first steps."""
    run = TrainingRun(config, dataset, options=RunOptions(device="cpu", threads=1), ranks=Ranks())
    bare = _Bare(config)
    times = Seconds(), Seconds()
    for number, batch in enumerate(batches):
        turns: list[tuple[int, Callable[[], object]]] = [
            (0, lambda b=batch: bare.step(b)),  # type: ignore[misc]
            (1, lambda b=batch, s=number: run.step(s, b)),  # type: ignore[misc]
        ]
        for side, call in turns if number % 2 else turns[::-1]:
            if number < WARM_UP:
                call()
            else:
                times[side].add(call)
    return times


class _Bare:
    """The shortest loop there is: forward, backward, clip, step."""

    def __init__(self, config: TrainConfig):
        torch.manual_seed(config.seed)
        self.model = detector_of(config, with_first_weights=True).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=config.learning_rate, fused=True)

    def step(self, batch: Batch) -> None:
        loss = self.model(batch.images, batch.targets)["loss"]
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 10.0)
        self.optimizer.step()


def _compared(bare: Seconds, ours: Seconds) -> str:
    """The cells of a line: both medians, the median ratio of the pairs with its quartiles, that of CPU seconds."""
    low, ratio, high = np.quantile(np.divide(ours.wall, bare.wall), [0.25, 0.5, 0.75])
    cpu = np.median(np.divide(ours.cpu, bare.cpu))
    medians = " | ".join(f"{1e3 * np.median(seconds.wall):.0f}" for seconds in (bare, ours))
    return f"{medians} | {ratio:.3f} ({low:.2f} to {high:.2f}) | {cpu:.3f}"


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
