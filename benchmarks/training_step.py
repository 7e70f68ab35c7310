"""Our optimiser step against a bare loop on the same detector and batch, and the input pipeline beside it.

    python benchmarks/training_step.py [--steps 10]

Ratios within one run; the machine may be busy, so the two loops take turns and the median step counts.
"""

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch

from vbd.config import VARIANTS, TrainConfig
from vbd.data.dataset import training_batches
from vbd.data.prepared import PreparedDataset
from vbd.models import build_detector
from vbd.records import Batch
from vbd.training.loop import Ranks, TrainingRun

FAMILIES = ("yolox", "faster_rcnn", "efficientdet")


def main(steps: int) -> None:
    """Prints the table."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        dataset = _dataset(Path(folder))
        print("| detector, 128 px, 8 images | bare step ms | our step ms | ratio | batches/s of the input |")
        print("|---|---|---|---|---|")
        for family in FAMILIES:
            config = TrainConfig(
                detector=family, variant=VARIANTS[family][0], image_size=128, batch_size=8, policy="E", steps=10**6
            )
            bare, ours, rate = _measure(config, dataset, steps)
            print(
                f"| {family} {config.variant} | {bare * 1e3:.0f} | {ours * 1e3:.0f} | {ours / bare:.2f} | {rate:.0f} |"
            )


def _dataset(folder: Path) -> PreparedDataset:
    import ray

    from vbd.config import PrepareConfig
    from vbd.data.phantom import write_phantom
    from vbd.data.prepare import prepare

    write_phantom(folder / "raw", images=200, test_images=0, size=160)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    dataset = prepare(str(folder / "raw"), str(folder / "data"), PrepareConfig(image_size=128))
    ray.shutdown()
    return dataset


def _measure(config: TrainConfig, dataset: PreparedDataset, steps: int) -> tuple[float, float, float]:
    """Median seconds of a bare step and of ours, on the same batches, and batches per second of the input alone."""
    loader = iter(training_batches(dataset, config, first_step=0, loader_workers=0))
    started = time.perf_counter()
    batches = [next(loader) for _ in range(steps + 2)]
    rate = len(batches) / (time.perf_counter() - started)
    # The bare loop keeps no running mean of the weights: neither does ours here.
    run = TrainingRun(replace(config, ema_decay=0.0), dataset, device=torch.device("cpu"), threads=1, ranks=Ranks())
    bare = _Bare(config)
    times: dict[str, list[float]] = {"bare": [], "ours": []}
    for step, batch in enumerate(batches):
        for name, function in (("bare", bare.step), ("ours", lambda b, s=step: run.step(s, b))):
            started = time.perf_counter()
            function(batch)
            times[name].append(time.perf_counter() - started)
    return float(median(times["bare"][2:])), float(median(times["ours"][2:])), rate


class _Bare:
    """The shortest loop there is: forward, backward, clip, step."""

    def __init__(self, config: TrainConfig):
        self.model = build_detector(config.detector, variant=config.variant, image_size=config.image_size).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=config.learning_rate)

    def step(self, batch: Batch) -> None:
        loss = self.model(batch.images, batch.targets)["loss"]
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 10.0)
        self.optimizer.step()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20)
    main(parser.parse_args().steps)
