"""The one training loop. It knows no detector by name, and neither Ray Train nor Ray Tune: it gets two functions,
`report(metrics, checkpoint_folder)` and, as a folder, the checkpoint to go on from.

Step `s` depends on the config and `s` alone: its batch, its augmentation, its learning rate, and the random numbers that
the model draws. A run that stops at a report and resumes therefore ends with the same weights as one that never stopped.
"""

import contextlib
import math
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from vbd.config import RunOptions, TrainConfig, check_train_config, phases
from vbd.data.batches.make import Images, describe_sampling, training_batches
from vbd.data.prepared import PreparedDataset, read_truths
from vbd.errors import InputError
from vbd.evaluation.average_precision import evaluate
from vbd.evaluation.score import numbers_of
from vbd.hashing import stable_hash
from vbd.models import detector_of
from vbd.models.weights import describe
from vbd.records import Batch, Detections, Truth, detections_to_table
from vbd.storage import write_table
from vbd.training.checkpoint import count_first, foreign_told, read_info, read_part, write_checkpoint
from vbd.training.members import OUT_OF_FOLD
from vbd.training.memory import MemoryShort, free_memory, is_memory_error, peak_memory_mb
from vbd.training.meter import Meter
from vbd.training.microbatches import check_micro_batch, halved, least_images, number_of_parts
from vbd.training.mirror import Mirror, statistics_of
from vbd.training.norms import join_batch_norms
from vbd.training.optimizer import (
    build_optimizer,
    count_parameters,
    learning_rate_at,
    set_learning_rate,
    train_mode,
)
from vbd.training.parts import deal, placed, side_at
from vbd.training.precision import autocast, back_off, choose_device, gradient_scaler, telling
from vbd.training.recurrence import step_noted
from vbd.training.running_mean import RunningMean
from vbd.training.validation import detect

Report = Callable[[dict[str, Any], Path | None], None]
Say = Callable[[str], None]
T = TypeVar("T")


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
    batches: Callable[..., Iterable[Batch]] = training_batches,
    say: Say | None = None,
    micro_batch: int | None = None,
    until: int | None = None,
) -> dict[str, Any]:
    """Trains up to `config.steps`, reports every `report_every` steps and at the end; returns the last metrics.

    `batches` is called like `training_batches`. `say` prints on rank 0. `micro_batch` is the most images that go through
    the detector at a time, where memory has run out before. After step `until` the run ends with a report, as a part of
    the whole one that may be resumed. Raises TrainingError, and with several ranks MemoryShort.
    """
    ranks = ranks or Ranks()
    last = config.steps if until is None else until
    _check(config, options, ranks, last=last)
    say = say if ranks.rank == 0 else None
    run = TrainingRun(
        config, dataset, options=options, ranks=ranks, is_new=resume_from is None, say=say, micro_batch=micro_batch
    )
    first_step = run.resume(resume_from) if resume_from else 0
    if say:
        say(f"{run.describe()}\n{describe_sampling(dataset, config)}")
    meter = Meter(config, first_step=first_step, say=say, until=last)
    metrics: dict[str, Any] = {"step": first_step}
    of_this_run = batches(
        dataset,
        replace(config, steps=last),  # where they end; what is in them does not depend on it
        first_step=first_step,
        loader_workers=options.loader_workers,
        rank=ranks.rank,
        world=ranks.world,
    )
    step = first_step
    with step_noted(lambda: step):
        for step, batch in enumerate(of_this_run, start=first_step):
            loss, norm = run.step(step, batch)
            meter.count(step, loss=loss, norm=norm)
            meter.tell(learning_rate=learning_rate_at(step, config))
            done = step + 1
            if done % config.report_every == 0 or done == last:
                metrics = _report(run, meter, step, report)
    return metrics


def _check(config: TrainConfig, options: RunOptions, ranks: Ranks, *, last: int) -> None:
    """Raises InputError for what cannot be trained on these ranks, or not up to step `last`."""
    check_train_config(config)
    if not 0 < last <= config.steps:
        raise InputError(f"until is {last}; want a step from 1 to {config.steps}, the last of the run")
    if config.batch_size < ranks.world:
        raise InputError(f"batch_size {config.batch_size} is less than one image for each of {ranks.world} workers")
    if options.sync_batchnorm and config.batch_size % ranks.world:
        raise InputError(
            f"batch_size {config.batch_size} with sync_batchnorm: want a multiple of the {ranks.world} workers"
        )
    check_micro_batch(config, workers=ranks.world, sync_batchnorm=options.sync_batchnorm)


def _report(run: "TrainingRun", meter: Meter, step: int, report: Report) -> dict[str, Any]:
    """Validates after a step and reports, with a checkpoint; returns what was reported."""
    started = time.monotonic()
    scores, found = run.validate()
    validation_seconds = time.monotonic() - started
    numbers = meter.report(validation_seconds=validation_seconds, learning_rate=learning_rate_at(step, run.config))
    metrics = scores | numbers | run.memory
    meter.tell_report(metrics)
    with run.checkpoint(step + 1, metrics, found) as folder:
        report(metrics, folder)
    return metrics


class TrainingRun:
    """What changes while a run trains: weights, their running mean, optimiser, and how many images fit into memory."""

    def __init__(
        self,
        config: TrainConfig,
        dataset: PreparedDataset,
        *,
        options: RunOptions,
        ranks: Ranks,
        is_new: bool = True,
        say: Say | None = None,
        micro_batch: int | None = None,
    ):
        """A run that is not new gets its weights by `resume`, and fetches none to start from."""
        torch.set_num_threads(options.threads)
        torch.manual_seed(config.seed)
        self.config, self.dataset, self.ranks, self._say = config, dataset, ranks, say
        self.device = choose_device(options)
        layout = torch.channels_last if options.channels_last else torch.contiguous_format
        self.detector = detector_of(config, with_first_weights=is_new).to(self.device)
        self.detector.to(memory_format=layout)  # adapters give images the layout of the weights
        first = getattr(self.detector, "first_weights", None)
        self.first_weights = count_first(first)
        self._first_lines = describe(first) if first else ""
        if config.backbone_rate == 0:
            self.detector.backbone.requires_grad_(False)
        frozen = self.detector.backbone if config.backbone_rate == 0 else None
        self.mean = RunningMean(self.detector, decay=config.ema_decay, frozen=frozen) if config.ema_decay else None
        self._joins_norms = options.sync_batchnorm and ranks.world > 1
        if self._joins_norms:
            join_batch_norms(self.detector)
        if options.compile:
            self.detector.backbone.compile()
        self.model: Any = ranks.wrap(self.detector)
        self.optimizer = build_optimizer(self.detector, config)
        self.scaler = gradient_scaler(self.device, config)
        self.weights = [p for p in self.detector.parameters() if p.requires_grad]
        statistics = statistics_of(self.detector)
        self._before = Mirror((buffer.clone(), buffer) for buffer in statistics)
        self._statistics = [buffer for buffer in statistics if buffer.is_floating_point()]
        share = math.ceil(config.batch_size / ranks.world)
        self.micro_batch = min(micro_batch or share, math.ceil(share / config.accumulate))
        self.validation = Images(dataset, config.fold, image_size=config.image_size)
        self.truths: list[Truth] = read_truths(dataset, config.fold)
        train_mode(self.model, self.detector, config)

    def step(self, step: int, batch: Batch) -> tuple[float, float]:
        """One optimiser step; returns the loss and the norm of its gradient. Raises TrainingError when that is no number.

        Where memory runs out, the step is done again in smaller parts, as if it had never been tried.
        """
        set_learning_rate(self.optimizer, learning_rate_at(step, self.config))
        self._before.take()
        total = self._within_memory(
            f"step {step}",
            lambda: self._gradients(step, batch),
            undo=self._forget,
            images=len(batch.images),
            side=side_at(step, self.config),
        )
        self.scaler.unscale_(self.optimizer)
        largest = nn.utils.clip_grad_norm_(self.weights, self.config.grad_clip)
        loss, norm = torch.stack([total, largest]).tolist()  # the one time in a step that a GPU is waited for
        if not math.isfinite(norm):
            self._skip(step, loss)
            return loss, norm
        self._follow_gradients(step)
        return loss, norm

    def _gradients(self, step: int, batch: Batch) -> Tensor:
        """Adds up the gradients of the parts of a batch, each by its share of the images; returns the loss."""
        self.optimizer.zero_grad(set_to_none=True)
        torch.manual_seed(stable_hash(f"{self.config.seed}/{step}/{self.ranks.rank}") >> 1)
        side = side_at(step, self.config)
        images = len(batch.images)
        parts = number_of_parts(images, micro_batch=self.micro_batch, **self._bounds(side))
        total = torch.zeros((), device=self.device)
        for number, part in enumerate(deal(batch, parts), start=1):
            with self._ranks_joined(number == parts):
                part = placed(part, self.device, side=side)
                with autocast(self.device, self.config):
                    loss = self.model(part.images, part.targets)["loss"]
                loss = loss * (len(part.images) / images)
                self.scaler.scale(telling(loss, self._statistics)).backward()
            total += loss.detach()
        return total

    def _ranks_joined(self, is_last: bool) -> contextlib.AbstractContextManager[None]:
        """Ranks average their gradients in the last part of a step only."""
        return contextlib.nullcontext() if is_last or self.ranks.world == 1 else self.model.no_sync()

    def _skip(self, step: int, loss: float) -> None:
        """No weight follows a gradient that is no number; in fp16 it is tried again with smaller ones, else the run ends."""
        self._before.give_back()
        if self.scaler.is_enabled():
            back_off(self.scaler)
        if not self.scaler.is_enabled() or self.scaler.get_scale() < 1:
            raise TrainingError(
                f"the loss is {loss:.4g} and its gradient is no finite number at step {step}; "
                "lower the learning rate, or grad_clip, or train in fp32"
            )

    def _follow_gradients(self, step: int) -> None:
        try:
            self.optimizer.step()
        except torch.OutOfMemoryError as error:  # smaller parts of a batch would not help
            raise TrainingError(
                f"out of memory at step {step} for the optimiser's state; use a smaller variant, or optimizer sgd"
            ) from error
        self.scaler.update()
        if self.mean is not None:
            self.mean.update()

    def _forget(self) -> None:
        """What a failed attempt at a step has left behind."""
        self.optimizer.zero_grad(set_to_none=True)
        self._before.give_back()

    def _bounds(self, side: int) -> dict[str, int]:
        """The least number of parts of a step, and the fewest images of `side` pixels in each."""
        least = least_images(self.config, side=side, joined=self._joins_norms)
        return {"accumulate": self.config.accumulate, "least": least}

    def _within_memory(
        self, where: str, attempt: Callable[[], T], *, undo: Callable[[], None], images: int = 0, side: int = 0
    ) -> T:
        """What `attempt` returns, with half of the images at a time, and half of those, for as long as memory runs out.

        `images` of `side` pixels are trained on; without them it is a validation.
        """
        while True:
            try:
                return attempt()
            except RuntimeError as error:
                if not is_memory_error(error):
                    raise
            # Not in the handler: with the error goes what was computed until then.
            undo()
            free_memory()
            bounds = self._bounds(side) if images else {}
            self._halve(where, halved(images or self.micro_batch, micro_batch=self.micro_batch, **bounds), bounds)

    def _halve(self, where: str, half: int, bounds: dict[str, int]) -> None:
        if not half:
            config, least = self.config, bounds.get("least", 1)
            images = "one image" if least == 1 else f"{self.micro_batch} images"
            why = f", and {config.detector} {config.variant} needs {least} at this size" if least > 1 else ""
            raise TrainingError(
                f"out of memory at {where} with {images} at a time{why}; lower image_size or multi_scale, "
                "or use a smaller variant"
            )
        if self.ranks.world > 1:  # the others wait for this rank's gradients
            raise MemoryShort(micro_batch=half)
        if self._say:
            self._say(f"out of memory at {where} with {self.micro_batch} images at a time; from here on {half}")
        self.micro_batch = half

    @property
    def memory(self) -> dict[str, Any]:
        """Images at a time on a rank, and the most memory that was in use, in MiB."""
        return {"micro_batch": self.micro_batch, "peak_memory_mb": peak_memory_mb(self.device)}

    def describe(self) -> str:
        """What is trained, from what and where, in a few lines."""
        config = self.config
        total, trained = count_parameters(self.detector)
        lines = [
            f"{config.detector} {config.variant}: {total / 1e6:.2f} M parameters, {trained / 1e6:.2f} M of them trained, "
            f"on {self.device.type} in {config.precision}",
            f"{config.batch_size} images a step on {self.ranks.world} rank(s), at most {self.micro_batch} at a time",
        ]
        return "\n".join([*lines, *filter(None, [self._first_lines])])

    @property
    def best_model(self) -> nn.Module:
        """The running mean of the weights where the run keeps one."""
        return self.detector if self.mean is None else self.mean.module

    def validate(self) -> tuple[dict[str, Any], list[Detections]]:
        """What the validation fold says (`vbd.evaluation.score`); every rank looks at its share and all get the one score."""
        share = np.arange(self.ranks.rank, len(self.validation), self.ranks.world)

        def look() -> list[Detections]:
            return detect(
                self.best_model,
                self.validation,
                share,
                batch_size=self.micro_batch,
                device=self.device,
                config=self.config,
            )

        self.optimizer.zero_grad(set_to_none=True)  # the gradients' memory is free meanwhile
        found = self._within_memory("the validation", look, undo=lambda: None)
        train_mode(self.model, self.detector, self.config)
        found = sorted(self.ranks.gather(found), key=lambda item: item.image_id)
        return numbers_of(self.config.detector, evaluate(found, self.truths)), found

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
                    "averaged": 0 if self.mean is None else self.mean.updates,
                    "step": step,
                    "micro_batch": self.micro_batch,
                },
                step=step,
                metrics=metrics,
                first_weights=self.first_weights,
                micro_batch=self.micro_batch,
            )
            write_table(str(folder / OUT_OF_FOLD), detections_to_table(found))
            yield folder

    def resume(self, folder: str) -> int:
        """Takes up the state of a checkpoint of the same run up to there; returns the step to go on with.

        What the run's schedule does from that step on may differ from the checkpoint's.
        """
        info = read_info(folder)
        if phases.until(info.config, info.step) != phases.until(self.config, info.step):
            raise InputError(f"{folder}: checkpoint of another configuration ({info.config_hash}); start a new run")
        if info.dataset != self.dataset.fingerprint:
            raise InputError(f"{folder}: trained on dataset {info.dataset}, this is {self.dataset.fingerprint}")
        state = read_part(folder, "state.pt", info)
        with foreign_told(f"{folder}/state.pt", info):
            self.detector.load_state_dict(state["detector"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.scaler.load_state_dict(state["scaler"])
            if self.mean is not None:
                self.mean.load(read_part(folder, "model.pt", info), updates=state["averaged"])
            self.micro_batch = min(self.micro_batch, state.get("micro_batch", self.micro_batch))
            self.first_weights = info.first_weights
            return int(state["step"])
