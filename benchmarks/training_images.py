"""Images per second of our whole training loop against loops in the manner of the libraries, real input on both sides.

    python benchmarks/training_images.py [--detector yolox] [--policy E]

Two loader processes on each side, which decode the same prepared images and augment them by the same functions of vbd.
Rounds take turns; a round leaves out its first steps, in which the loader fills up, and validation. The CPU time is that of
the training process alone, without its loaders: whatever else the machine does disturbs it less.
"""

import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, assert_never

import numpy as np
import torch
import tyro
from library_loops import TorchvisionLoop, YoloxLoop, lists, rgb, to_sample, yolox_config
from sample import phantom
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler

from vbd.augment.policies import augment
from vbd.config import VARIANTS, Policy, RunOptions, TrainConfig
from vbd.data.batches.make import Images, training_batches
from vbd.data.prepared import PreparedDataset
from vbd.models import detector_of
from vbd.records import Batch, Row
from vbd.training.loop import train

Detector = Literal["faster_rcnn", "yolox"]
WORKERS = 2
FILLING = 12  # steps of a round that are not counted: more than the loaders hold ready


def main(
    *,
    detector: Detector | Literal["all"] = "all",
    policy: Policy = "E",
    threads: tuple[int, ...] = (1, 2),
    steps: int = 60,
    rounds: int = 4,
) -> None:
    """Prints the table: `rounds` pairs of `steps` counted steps for each detector and number of torch threads."""
    with tempfile.TemporaryDirectory(prefix="vbd-bench-") as folder:
        dataset = phantom(Path(folder), images=400, size=128, film=160)
        print(
            f"| 128 px, 8 images a step, policy {policy}, {WORKERS} loaders | torch threads | library's manner, images/s "
            "| our loop, images/s | ratio (rounds) | CPU ms an image, library's manner | our loop |"
        )
        print("|---|---|---|---|---|---|---|")
        for name in ("faster_rcnn", "yolox") if detector == "all" else (detector,):
            for count in threads:
                torch.set_num_threads(count)
                config = TrainConfig(
                    detector=name,
                    variant=VARIANTS[name][0],
                    image_size=128,
                    batch_size=8,
                    policy=policy,
                    steps=steps + FILLING,
                    report_every=steps + FILLING,
                    warmup_steps=steps,
                )
                pairs = [_round(dataset, config, count, ours_first=bool(number % 2)) for number in range(rounds)]
                print(f"| {name} {config.variant} | {count} | {_compared(pairs, config.batch_size)} |", flush=True)


def _round(
    dataset: PreparedDataset, config: TrainConfig, threads: int, *, ours_first: bool
) -> tuple["_Clock", "_Clock"]:
    """The clocks of the library's manner and of ours, one after the other."""
    if ours_first:
        ours = _ours(dataset, config, threads)
        return _library(dataset, config), ours
    return _library(dataset, config), _ours(dataset, config, threads)


def _compared(pairs: Sequence[tuple["_Clock", "_Clock"]], batch_size: int) -> str:
    rates = np.array([[batch_size / clock.step_seconds("wall") for clock in pair] for pair in pairs])
    cpu_ms = np.array([[1e3 * clock.step_seconds("cpu") / batch_size for clock in pair] for pair in pairs])
    ratios = rates[:, 1] / rates[:, 0]
    cells = [f"{rate:.1f}" for rate in np.median(rates, axis=0)]
    cells += [f"{np.median(ratios):.2f} ({', '.join(f'{ratio:.2f}' for ratio in ratios)})"]
    return " | ".join([*cells, *(f"{value:.1f}" for value in np.median(cpu_ms, axis=0))])


class _Clock:
    """Passes batches on and notes when each was asked for, and the CPU seconds of this process until then."""

    def __init__(self, batches: Iterable[Any]):
        self.batches = batches
        self.asked: dict[str, list[float]] = {"wall": [], "cpu": []}

    def __iter__(self) -> Iterator[Any]:
        batches = iter(self.batches)
        while True:
            self.asked["wall"].append(time.perf_counter())  # the step before is done
            self.asked["cpu"].append(time.process_time())
            try:
                batch = next(batches)
            except StopIteration:
                return
            yield batch

    def step_seconds(self, of: Literal["wall", "cpu"]) -> float:
        """Mean seconds of a step, without the first ones, and without the last, after which ours validates."""
        counted = self.asked[of][FILLING:-1]
        return (counted[-1] - counted[0]) / (len(counted) - 1)


def _ours(dataset: PreparedDataset, config: TrainConfig, threads: int) -> _Clock:
    """The loop as it is: AdamW, clipping, the running mean of the weights, every check."""
    clocks: list[_Clock] = []

    def timed(*args: Any, **options: Any) -> Iterable[Batch]:
        clocks.append(_Clock(training_batches(*args, **options)))
        return clocks[0]

    options = RunOptions(device="cpu", threads=threads, loader_workers=WORKERS)
    train(config, dataset, options=options, report=lambda *_: None, batches=timed)
    return clocks[0]


# ------------------------------------------------------------------------------------------------ the libraries' manner


def _library(dataset: PreparedDataset, config: TrainConfig) -> _Clock:
    match config.detector:
        case "faster_rcnn":
            return _torchvision(dataset, config)
        case "yolox":
            return _yolox(dataset, config)
    raise ValueError(config.detector)


class _Drawn:
    """Rows of the training folds after the policy; what is drawn differs with each access."""

    def __init__(self, images: Images, config: TrainConfig, *, form: Literal["torchvision", "yolox"]):
        self.images, self.config, self.form = images, config, form
        self.abnormal = np.flatnonzero([bool(labels) for labels in images.label_sets])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        import cv2

        cv2.setNumThreads(0)  # as ours does
        rng = np.random.default_rng(int(torch.randint(2**31, ())))
        drawn = augment(
            self.images[index],
            policy=self.config.policy,
            strength=self.config.strength,
            rng=rng,
            draw_partner=self._draw_partner,
        )
        match self.form:
            case "torchvision":
                return to_sample(drawn)
            case "yolox":
                return _padded(drawn)
            case _:
                assert_never(self.form)

    def _draw_partner(self, rng: np.random.Generator) -> Row:
        return self.images[int(self.abnormal[rng.integers(len(self.abnormal))])]


def _padded(row: Row) -> tuple[Tensor, Tensor]:
    """Pixels of 0..255 (3, S, S) and 120 rows of class, centre and size, as the package yolox feeds its network."""
    boxes, labels = row["boxes"][:120], row["labels"][:120]
    targets = np.zeros((120, 5), np.float32)
    targets[: len(boxes), 0] = labels
    targets[: len(boxes), 1:3] = (boxes[:, :2] + boxes[:, 2:]) / 2
    targets[: len(boxes), 3:] = boxes[:, 2:] - boxes[:, :2]
    pixels = np.ascontiguousarray(rgb(row).transpose(2, 0, 1), dtype=np.float32)
    return torch.from_numpy(pixels), torch.from_numpy(targets)


def _loader(dataset: PreparedDataset, config: TrainConfig, *, form: Literal["torchvision", "yolox"]) -> _Clock:
    images = Images(dataset, "train", image_size=config.image_size, without_fold=config.fold)
    drawn: Any = _Drawn(images, config, form=form)
    sampler = RandomSampler(_mixed(images, config), num_samples=config.steps * config.batch_size)
    collate = lists if form == "torchvision" else None
    return _Clock(
        DataLoader(
            torch.utils.data.Subset(drawn, _mixed(images, config)),
            batch_size=config.batch_size,
            sampler=sampler,
            num_workers=WORKERS,
            collate_fn=collate,
        )
    )


def _mixed(images: Images, config: TrainConfig) -> list[int]:
    """All images with a finding and as many normal ones as our batches hold: the same work for a detector."""
    is_normal = np.array([not labels for labels in images.label_sets])
    count = round((~is_normal).sum() * config.normal_share / (1 - config.normal_share))
    return [*np.flatnonzero(~is_normal).tolist(), *np.flatnonzero(is_normal)[:count].tolist()]


def _torchvision(dataset: PreparedDataset, config: TrainConfig) -> _Clock:
    """The very same network, in a loop as in torchvision's references: lists of images, its own normalisation, SGD."""
    from torchvision.models.detection.transform import GeneralizedRCNNTransform

    torch.manual_seed(config.seed)
    network: Any = detector_of(config, with_first_weights=True).network
    side = config.image_size
    network.transform = GeneralizedRCNNTransform(side, side, image_mean=[0.449] * 3, image_std=[0.226] * 3)
    loop = TorchvisionLoop(network, learning_rate=config.learning_rate, epoch_steps=config.steps, steps=config.steps)
    batches = _loader(dataset, config, form="torchvision")
    samples: tuple[Sequence[Tensor], Sequence[dict[str, Tensor]]]
    for samples in batches:
        loop.step(*samples)
    return batches


def _yolox(dataset: PreparedDataset, config: TrainConfig) -> _Clock:
    """The package's own network, loss, optimiser, schedule and running mean."""
    torch.manual_seed(config.seed)
    loop = YoloxLoop(
        yolox_config(config.image_size),
        learning_rate=config.learning_rate,
        batch_size=config.batch_size,
        steps=config.steps,
    )
    batches = _loader(dataset, config, form="yolox")
    for pixels, targets in batches:
        loop.step(pixels, targets)
    return batches


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
