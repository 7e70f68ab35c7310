"""How often each image is seen: factors for rare labels, a fixed share of normal images, and the sampler.

The images of optimiser step k are a function of k and the seed alone, so that a run resumes at any step.
"""

from collections.abc import Collection, Sequence
from fractions import Fraction
from typing import assert_never

import numpy as np
from numpy.typing import NDArray

from vbd.augment.policies import draws_of
from vbd.config import Policy, Sampler
from vbd.errors import InputError
from vbd.labels import NUM_FINDINGS

# Parts of the seed, so that the two streams draw different numbers.
_ABNORMAL, _NORMAL = 0, 1


def repeat_factors(label_sets: Sequence[Collection[int]], *, threshold: float) -> NDArray[np.float64]:
    """How often an epoch shows each image, (n,), at least 1 (Gupta et al. 2019, LVIS).

    An image's factor is the largest over its labels of sqrt(threshold / share of images that hold the label). Pass the
    abnormal images only: the share of normal ones is set elsewhere. `threshold` 0 gives ones.
    """
    held = _held(label_sets)
    shares = held.mean(axis=0) if len(held) else np.ones(NUM_FINDINGS)
    return _largest_factors(held, shares, threshold)


def instance_aware_factors(box_labels: Sequence[Sequence[int]], *, threshold: float) -> NDArray[np.float64]:
    """Repeat factors that count boxes too, (n,), at least 1 (Yaman et al. 2023, IRFS).

    As `repeat_factors`, with the geometric mean of a label's share of the images and its share of the boxes in the place
    of the former. `box_labels` has the label of every box of each image.
    """
    held, boxes = _held(box_labels), box_counts(box_labels).sum(axis=0)
    image_shares = held.mean(axis=0) if len(held) else np.ones(NUM_FINDINGS)
    return _largest_factors(held, np.sqrt(image_shares * boxes / max(1.0, boxes.sum())), threshold)


def class_aware_factors(label_sets: Sequence[Collection[int]]) -> NDArray[np.float64]:
    """Factors that choose every label equally often, and an image of it evenly, (n,) (Shen et al. 2016).

    Image i gets the sum over its labels of 1 / (images that hold the label), scaled to a mean of 1: below 1 for images
    of common labels alone. An epoch keeps its length. Every image must hold a label.
    """
    held = _held(label_sets)
    of_label = np.divide(1.0, held.sum(axis=0), out=np.zeros(NUM_FINDINGS), where=held.any(axis=0))
    return (held @ of_label) * (len(held) / max(1, int(held.any(axis=0).sum())))


def sampler_factors(box_labels: Sequence[Sequence[int]], *, sampler: Sampler, threshold: float) -> NDArray[np.float64]:
    """How often an epoch shows each abnormal image, (n,), by the sampler of a config; `class_aware` has no threshold."""
    match sampler:
        case "repeat_factor":
            return repeat_factors(box_labels, threshold=threshold)
        case "instance_aware":
            return instance_aware_factors(box_labels, threshold=threshold)
        case "class_aware":
            return class_aware_factors(box_labels)
        case _:
            assert_never(sampler)


def _largest_factors(held: NDArray[np.float64], shares: NDArray[np.float64], threshold: float) -> NDArray[np.float64]:
    of_label = np.sqrt(np.divide(threshold, shares, out=np.zeros(NUM_FINDINGS), where=shares > 0))
    return np.maximum(1.0, (held * of_label).max(axis=1))


def policy_factors(label_sets: Sequence[Collection[int]], *, policy: Policy, strength: float) -> NDArray[np.float64]:
    """How often a policy's materialised data set holds each image, (n,): 1 or, under D with a rare label, up to 7.

    B and C multiply every image alike, which changes no share, so they give ones. Multiply by `repeat_factors`.
    """
    if policy != "D":
        return np.ones(len(label_sets))
    return np.array([1 + strength * (len(draws_of(policy, labels)) - 1) for labels in label_sets], np.float64)


def epoch_multiple(policy: Policy, label_sets: Sequence[Collection[int]]) -> float:
    """How many times as many images the study's data set of a policy holds as its originals, at full strength.

    A comparison at equal epochs multiplies the steps by it. Pass the abnormal images only; without any it is 1.
    """
    return float(np.mean([len(draws_of(policy, labels)) for labels in label_sets])) if len(label_sets) else 1.0


def effective_counts(label_sets: Sequence[Collection[int]], factors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Images an epoch shows of each label, (14,), when image i is shown factors[i] times."""
    return factors @ _held(label_sets)


def box_counts(box_labels: Sequence[Sequence[int]]) -> NDArray[np.float64]:
    """Boxes of each label in each image, (n, 14)."""
    counts = np.zeros((len(box_labels), NUM_FINDINGS))
    for row, labels in enumerate(box_labels):
        np.add.at(counts[row], list(labels), 1)
    return counts


def batch_composition(step: int, batch_size: int, normal_share: float, *, world: int = 1) -> int:
    """How many images of the batch of a step are normal: over the steps their share is `normal_share` exactly.

    A batch of two or more keeps at least one abnormal image for each of `world` ranks, even where that caps the share.
    """
    before, after = (_normals_before(s, batch_size, normal_share, world) for s in (step, step + 1))
    return after - before


def normals_per_step(batch_size: int, normal_share: float, *, world: int = 1) -> float:
    """How many images of a batch are normal on average; see `batch_composition`."""
    return float(_normals_per_step(batch_size, normal_share, world))


def sample_indices(
    *,
    step: int,
    batch_size: int,
    abnormal: NDArray[np.int64],
    normal: NDArray[np.int64],
    factors: NDArray[np.float64],
    normal_share: float,
    seed: int,
) -> NDArray[np.int64]:
    """The images of one optimiser step, (batch_size,); see BatchSampler, which is faster for many steps."""
    sampler = BatchSampler(
        abnormal, normal, factors=factors, batch_size=batch_size, normal_share=normal_share, seed=seed
    )
    return sampler.batch(step)


class BatchSampler:
    """The images of any optimiser step, in any order of asking; its only state is a cache.

    Abnormal and normal images are two streams, each a row of epochs in a seeded order. An epoch shows abnormal image i
    floor(factors[i]) times or once more, on average factors[i] times, and each normal image once.
    """

    def __init__(
        self,
        abnormal: NDArray[np.int64],
        normal: NDArray[np.int64],
        *,
        factors: NDArray[np.float64],
        batch_size: int,
        normal_share: float,
        seed: int,
        world: int = 1,
    ) -> None:
        """`abnormal` (n,) and `normal` (m,) are image indices, `factors` (n,) belong to `abnormal`.

        `world` ranks share each batch; it changes the batches only where `normal_share` leaves a rank no abnormal image.
        Raises InputError when there is no abnormal image. Without normal ones the batches have none.
        """
        if len(abnormal) == 0:
            raise InputError("no training image has a finding; check the annotations or choose another fold")
        self._batch_size, self._world = batch_size, world
        self._normal_share = normal_share if len(normal) else 0.0
        self._abnormal = _Stream(abnormal, factors, seed=(seed, _ABNORMAL))
        self._normal = _Stream(normal, np.ones(len(normal)), seed=(seed, _NORMAL))

    def batch(self, step: int) -> NDArray[np.int64]:
        """The images of a step, (batch_size,): the abnormal first, so that workers' strided parts hold their share."""
        normals_before = _normals_before(step, self._batch_size, self._normal_share, self._world)
        normals = batch_composition(step, self._batch_size, self._normal_share, world=self._world)
        abnormals_before = step * self._batch_size - normals_before
        return np.concatenate(
            [
                self._abnormal.take(abnormals_before, self._batch_size - normals),
                self._normal.take(normals_before, normals),
            ]
        )


class _Stream:
    """An endless row of epochs over some images; every epoch has the same length, so any place is found at once."""

    def __init__(self, images: NDArray[np.int64], factors: NDArray[np.float64], *, seed: tuple[int, int]) -> None:
        self._images = images
        self._factors = factors
        self._seed = seed
        self._length = round(float(factors.sum()))
        self._cached: tuple[int, NDArray[np.int64]] = (-1, images[:0])

    def take(self, start: int, count: int) -> NDArray[np.int64]:
        """The images at places start..start + count - 1 of the stream."""
        parts = [self._images[:0].astype(np.int64)]
        while count > 0:
            epoch, place = divmod(start, self._length)
            part = self._epoch(epoch)[place : place + count]
            parts.append(part)
            start, count = start + len(part), count - len(part)
        return np.concatenate(parts)

    def _epoch(self, epoch: int) -> NDArray[np.int64]:
        if self._cached[0] != epoch:
            rng = np.random.default_rng([*self._seed, epoch])
            self._cached = (epoch, self._images[_repeated(self._factors, self._length, rng=rng)])
        return self._cached[1]


def _repeated(factors: NDArray[np.float64], length: int, *, rng: np.random.Generator) -> NDArray[np.int64]:
    """Places 0..n-1 in random order, each floor(factor) times or once more, `length` in all.

    Systematic sampling: one random offset on the running sum of the factors decides every fraction, each with its own
    probability, and the total is constant, which independent draws would not give.
    """
    order = rng.permutation(len(factors))
    running = np.cumsum(factors[order])
    running *= length / running[-1]
    running[-1] = length
    # A multiple of 2**-20, so that adding it to whole numbers is exact.
    offset = rng.integers(2**20) / 2**20
    counts = np.diff(np.floor(running + offset), prepend=0.0).astype(np.int64)
    return rng.permutation(np.repeat(order, counts))


def _normals_before(step: int, batch_size: int, normal_share: float, world: int) -> int:
    return int(step * _normals_per_step(batch_size, normal_share, world))


def _normals_per_step(batch_size: int, normal_share: float, world: int) -> Fraction:
    # A fraction, because 0.2 in floating point drifts away from the exact share.
    per_batch = batch_size * Fraction(normal_share).limit_denominator(10**6)
    # A batch of one image cannot hold both: it is normal at the share.
    return min(per_batch, Fraction(max(0, batch_size - world) if batch_size > 1 else 1))


def _held(label_sets: Sequence[Collection[int]]) -> NDArray[np.float64]:
    """Which image holds which label, (n, 14), as 0 and 1."""
    held = np.zeros((len(label_sets), NUM_FINDINGS))
    for row, labels in enumerate(label_sets):
        held[row, list(labels)] = 1
    return held
