"""How many images of a step go through a detector at a time, at which sizes, and the fewest that it can be trained on.

torch refuses to normalise a batch over a single value per channel. A layer whose map is one cell wide and high has one value for
each image, so where BatchNorm stands on such a map a detector needs two images at a time.
"""

import math

from vbd.config import TrainConfig, size_multiple
from vbd.errors import InputError

# EfficientDet's coarsest level, on which its pyramid and its heads normalise: 7, but 8 of the largest variant.
_EFFICIENTDET_STRIDE, _D7X_STRIDE = 128, 256
_COARSEST_OF_BACKBONES = 32
# Classifiers that normalise each image by itself.
_WITHOUT_BATCH_NORM = ("convnext_tiny", "convnext_small")
# Variants that normalise outside the backbone too, on maps of its coarsest stride; the heads of other torchvision detectors
# do not use BatchNorm.
_NORMALISED_PYRAMIDS = {
    "faster_rcnn": ("mobilenet_v3_large_320", "mobilenet_v3_large", "resnet50_v2"),
    "retinanet": ("resnet18",),
    "fcos": ("resnet18",),
}


def coarsest_norm_stride(config: TrainConfig) -> int:
    """The coarsest stride, in pixels, of a map on which the detector normalises over the batch in training; 0: nowhere."""
    is_frozen = config.backbone_rate == 0  # it keeps its statistics
    match config.detector:
        case "efficientdet":
            return _D7X_STRIDE if config.variant == "d7x" else _EFFICIENTDET_STRIDE
        case "yolox":
            return _COARSEST_OF_BACKBONES
        case "classifier":
            return 0 if is_frozen or config.variant in _WITHOUT_BATCH_NORM else _COARSEST_OF_BACKBONES
        case family:
            is_normalised = config.variant in _NORMALISED_PYRAMIDS[family]
            return _COARSEST_OF_BACKBONES if is_normalised or not is_frozen else 0


def sides(config: TrainConfig) -> tuple[int, int]:
    """The smallest and the largest side, in pixels, of the images of a step; equal without `multi_scale`."""
    multiple, reach = size_multiple(config.detector), config.multi_scale * config.image_size
    # The small numbers are for 0.1 + 0.2 and its like.
    smallest = max(1, math.ceil((config.image_size - reach) / multiple - 1e-9))
    return multiple * smallest, multiple * math.floor((config.image_size + reach) / multiple + 1e-9)


def least_images(config: TrainConfig, *, side: int, joined: bool = False) -> int:
    """The fewest images of `side` pixels that the detector can be trained on at a time; `joined`: with those of other workers."""
    return 2 if side <= coarsest_norm_stride(config) and not joined else 1


def number_of_parts(images: int, *, micro_batch: int, accumulate: int, least: int = 1) -> int:
    """Number of parts in which `images` go through the detector.

    At least `accumulate` parts of at most `micro_batch` images each, but none of fewer than `least` images.
    """
    return max(1, min(images // least, max(accumulate, -(-images // micro_batch))))


def halved(images: int, *, micro_batch: int, accumulate: int = 1, least: int = 1) -> int:
    """The micro-batch by which half as many images go through at a time; 0 where there cannot be fewer."""

    def largest(micro: int) -> int:
        return -(-images // number_of_parts(images, micro_batch=micro, accumulate=accumulate, least=least))

    half = (largest(micro_batch) + 1) // 2
    return half if largest(half) < largest(micro_batch) else 0


def check_micro_batch(
    config: TrainConfig, *, workers: int = 1, sync_batchnorm: bool = False, where: str = "config"
) -> None:
    """Raises InputError, with values that work, when some part of a step has fewer images than can be trained on."""
    side, share = sides(config)[0], config.batch_size // workers
    least = least_images(config, side=side, joined=sync_batchnorm and workers > 1)
    images = max(1, share // config.accumulate)
    if images >= least:
        return
    smallest = "a smallest side (of image_size with multi_scale)" if config.multi_scale else "an image_size"
    parts = [f"accumulate {config.accumulate}"] if config.accumulate > 1 else []
    parts += [f"{workers} workers"] if workers > 1 else []
    multiple = size_multiple(config.detector)
    wanted = [f"a batch_size of {least * config.accumulate * workers} or more"]
    if config.accumulate > 1 and share >= least:
        wanted.append(f"an accumulate of at most {share // least}")
    wanted.append(f"{smallest} of {(coarsest_norm_stride(config) // multiple + 1) * multiple} or more")
    wanted += ["sync_batchnorm"] if workers > 1 else []
    raise InputError(
        f"{where}: batch_size {config.batch_size}{' with ' if parts else ''}{' and '.join(parts)} puts {images} image of "
        f"{side} px at a time through {config.detector} {config.variant}, whose BatchNorm needs {least}; use "
        + ", or ".join(wanted)
    )
