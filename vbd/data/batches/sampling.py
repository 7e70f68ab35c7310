"""Which images a run sees, and how often: from the labels alone, nothing is decoded."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vbd.config import TrainConfig
from vbd.config.phases import strength_at
from vbd.data.batches.balance import (
    BatchSampler,
    box_counts,
    effective_counts,
    normals_per_step,
    policy_factors,
    sampler_factors,
)
from vbd.errors import InputError
from vbd.labels import CLASS_NAMES

BoxLabels = Sequence[Sequence[int]]


@dataclass(frozen=True)
class TrainingImages:
    """The images that a config trains on, as places in the training part without its fold."""

    abnormal: NDArray[np.int64]  # (n,)
    normal: NDArray[np.int64]  # (m,)


def choose_images(box_labels: BoxLabels, config: TrainConfig) -> TrainingImages:
    """Of images with these labels of boxes, the abnormal ones of the config's subset, with all their boxes, and the normal.

    Raises InputError when no image holds a label of the subset.
    """
    wanted = set(config.subset)
    chosen = [bool(labels) and (not wanted or not wanted.isdisjoint(labels)) for labels in box_labels]
    if wanted and not any(chosen):
        names = ", ".join(f"{label} ({CLASS_NAMES[label]})" for label in sorted(wanted))
        raise InputError(f"subset: no training image outside fold {config.fold} holds {names}; choose other labels")
    is_normal = [not labels for labels in box_labels]
    return TrainingImages(np.flatnonzero(chosen), np.flatnonzero(is_normal))


def image_factors(box_labels: BoxLabels, config: TrainConfig, *, strength: float) -> NDArray[np.float64]:
    """How often an epoch shows each of some abnormal images, (n,): what the sampler and the policy multiply."""
    factors = sampler_factors(box_labels, sampler=config.sampler, threshold=config.repeat_threshold)
    return factors * policy_factors(box_labels, policy=config.policy, strength=strength)


class TrainingSampler:
    """Which images each step sees, when `world` ranks share a batch.

    Under policy D the factors follow the strength, so each strength of the config's schedule has a sampler of its own;
    a step is at the same place in all of them, which makes its images a function of the step and its strength alone.
    """

    def __init__(self, box_labels: BoxLabels, config: TrainConfig, *, world: int = 1) -> None:
        self._config = config
        images = choose_images(box_labels, config)
        abnormal = [box_labels[i] for i in images.abnormal]
        self._samplers = {
            strength: BatchSampler(
                images.abnormal,
                images.normal,
                factors=image_factors(abnormal, config, strength=strength),
                batch_size=config.batch_size,
                normal_share=config.normal_share,
                seed=config.seed,
                world=world,
            )
            for strength in {strength_at(step, config) for step in (0, *config.phase_steps)}
        }

    def batch(self, step: int) -> NDArray[np.int64]:
        """The images of a step, (batch_size,)."""
        return self._samplers[strength_at(step, self._config)].batch(step)


def sampling_table(box_labels: BoxLabels, config: TrainConfig) -> str:
    """What `describe_sampling` prints, for images with these labels of boxes, at the config's first strength."""
    images = choose_images(box_labels, config)
    abnormal = [box_labels[i] for i in images.abnormal]
    if not abnormal:
        raise InputError("no training image has a finding; check the annotations or choose another fold")
    factors = image_factors(abnormal, config, strength=config.strength)
    counts = box_counts(abnormal)
    normals = normals_per_step(config.batch_size, config.normal_share if len(images.normal) else 0.0)
    steps_per_epoch = factors.sum() / (config.batch_size - normals)
    shown, shown_boxes = effective_counts(abnormal, factors), factors @ counts
    per_thousand = 1000 / steps_per_epoch
    lines = [f"{'class':<20}{'images':>8}{'boxes':>8}{'shown/epoch':>13}{'% of boxes':>12}{'per 1,000 steps':>17}"]
    for label, name in enumerate(CLASS_NAMES[: counts.shape[1]]):
        lines.append(
            f"{name:<20}{np.count_nonzero(counts[:, label]):>8,}{int(counts[:, label].sum()):>8,}{shown[label]:>13,.1f}"
            f"{100 * shown_boxes[label] / shown_boxes.sum():>12.2f}{per_thousand * shown[label]:>17,.0f}"
        )
    share = 100 * normals / config.batch_size
    lines += [
        f"{len(images.abnormal):,} abnormal and {len(images.normal):,} normal images; {share:.1f} % of what is shown is normal",
        f"{steps_per_epoch:,.1f} steps per epoch of the abnormal images, {config.steps / steps_per_epoch:,.1f} epochs "
        f"in {config.steps:,} steps; sampler {config.sampler}",
    ]
    return "\n".join(lines)
