"""All configuration: frozen dataclasses, and functions that return a complete one."""

import dataclasses
import functools
import json
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from vbd.config.checked import Share, between, check_rules, convert
from vbd.config.difference import shortened
from vbd.errors import InputError
from vbd.hashing import short_hash
from vbd.labels import NUM_FINDINGS

# The last is no detector: it tells whether an image is normal, and proposes no boxes.
Family = Literal["faster_rcnn", "retinanet", "fcos", "yolox", "efficientdet", "classifier"]
Policy = Literal["A", "B", "C", "D", "E"]
Optimizer = Literal["adamw", "sgd"]
Precision = Literal["fp32", "bf16", "fp16"]
Device = Literal["auto", "cpu", "cuda"]
ResizeMode = Literal["stretch", "letterbox"]
ImageFormat = Literal["png", "png16", "jpeg"]
Channels = Literal["grey", "composed"]
ReaderFusion = Literal["wbf", "nmw", "nms", "mean", "union"]
Layout = Literal["auto", "competition", "yolo", "coco"]
Sampler = Literal["repeat_factor", "instance_aware", "class_aware"]
Input = Literal["loader", "ray"]
Searcher = Literal["random", "grid", "optuna"]
Scheduler = Literal["halving", "fifo", "population"]

# Types of fields and flags with the values that they may have. Largest values guard against a slip, such as a batch of
# 200 million images, not against a slow run.
Steps = Annotated[int, between(1, 10_000_000)]
Side = Annotated[int, between(8, 8192)]
Folds = Annotated[int, between(2, 100)]
Readers = Annotated[int, between(1, 1000)]
Kept = Annotated[int, between(1, 1000)]
Copies = Annotated[int, between(1, 1000)]
Trials = Annotated[int, between(1, 100_000)]
LoaderWorkers = Annotated[int, between(0, 256)]
Processes = Annotated[int, between(1, 1024)]
Overlap = Annotated[float, between(0, 1, above=True, below=True)]
# Optuna's sampler takes 32 bits, and some draws add a small number.
Seed = Annotated[int, between(0, 2**31 - 1)]

FAMILIES: tuple[Family, ...] = get_args(Family)


def finds_boxes(family: str) -> bool:
    """Whether a family is one of detectors; a model of the others tells of whole images only, and has another score."""
    return family != "classifier"


POLICIES: tuple[Policy, ...] = get_args(Policy)
# Backbones of torchvision's detectors that come without COCO weights: with `pretrained` their own are ImageNet's.
_OTHER_RESNETS = (
    *("resnet18", "resnet34", "resnet101", "resnet152", "wide_resnet50_2", "wide_resnet101_2"),
    *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"),
)
# Sizes that each family knows; the first is the smallest.
VARIANTS: dict[Family, tuple[str, ...]] = {
    "faster_rcnn": ("mobilenet_v3_large_320", "mobilenet_v3_large", "resnet50", "resnet50_v2", *_OTHER_RESNETS),
    "retinanet": ("resnet18", "resnet50", "resnet50_v2", *_OTHER_RESNETS[1:]),
    "fcos": ("resnet18", "resnet50", *_OTHER_RESNETS[1:]),
    "yolox": ("nano", "tiny", "s", "m", "l", "x"),
    # The library's `tf_` models, with weights converted from the authors' own, but for `torch_`: trained in PyTorch.
    "efficientdet": (
        *("lite0", "lite1", "lite2", "lite3", "lite3x", "lite4"),
        *("d0", "d1", "d2", "d3", "d4", "d5", "d6", "d7", "d7x"),
        *("torch_d0", "torch_d1", "torch_d2", "torch_d3", "torch_d4", "torch_d5"),
    ),
    # timm's names.
    "classifier": (
        *("mobilenetv3_small_050", "mobilenetv3_large_100", "resnet18", "resnet50", "densenet121"),
        *("efficientnet_b0", "tf_efficientnet_b3", "tf_efficientnet_b4", "tf_efficientnet_b5", "tf_efficientnetv2_s"),
        *("convnext_tiny", "convnext_small"),
    ),
}
# Detectors that place anchor boxes; the others learn from points.
ANCHORED: tuple[Family, ...] = ("faster_rcnn", "retinanet", "efficientdet")


# For pydantic: a field that a config does not have is an error.
_NO_OTHER_FIELDS = {"extra": "forbid"}


@dataclass(frozen=True)
class Anchors:
    """The anchor boxes of a detector; a zero or an empty tuple leaves what its adapter chose for X-rays."""

    # Side of the smallest anchor as a share of the image's, 0..0.5: a nodule.
    smallest: float = 0.0
    # Sizes on each level of the pyramid.
    per_level: int = 0
    # Height over width: below 1 for flat boxes such as pleural thickening at the diaphragm.
    ratios: tuple[float, ...] = ()


@dataclass(frozen=True)
class TrainConfig:
    """One training run. Two runs with equal configs on equal data are the same run."""

    __pydantic_config__ = _NO_OTHER_FIELDS

    # Which detector, and its size; see VARIANTS.
    detector: Family = "yolox"
    variant: str = "nano"
    # Side of the square input, pixels; a multiple of 32 (of 128 for efficientdet).
    image_size: Annotated[int, between(32, 8192)] = 512
    # Start from COCO weights that the library fetches.
    pretrained: bool = False
    # Start from this file of weights or checkpoint folder instead; empty: no file.
    weights: str = ""
    # Anchor boxes; see Anchors. Only for detectors in ANCHORED.
    anchor_smallest: Annotated[float, between(0, 0.5)] = 0.0
    anchor_per_level: Annotated[int, between(0, 8)] = 0
    anchor_ratios: tuple[Annotated[float, between(0.05, 20)], ...] = ()

    # Augmentation: A none, B flips and turns, C adds mixing and CLAHE, D C for rare labels, E the competitors' recipe.
    policy: Policy = "A"
    # 0..1: how often a draw is augmented, and how far.
    strength: Share = 1.0
    # Share of normal images in every batch, 0..0.9.
    normal_share: Annotated[float, between(0, 0.9)] = 0.2
    # How often images of rare labels are drawn: by LVIS repeat factors, by their form that also counts boxes, or every label
    # equally often.
    sampler: Sampler = "repeat_factor"
    # Threshold of the repeat factors; 0 switches them off (0.1 lengthens the real data's epoch by 6 %).
    repeat_threshold: Share = 0.0
    # Train only on images that hold one of these labels, and on normal ones; empty: on all.
    subset: tuple[Annotated[int, between(0, NUM_FINDINGS - 1)], ...] = ()
    # A box that k of 3 readers drew weighs (k / 3) ** agreement_weight in the loss; 0: all alike.
    agreement_weight: Annotated[float, between(0, 4)] = 0.0
    # How the boxes of several readers become one set to learn from; empty: as the dataset was prepared. Validation always
    # stays with the dataset's own, so that runs can be compared.
    reader_fusion: Literal[ReaderFusion, ""] = ""

    # Budget: optimiser steps, images per step, and in how many parts a step goes through the detector.
    steps: Steps = 20_000
    batch_size: Annotated[int, between(1, 1024)] = 16
    accumulate: Annotated[int, between(1, 1024)] = 1
    optimizer: Optimizer = "adamw"
    learning_rate: Annotated[float, between(0, 10, above=True)] = 1e-3
    # Learning rate of the backbone as a share of the others'; 0 freezes it, its batch statistics too.
    backbone_rate: Share = 1.0
    weight_decay: Annotated[float, between(0, 10)] = 0.05
    # Linear warm-up, in steps; a cosine to 1 % of the rate follows.
    warmup_steps: Annotated[int, between(0, 10_000_000)] = 500
    # Largest L2 norm of all gradients together.
    grad_clip: Annotated[float, between(0, 1e6, above=True)] = 10.0
    # Decay of the running mean of the weights; 0 switches it off.
    ema_decay: Annotated[float, between(0, 1, below=True)] = 0.998
    # Multi-scale training: the side of each step's images is drawn within this share of image_size; 0 switches it off.
    multi_scale: Annotated[float, between(0, 0.5)] = 0.0
    # Arithmetic of the forward pass.
    precision: Precision = "fp32"

    # A schedule in phases: from step `phase_steps[i]` on, the strength is `phase_strengths[i]` and the learning rate
    # `phase_rates[i]` times what it would be. Empty: neither changes. What population-based training finds.
    phase_steps: tuple[Steps, ...] = ()
    phase_strengths: tuple[Share, ...] = ()
    phase_rates: tuple[Annotated[float, between(0, 1e6, above=True)], ...] = ()

    # The fold that is held out for validation.
    fold: Annotated[int, between(0, 99)] = 0
    seed: Seed = 0
    # Report (validate and write a checkpoint) every so many steps.
    report_every: Steps = 1_000


@dataclass(frozen=True)
class RunOptions:
    """How and where a run is carried out; not in the config's hash, so that a run may go on elsewhere."""

    __pydantic_config__ = _NO_OTHER_FIELDS

    device: Device = "auto"
    # Torch threads of each training process: more than one makes concurrent trials fight for cores.
    threads: Annotated[int, between(1, 1024)] = 1
    # Processes that decode and augment beside the training process; 0 does it in line.
    loader_workers: LoaderWorkers = 0
    # Where batches are made: beside the training process, or by Ray Data on the cluster's CPU workers.
    input: Input = "loader"
    # Layout of images in memory in which convolutions are mostly faster, and what tensor cores want.
    channels_last: bool = True
    # torch.compile the detector: minutes at the start, for long runs on a GPU.
    compile: bool = False
    # With several workers: take batch statistics over all of them.
    sync_batchnorm: bool = False


@dataclass(frozen=True)
class PrepareConfig:
    """How raw files become a prepared dataset."""

    __pydantic_config__ = _NO_OTHER_FIELDS

    # Side of the square prepared image, pixels.
    image_size: Side = 512
    resize: ResizeMode = "stretch"
    # How prepared images are stored. Training reads 8 bits of any of them.
    image_format: ImageFormat = "png"
    # grey: the film as a viewer shows it; composed: three channels, that film, its CLAHE and its edges.
    channels: Channels = "grey"
    # How the boxes of several readers become one set, and the IoU above which two boxes are the same lesion.
    fusion: ReaderFusion = "wbf"
    fusion_iou: Overlap = 0.4
    # Fused boxes that fewer readers drew are left out.
    min_readers: Readers = 1
    # Only these readers are heard (empty: all of them), and these are not.
    readers: tuple[str, ...] = ()
    without_readers: tuple[str, ...] = ()
    num_folds: Folds = 5
    # Images that look alike stay in one fold: near by their perceptual hash, exact by their bytes alone.
    duplicates: Literal["near", "exact"] = "near"
    seed: Seed = 0
    # Images per shard: the unit of work, and of resuming.
    shard_size: Annotated[int, between(1, 100_000)] = 64


@dataclass(frozen=True)
class Candidate:
    """What a search varies for one detector family, by fields of TrainConfig; the others stay as in `base`."""

    base: TrainConfig
    # Values to choose from.
    choices: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    # Bounds of a log-uniform draw. A grid keeps the base's value.
    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)
    # Trials given to this family by a random or Optuna search; members of its population.
    trials: Trials = 8
    # A grid's extra trials: policies that multiply the data, at full strength, for as many EPOCHS as without augmentation
    # and so for more steps. It shows how that comparison, which many make, favours them.
    equal_epochs: bool = False


@dataclass(frozen=True)
class SearchConfig:
    """One search: candidates per family, how they are drawn and when they are stopped."""

    preset: str
    candidates: tuple[Candidate, ...]
    # `random` and `optuna` draw; `grid` runs every combination of the choices.
    searcher: Searcher = "random"
    # `halving` is asynchronous successive halving, within each family; `fifo` stops nobody; `population` trains all at
    # once, and the worst of a family go on from the best with another strength and learning rate.
    scheduler: Scheduler = "halving"
    # Halving: no trial is stopped in its first share of the steps; of those at a rung 1 / reduction go on.
    grace_share: Annotated[float, between(0, 1, above=True)] = 1 / 9
    reduction: Annotated[int, between(2, 1000)] = 3
    # Population: after each such share of the steps the worst quarter is replaced.
    generation_share: Annotated[float, between(0, 1, above=True)] = 0.2
    # Best trials per family whose checkpoints are kept for the ensemble; of the others the detections stay.
    keep_per_family: Kept = 2
    keep_all: bool = False
    cpus_per_trial: Annotated[float, between(0, 1024, above=True)] = 1
    # None: one where the cluster has GPUs when the search starts, or its autoscaler may start some.
    gpus_per_trial: Annotated[float, between(0, 1024)] | None = None
    # Processes of each trial; several train by distributed data parallel.
    workers_per_trial: Processes = 1
    # Attempts at a trial whose node or process died.
    max_failures: Annotated[int, between(0, 1000)] = 3
    # A finished run whose leaderboard tells the searcher where to look first; empty: none.
    warm_start: str = ""
    seed: Seed = 0


def check_prepare_config(config: PrepareConfig) -> None:
    """Raises InputError for the first option that no dataset can be prepared with."""
    check_rules(config, lambda name, value: f"--{name.removeprefix('num_').replace('_', '-')} {value}:")


def config_hash(config: TrainConfig) -> str:
    """Sixteen hex digits that are equal exactly for equal configs (1 and 1.0 are), on every machine and Python version.

    Fields at their default are left out, so that a new field disowns no older checkpoint.
    """
    text = json.dumps(changed_fields(config), sort_keys=True, separators=(",", ":"))
    return short_hash(text)


def changed_fields(config: TrainConfig) -> dict[str, Any]:
    """The fields that differ from their default; a whole number in a field of floats is a float."""
    defaults = dataclasses.asdict(TrainConfig())
    changed = {name: value for name, value in dataclasses.asdict(config).items() if value != defaults[name]}
    return {name: _as_floats(value) if name in _float_fields() else value for name, value in changed.items()}


def _as_floats(value: Any) -> Any:
    return tuple(map(float, value)) if isinstance(value, (tuple, list)) else float(value)


@functools.cache
def _float_fields() -> frozenset[str]:
    hints = get_type_hints(TrainConfig)
    return frozenset(name for name, hint in hints.items() if hint is float or float in get_args(hint))


def anchors_of(config: TrainConfig) -> Anchors:
    """The anchor boxes that a config asks for."""
    return Anchors(config.anchor_smallest, config.anchor_per_level, config.anchor_ratios)


def stage_two(config: TrainConfig, *, weights: str, steps: int, subset: tuple[int, ...] = ()) -> TrainConfig:
    """A second stage: from a checkpoint of `config`, a twentieth of its rate, warmed up over the first twentieth.

    `subset` are the labels whose images it sees; empty: all.
    """
    return replace(
        config,
        weights=weights,
        pretrained=False,
        learning_rate=config.learning_rate / 20,
        steps=steps,
        warmup_steps=steps // 20,
        report_every=min(config.report_every, steps),
        subset=subset,
    )


def train_config_from(values: dict[str, Any], *, where: str = "config") -> TrainConfig:
    """A checked TrainConfig from JSON; raises InputError that names the field and `where` it stood."""
    names = get_type_hints(TrainConfig)
    unknown = sorted(set(values) - set(names))
    if unknown:
        raise InputError(f"{where}: unknown field {shortened(unknown[0])}; the fields are {', '.join(names)}")
    config = convert(values, TrainConfig, where=where)
    check_train_config(config, where=where)
    return config


def literals(hint: Any) -> tuple[Any, ...]:
    """The values that a Literal allows; empty for other types."""
    return get_args(hint) if get_origin(hint) is Literal else ()


def in_words(values: tuple[Any, ...]) -> str:
    """Values that may be chosen, for an error message."""
    return ", ".join(str(value) or "'' (none)" for value in values)


def size_multiple(detector: Family) -> int:
    """What the side of a detector's square input must be a multiple of, pixels: its coarsest stride."""
    return 128 if detector == "efficientdet" else 32


def check_train_config(config: TrainConfig, *, where: str = "config") -> None:
    """Raises InputError for the first value that cannot be trained with, by itself or beside the others."""
    check_rules(config, lambda name, value: f"{where}: {name} is {value!r};")
    multiple = size_multiple(config.detector)
    rules = (
        ("variant", config.variant in VARIANTS[config.detector], f"one of {', '.join(VARIANTS[config.detector])}"),
        ("image_size", config.image_size % multiple == 0, f"a multiple of {multiple}"),
        ("weights", not (config.weights and config.pretrained), "no file of weights beside pretrained"),
        *_anchor_rules(config),
        *_phase_rules(config),
        ("accumulate", config.accumulate <= config.batch_size, "at most batch_size"),
    )
    for name, is_good, wanted in rules:
        if not is_good:
            value = shortened(getattr(config, name))
            raise InputError(f"{where}: {name} is {value} for {config.detector}; want {wanted}")


# Fields that a rule of `check_train_config` compares with one another; all other rules are of one field and the family.
RELATED_FIELDS = (("weights", "pretrained"), ("accumulate", "batch_size"))


def _anchor_rules(config: TrainConfig) -> tuple[tuple[str, bool, str], ...]:
    names = ("anchor_smallest", "anchor_per_level", "anchor_ratios")
    has_anchors = config.detector in ANCHORED
    return tuple((name, has_anchors or not getattr(config, name), "nothing: it has no anchors") for name in names)


def _phase_rules(config: TrainConfig) -> tuple[tuple[str, bool, str], ...]:
    steps, phases = config.phase_steps, len(config.phase_steps)
    return (
        ("phase_steps", all(a < b for a, b in pairwise((*steps, config.steps))), "ascending steps below `steps`"),
        ("phase_strengths", len(config.phase_strengths) == phases, "one for each of phase_steps"),
        ("phase_rates", len(config.phase_rates) == phases, "one for each of phase_steps"),
    )
