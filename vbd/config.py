"""All configuration: frozen dataclasses, and functions that return a complete one."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field, replace
from itertools import pairwise
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from vbd.errors import InputError
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

    # Which detector, and its size; see VARIANTS.
    detector: Family = "yolox"
    variant: str = "nano"
    # Side of the square input, pixels; a multiple of 32 (of 128 for efficientdet).
    image_size: int = 512
    # Start from COCO weights that the library fetches.
    pretrained: bool = False
    # Start from this file of weights or checkpoint folder instead; empty: no file.
    weights: str = ""
    # Anchor boxes; see Anchors. Only for detectors in ANCHORED.
    anchor_smallest: float = 0.0
    anchor_per_level: int = 0
    anchor_ratios: tuple[float, ...] = ()

    # Augmentation: A none, B flips and turns, C adds mixing and CLAHE, D C for rare labels, E the competitors' recipe.
    policy: Policy = "A"
    # 0..1: how often a draw is augmented, and how far.
    strength: float = 1.0
    # Share of normal images in every batch, 0..0.9.
    normal_share: float = 0.2
    # How often images of rare labels are drawn: by LVIS repeat factors, by their form that also counts boxes, or every label
    # equally often.
    sampler: Sampler = "repeat_factor"
    # Threshold of the repeat factors; 0 switches them off (0.1 lengthens the real data's epoch by 6 %).
    repeat_threshold: float = 0.0
    # Train only on images that hold one of these labels, and on normal ones; empty: on all.
    subset: tuple[int, ...] = ()
    # A box that k of 3 readers drew weighs (k / 3) ** agreement_weight in the loss; 0: all alike.
    agreement_weight: float = 0.0
    # How the boxes of several readers become one set to learn from; empty: as the dataset was prepared. Validation always
    # stays with the dataset's own, so that runs can be compared.
    reader_fusion: ReaderFusion | Literal[""] = ""

    # Budget: optimiser steps, images per step, and in how many parts a step goes through the detector.
    steps: int = 20_000
    batch_size: int = 16
    accumulate: int = 1
    optimizer: Optimizer = "adamw"
    learning_rate: float = 1e-3
    # Learning rate of the backbone as a share of the others'; 0 freezes it, its batch statistics too.
    backbone_rate: float = 1.0
    weight_decay: float = 0.05
    # Linear warm-up, in steps; a cosine to 1 % of the rate follows.
    warmup_steps: int = 500
    # Largest L2 norm of all gradients together.
    grad_clip: float = 10.0
    # Decay of the running mean of the weights; 0 switches it off.
    ema_decay: float = 0.998
    # Multi-scale training: the side of each step's images is drawn within this share of image_size; 0 switches it off.
    multi_scale: float = 0.0
    # Arithmetic of the forward pass.
    precision: Precision = "fp32"

    # A schedule in phases: from step `phase_steps[i]` on, the strength is `phase_strengths[i]` and the learning rate
    # `phase_rates[i]` times what it would be. Empty: neither changes. What population-based training finds.
    phase_steps: tuple[int, ...] = ()
    phase_strengths: tuple[float, ...] = ()
    phase_rates: tuple[float, ...] = ()

    # The fold that is held out for validation.
    fold: int = 0
    seed: int = 0
    # Report (validate and write a checkpoint) every so many steps.
    report_every: int = 1_000


@dataclass(frozen=True)
class RunOptions:
    """How and where a run is carried out; not in the config's hash, so that a run may go on elsewhere."""

    device: Device = "auto"
    # Torch threads of each training process: more than one makes concurrent trials fight for cores.
    threads: int = 1
    # Processes that decode and augment beside the training process; 0 does it in line.
    loader_workers: int = 0
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

    # Side of the square prepared image, pixels.
    image_size: int = 512
    resize: ResizeMode = "stretch"
    # How prepared images are stored. Training reads 8 bits of any of them.
    image_format: ImageFormat = "png"
    # grey: the film as a viewer shows it; composed: three channels, that film, its CLAHE and its edges.
    channels: Channels = "grey"
    # How the boxes of several readers become one set, and the IoU above which two boxes are the same lesion.
    fusion: ReaderFusion = "wbf"
    fusion_iou: float = 0.4
    # Fused boxes that fewer readers drew are left out.
    min_readers: int = 1
    # Only these readers are heard (empty: all of them), and these are not.
    readers: tuple[str, ...] = ()
    without_readers: tuple[str, ...] = ()
    num_folds: int = 5
    # Images that look alike stay in one fold: near by their perceptual hash, exact by their bytes alone.
    duplicates: Literal["near", "exact"] = "near"
    seed: int = 0
    # Images per shard: the unit of work, and of resuming.
    shard_size: int = 64


@dataclass(frozen=True)
class Candidate:
    """What a search varies for one detector family, by fields of TrainConfig; the others stay as in `base`."""

    base: TrainConfig
    # Values to choose from.
    choices: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    # Bounds of a log-uniform draw. A grid keeps the base's value.
    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)
    # Trials given to this family by a random or Optuna search; members of its population.
    trials: int = 8
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
    grace_share: float = 1 / 9
    reduction: int = 3
    # Population: after each such share of the steps the worst quarter is replaced.
    generation_share: float = 0.2
    # Best trials per family whose checkpoints are kept for the ensemble; of the others the detections stay.
    keep_per_family: int = 2
    keep_all: bool = False
    cpus_per_trial: float = 1
    # None: one where the cluster has GPUs when the search starts, or its autoscaler may start some.
    gpus_per_trial: float | None = None
    # Processes of each trial; several train by distributed data parallel.
    workers_per_trial: int = 1
    # Attempts at a trial whose node or process died.
    max_failures: int = 3
    # A finished run whose leaderboard tells the searcher where to look first; empty: none.
    warm_start: str = ""
    seed: int = 0


def check_prepare_config(config: PrepareConfig) -> None:
    """Raises InputError for the first option that no dataset can be prepared with."""
    rules = (
        ("image-size", config.image_size, 8 <= config.image_size <= 8192, "8 to 8192 pixels"),
        ("fusion-iou", config.fusion_iou, 0 < config.fusion_iou < 1, "between 0 and 1"),
        ("min-readers", config.min_readers, config.min_readers >= 1, "1 or more"),
        ("folds", config.num_folds, config.num_folds >= 2, "2 or more"),
        ("shard-size", config.shard_size, config.shard_size >= 1, "1 or more"),
    )
    for name, value, is_good, wanted in rules:
        if not is_good:
            raise InputError(f"--{name} {value}: want {wanted}")


def config_hash(config: TrainConfig) -> str:
    """Sixteen hex digits that are equal exactly for equal configs, on every machine and Python version.

    Fields at their default are left out, so that a new field disowns no older checkpoint.
    """
    text = json.dumps(changed_fields(config), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def changed_fields(config: TrainConfig) -> dict[str, Any]:
    """The fields that differ from their default."""
    defaults = dataclasses.asdict(TrainConfig())
    return {name: value for name, value in dataclasses.asdict(config).items() if value != defaults[name]}


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
    hints = get_type_hints(TrainConfig)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise InputError(f"{where}: unknown field {unknown[0]!r}; the fields are {', '.join(hints)}")
    for name, value in values.items():
        _check_type(name, value, hints[name], where)
    fields: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
    config = TrainConfig(**fields)
    check_train_config(config, where=where)
    return config


def literals(hint: Any) -> tuple[Any, ...]:
    """The values that a Literal, or a union of some, allows; empty for other types."""
    if get_origin(hint) in (Union, UnionType):
        return tuple(value for part in get_args(hint) for value in literals(part))
    return get_args(hint) if get_origin(hint) is Literal else ()


def in_words(values: tuple[Any, ...]) -> str:
    """Values that may be chosen, for an error message."""
    return ", ".join(str(value) or "'' (none)" for value in values)


def _check_type(name: str, value: Any, hint: Any, where: str) -> None:
    if allowed := literals(hint):
        if value not in allowed:
            raise InputError(f"{where}: {name} is {value!r}; choose one of {in_words(allowed)}")
        return
    if get_origin(hint) is tuple:
        if not isinstance(value, (list, tuple)):
            raise InputError(f"{where}: {name} is {value!r}; want a list")
        for item in value:
            _check_type(name, item, get_args(hint)[0], where)
        return
    wanted = (int, float) if hint is float else hint
    if not isinstance(value, wanted) or (isinstance(value, bool) and hint is not bool):
        raise InputError(f"{where}: {name} is {value!r}; want {hint.__name__}")


def size_multiple(detector: Family) -> int:
    """What the side of a detector's square input must be a multiple of, pixels: its coarsest stride."""
    return 128 if detector == "efficientdet" else 32


def check_train_config(config: TrainConfig, *, where: str = "config") -> None:
    """Raises InputError for the first value that cannot be trained with."""
    multiple = size_multiple(config.detector)
    rules = (
        ("variant", config.variant in VARIANTS[config.detector], f"one of {', '.join(VARIANTS[config.detector])}"),
        ("image_size", config.image_size > 0 and config.image_size % multiple == 0, f"a multiple of {multiple}"),
        ("weights", not (config.weights and config.pretrained), "no file of weights beside pretrained"),
        *_anchor_rules(config),
        ("strength", 0 <= config.strength <= 1, "between 0 and 1"),
        ("normal_share", 0 <= config.normal_share <= 0.9, "between 0 and 0.9"),
        ("repeat_threshold", 0 <= config.repeat_threshold <= 1, "between 0 and 1"),
        ("subset", set(config.subset) <= set(range(NUM_FINDINGS)), f"labels from 0 to {NUM_FINDINGS - 1}"),
        ("agreement_weight", 0 <= config.agreement_weight <= 4, "between 0 and 4"),
        *_phase_rules(config),
        ("steps", config.steps > 0, "positive"),
        ("batch_size", config.batch_size > 0, "positive"),
        ("accumulate", 1 <= config.accumulate <= config.batch_size, "between 1 and batch_size"),
        ("learning_rate", config.learning_rate > 0, "positive"),
        ("backbone_rate", 0 <= config.backbone_rate <= 1, "between 0 and 1"),
        ("weight_decay", config.weight_decay >= 0, "0 or more"),
        ("warmup_steps", config.warmup_steps >= 0, "0 or more"),
        ("grad_clip", config.grad_clip > 0, "positive"),
        ("ema_decay", 0 <= config.ema_decay < 1, "at least 0 and below 1"),
        ("multi_scale", 0 <= config.multi_scale <= 0.5, "between 0 and 0.5"),
        ("fold", config.fold >= 0, "0 or more"),
        ("report_every", config.report_every > 0, "positive"),
    )
    for name, is_good, wanted in rules:
        if not is_good:
            raise InputError(f"{where}: {name} is {getattr(config, name)!r} for {config.detector}; want {wanted}")


def _anchor_rules(config: TrainConfig) -> tuple[tuple[str, bool, str], ...]:
    if config.detector not in ANCHORED:
        nothing = "nothing: it has no anchors"
        return (
            ("anchor_smallest", not config.anchor_smallest, nothing),
            ("anchor_per_level", not config.anchor_per_level, nothing),
            ("anchor_ratios", not config.anchor_ratios, nothing),
        )
    return (
        ("anchor_smallest", 0 <= config.anchor_smallest <= 0.5, "between 0 and 0.5"),
        ("anchor_per_level", 0 <= config.anchor_per_level <= 8, "between 0 and 8"),
        ("anchor_ratios", all(0.05 <= ratio <= 20 for ratio in config.anchor_ratios), "ratios between 0.05 and 20"),
    )


def _phase_rules(config: TrainConfig) -> tuple[tuple[str, bool, str], ...]:
    steps, phases = config.phase_steps, len(config.phase_steps)
    return (
        ("phase_steps", all(0 < a < b for a, b in pairwise((*steps, config.steps))), "ascending steps below `steps`"),
        ("phase_strengths", len(config.phase_strengths) == phases, "one for each of phase_steps"),
        ("phase_strengths", all(0 <= s <= 1 for s in config.phase_strengths), "between 0 and 1"),
        ("phase_rates", len(config.phase_rates) == phases, "one for each of phase_steps"),
        ("phase_rates", all(rate > 0 for rate in config.phase_rates), "positive"),
    )
