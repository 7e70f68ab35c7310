"""The one training loop. It knows no detector by name, and neither Ray Train nor Ray Tune: it gets two functions,
`report(metrics, checkpoint_folder)` and, as a folder, the checkpoint to go on from.

Step `s` depends on the config and `s` alone: its batch, its augmentation, its learning rate, and the random numbers that
the model draws. A run that stops at a report and resumes therefore ends with the same weights as one that never stopped.
"""

import contextlib
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, assert_never

import numpy as np
import torch
from torch import nn

from vbd.config import RunOptions, TrainConfig, check_train_config, config_hash
from vbd.data.dataset import Images, plain_batches, training_batches
from vbd.data.prepared import PreparedDataset, read_truths, to_detections
from vbd.errors import InputError
from vbd.evaluation.average_precision import evaluate
from vbd.models import detector_of
from vbd.records import Batch, Detections, Target, Truth, detections_to_table
from vbd.storage import join, stable_hash, write_table
from vbd.training.checkpoint import load_tensors, read_info, write_checkpoint
from vbd.training.members import OUT_OF_FOLD

Report = Callable[[dict[str, Any], Path | None], None]


class TrainingError(Exception):
    """A run that cannot go on, whoever tries again: no memory, or the loss is no number. The last checkpoint is kept."""


@dataclass(frozen=True)
class Ranks:
    """The processes that share this run: our number, how many, and how to bring what each found together."""

    rank: int = 0
    world: int = 1
    gather: Callable[[list[Detections]], list[Detections]] = lambda found: found
    wrap: Callable[[nn.Module], nn.Module] = lambda model: model


def train(
    config: TrainConfig,
    dataset: PreparedDataset,
    *,
    options: RunOptions,
    report: Report,
    resume_from: str | None = None,
    ranks: Ranks | None = None,
) -> dict[str, Any]:
    """Trains up to `config.steps`, reports every `report_every` steps and at the end; returns the last metrics."""
    check_train_config(config)
    ranks = ranks or Ranks()
    if config.batch_size < ranks.world:
        raise InputError(f"batch_size {config.batch_size} is less than one image for each of {ranks.world} workers")
    run = TrainingRun(config, dataset, device=choose_device(options), threads=options.threads, ranks=ranks)
    first_step = run.resume(resume_from) if resume_from else 0
    batches = training_batches(
        dataset,
        config,
        first_step=first_step,
        loader_workers=options.loader_workers,
        rank=ranks.rank,
        world=ranks.world,
    )
    metrics: dict[str, Any] = {"step": first_step}
    started, seen, losses = time.monotonic(), 0, []
    for step, batch in enumerate(batches, start=first_step):
        try:
            losses.append(run.step(step, batch))
        except torch.OutOfMemoryError as error:
            raise TrainingError(f"out of memory at step {step}: lower batch_size or image_size") from error
        seen += config.batch_size
        done = step + 1
        if done % config.report_every == 0 or done == config.steps:
            metrics, found = run.validate()
            metrics |= {
                "step": done,
                "loss": float(np.mean(losses)),
                "learning_rate": learning_rate_at(step, config),
                "images_per_second": seen / (time.monotonic() - started),
                "seconds": time.monotonic() - started,
            }
            losses = []
            with run.checkpoint(done, metrics, found) as folder:
                report(metrics, folder)
    return metrics


def choose_device(options: RunOptions) -> torch.device:
    """The device that `auto` means here; raises InputError when cuda is asked for and absent."""
    match options.device:
        case "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        case "cuda":
            if not torch.cuda.is_available():
                raise InputError("device cuda: this process sees no GPU; use --device cpu, or ask for one per trial")
            return torch.device("cuda")
        case "cpu":
            return torch.device("cpu")
        case _:
            assert_never(options.device)


def learning_rate_at(step: int, config: TrainConfig) -> float:
    """Linear warm-up, then half a cosine down to 1 % of the rate (Loshchilov and Hutter 2017, without restarts)."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Weight decay on weights only: not on biases and normalisation, which have one dimension."""
    weights = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    others = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [{"params": weights, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    match config.optimizer:
        case "adamw":
            return torch.optim.AdamW(groups, lr=config.learning_rate)
        case "sgd":
            return torch.optim.SGD(groups, lr=config.learning_rate, momentum=0.9, nesterov=True)
        case _:
            assert_never(config.optimizer)


class TrainingRun:
    """What changes while a run trains: weights, their running mean, optimiser."""

    def __init__(
        self, config: TrainConfig, dataset: PreparedDataset, *, device: torch.device, threads: int, ranks: Ranks
    ):
        torch.set_num_threads(threads)
        torch.manual_seed(config.seed)
        self.config, self.dataset, self.device, self.ranks = config, dataset, device, ranks
        self.detector = detector_of(config, with_first_weights=True).to(device)
        self.mean = _running_mean(self.detector, config.ema_decay)
        self.model = ranks.wrap(self.detector)
        self.optimizer = build_optimizer(self.detector, config)
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16" and device.type == "cuda")
        self.validation = Images(dataset, config.fold, image_size=config.image_size)
        self.truths: list[Truth] = read_truths(dataset, config.fold)

    def step(self, step: int, batch: Batch) -> float:
        """One optimiser step; returns the loss. Raises TrainingError when that is no number."""
        self.model.train()
        torch.manual_seed(stable_hash(f"{self.config.seed}/{step}/{self.ranks.rank}") >> 1)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate_at(step, self.config)
        images = batch.images.to(self.device, non_blocking=True)
        targets = [
            Target(boxes=target["boxes"].to(self.device), labels=target["labels"].to(self.device))
            for target in batch.targets
        ]
        with autocast(self.device, self.config):
            loss = self.model(images, targets)["loss"]
        if not torch.isfinite(loss):
            raise TrainingError(f"the loss is {loss.item()} at step {step}; lower the learning rate")
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.detector.parameters(), self.config.grad_clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.mean is not None:
            self.mean.update_parameters(self.detector)
        return float(loss.detach())

    @property
    def best_model(self) -> nn.Module:
        """The running mean of the weights where the run keeps one."""
        return self.detector if self.mean is None else self.mean.module

    def validate(self) -> tuple[dict[str, Any], list[Detections]]:
        """The competition's metric on the validation fold; every rank looks at its share and all get the one score."""
        share = np.arange(self.ranks.rank, len(self.validation), self.ranks.world)
        found = detect(
            self.best_model,
            self.validation,
            share,
            batch_size=self.config.batch_size,
            device=self.device,
            config=self.config,
        )
        found = sorted(self.ranks.gather(found), key=lambda item: item.image_id)
        scores = evaluate(found, self.truths)
        return {"map_40_findings": scores.map_40_findings, "map_coco_101": scores.map_coco_101}, found

    @contextlib.contextmanager
    def checkpoint(self, step: int, metrics: dict[str, Any], found: Sequence[Detections]) -> Iterator[Path | None]:
        """A checkpoint folder that lives while it is reported; rank 0 writes it, the others report None."""
        if self.ranks.rank != 0:
            yield None
            return
        with tempfile.TemporaryDirectory(prefix="vbd-") as parent:
            folder = Path(parent) / "checkpoint"
            write_checkpoint(
                folder,
                config=self.config,
                dataset=self.dataset,
                weights=self.best_model.state_dict(),
                state={
                    "detector": self.detector.state_dict(),
                    "optimizer": self.optimizer.state_dict(),
                    "scaler": self.scaler.state_dict(),
                    "averaged": 0 if self.mean is None else int(self.mean.n_averaged),
                    "step": step,
                },
                step=step,
                metrics=metrics,
            )
            write_table(str(folder / OUT_OF_FOLD), detections_to_table(found))
            yield folder

    def resume(self, folder: str) -> int:
        """Takes up the state of a checkpoint of the same run; returns the step to go on with."""
        info = read_info(folder)
        if info.config_hash != config_hash(self.config):
            raise InputError(f"{folder}: checkpoint of another configuration ({info.config_hash}); start a new run")
        if info.dataset != self.dataset.fingerprint:
            raise InputError(f"{folder}: trained on dataset {info.dataset}, this is {self.dataset.fingerprint}")
        state = load_tensors(join(folder, "state.pt"))
        self.detector.load_state_dict(state["detector"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.mean is not None:
            self.mean.module.load_state_dict(load_tensors(join(folder, "model.pt")))
            self.mean.n_averaged.fill_(state["averaged"])
        return int(state["step"])


def _running_mean(model: nn.Module, decay: float) -> torch.optim.swa_utils.AveragedModel | None:
    """Exponential running mean of weights; statistics of batch norm are taken over as they are.

    Early on the decay is shorter, (1 + n) / (10 + n), so that the random start is soon forgotten (as in TensorFlow's
    ExponentialMovingAverage with `num_updates`).
    """
    if decay == 0:
        return None

    @torch.no_grad()
    def update(means: Any, news: Any, count: Any) -> None:
        n = float(count)
        weight = 1 - min(decay, (1 + n) / (10 + n))
        torch._foreach_lerp_(means, news, weight)

    return torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=update, use_buffers=False)


def autocast(device: torch.device, config: TrainConfig) -> contextlib.AbstractContextManager[Any]:
    """The arithmetic of the forward pass."""
    match config.precision:
        case "fp32":
            return contextlib.nullcontext()
        case "bf16":
            return torch.autocast(device.type, dtype=torch.bfloat16)
        case "fp16":
            if device.type == "cpu":
                raise InputError("precision fp16 needs a GPU; use bf16 or fp32 on a CPU")
            return torch.autocast(device.type, dtype=torch.float16)
        case _:
            assert_never(config.precision)


@torch.inference_mode()
def detect(
    model: nn.Module,
    images: Images,
    indices: np.ndarray,
    *,
    batch_size: int,
    device: torch.device,
    config: TrainConfig,
) -> list[Detections]:
    """Detections of some images, in original pixels, in the order of `indices`."""
    model.eval()
    found = []
    for batch, rows in plain_batches(images, indices, batch_size=batch_size):
        with autocast(device, config):
            predictions = model(batch.images.to(device))
        for row, prediction in zip(rows, predictions, strict=True):
            found.append(
                to_detections(
                    row["image_id"],
                    *(prediction[name].float().cpu().numpy() for name in ("boxes", "scores", "labels")),
                    original_hw=(int(row["original_hw"][0]), int(row["original_hw"][1])),
                    image_size=images.image_size,
                    options=images.dataset.options,
                )
            )
    return found
