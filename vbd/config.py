"""All configuration: frozen dataclasses, and functions that return a complete one."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass, replace
from typing import Any, Literal, assert_never, get_args, get_origin, get_type_hints

from vbd.errors import InputError

Family = Literal["faster_rcnn", "yolox", "efficientdet"]
Policy = Literal["A", "B", "C", "D", "E"]
Optimizer = Literal["adamw", "sgd"]
Precision = Literal["fp32", "bf16", "fp16"]
Device = Literal["auto", "cpu", "cuda"]
ResizeMode = Literal["stretch", "letterbox"]
ImageFormat = Literal["png", "png16", "jpeg"]
Channels = Literal["grey", "composed"]
ReaderFusion = Literal["wbf", "nmw", "nms", "mean", "union"]
Layout = Literal["auto", "competition", "yolo", "coco"]

FAMILIES: tuple[Family, ...] = get_args(Family)
POLICIES: tuple[Policy, ...] = get_args(Policy)
# Sizes that each family knows; the first is the smallest.
VARIANTS: dict[Family, tuple[str, ...]] = {
    "faster_rcnn": ("mobilenet_v3_large_320", "mobilenet_v3_large", "resnet50", "resnet50_v2"),
    "yolox": ("nano", "tiny", "s", "m", "l", "x"),
    "efficientdet": (
        *("lite0", "lite1", "lite2", "lite3", "lite3x", "lite4"),
        *("d0", "d1", "d2", "d3", "d4", "d5", "d6", "d7"),
    ),
}


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

    # Augmentation: A none, B flips and turns, C adds mixing and CLAHE, D C for rare labels, E the competitors' recipe.
    policy: Policy = "A"
    # 0..1: how often a draw is augmented, and how far.
    strength: float = 1.0
    # Share of normal images in every batch, 0..0.9.
    normal_share: float = 0.2
    # LVIS repeat-factor threshold over images; 0 switches it off (0.1 lengthens the real data's epoch by 6 %).
    repeat_threshold: float = 0.0

    # Budget: optimiser steps, images per step.
    steps: int = 20_000
    batch_size: int = 16
    optimizer: Optimizer = "adamw"
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    # Linear warm-up, in steps; a cosine to 1 % of the rate follows.
    warmup_steps: int = 500
    # Largest L2 norm of all gradients together.
    grad_clip: float = 10.0
    # Decay of the running mean of the weights; 0 switches it off.
    ema_decay: float = 0.998
    # Arithmetic of the forward pass.
    precision: Precision = "fp32"

    # The fold that is held out for validation.
    fold: int = 0
    seed: int = 0
    # Report (validate and write a checkpoint) every so many steps.
    report_every: int = 1_000


@dataclass(frozen=True)
class RunOptions:
    """How a run is carried out; nothing here changes what is learned, so it is not in the config's hash."""

    device: Device = "auto"
    # Torch threads of each training process: more than one makes concurrent trials fight for cores.
    threads: int = 1
    # Processes that decode and augment beside the training process; 0 does it in line.
    loader_workers: int = 0


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
    """What a search varies for one detector family; every tuple is a set of choices."""

    base: TrainConfig
    policies: tuple[Policy, ...]
    strengths: tuple[float, ...]
    # Bounds of a log-uniform draw.
    learning_rates: tuple[float, float]
    variants: tuple[str, ...] = ()  # empty: only the base's
    image_sizes: tuple[int, ...] = ()
    normal_shares: tuple[float, ...] = ()
    seeds: tuple[int, ...] = (0,)
    # Trials given to this family by a random or Optuna search.
    trials: int = 8


@dataclass(frozen=True)
class SearchConfig:
    """One search: candidates per family, how they are drawn and when they are stopped."""

    preset: str
    candidates: tuple[Candidate, ...]
    # `random` and `optuna` draw; `grid` runs every combination with the base's learning rate.
    searcher: Literal["random", "grid", "optuna"] = "random"
    # `halving` is asynchronous successive halving, within each family; `fifo` stops nobody.
    scheduler: Literal["halving", "fifo"] = "halving"
    # Halving: no trial is stopped in its first share of the steps; of those at a rung 1 / reduction go on.
    grace_share: float = 0.25
    reduction: int = 3
    # Best trials per family whose checkpoints are kept for the ensemble.
    keep_per_family: int = 2
    cpus_per_trial: float = 1
    # None: one where the cluster has GPUs when the search starts.
    gpus_per_trial: float | None = None
    # Attempts at a trial whose node or process died.
    max_failures: int = 3
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


Preset = Literal["smoke", "study", "search"]


def preset_of(name: Preset) -> SearchConfig:
    """The complete search behind a name."""
    match name:
        case "smoke":
            return smoke()
        case "study":
            return study()
        case "search":
            return full_search()
        case _:
            assert_never(name)


def smoke() -> SearchConfig:
    """Minutes on two cores without a GPU: small detectors from scratch at 128 pixels, on the synthetic dataset."""
    common = TrainConfig(
        image_size=128, batch_size=8, warmup_steps=50, normal_share=0.2, weight_decay=0.01, ema_decay=0.995
    )
    candidates = (
        (replace(common, detector="yolox", variant="nano", steps=600, report_every=150), (2e-3, 5e-3)),
        (
            replace(common, detector="faster_rcnn", variant="mobilenet_v3_large_320", steps=320, report_every=80),
            (1e-3, 2.5e-3),
        ),
        (replace(common, detector="efficientdet", variant="lite0", steps=320, report_every=80), (6e-3, 1.5e-2)),
    )
    return SearchConfig(
        preset="smoke",
        candidates=tuple(
            Candidate(base=base, policies=("A", "E"), strengths=(0.3, 0.6), learning_rates=rates, trials=2)
            for base, rates in candidates
        ),
        reduction=2,
        keep_per_family=1,
    )


def study() -> SearchConfig:
    """How much augmentation is best? Every policy at several strengths, at EQUAL optimiser steps, over seeds."""
    bases = (
        TrainConfig(detector="faster_rcnn", variant="resnet50", pretrained=True, learning_rate=2e-4, batch_size=8),
        TrainConfig(detector="yolox", variant="s", pretrained=True, learning_rate=1e-3),
        TrainConfig(detector="efficientdet", variant="d0", pretrained=True, learning_rate=1e-3),
    )
    return SearchConfig(
        preset="study",
        candidates=tuple(
            Candidate(
                base=base,
                policies=POLICIES,
                strengths=(0.25, 0.5, 1.0),
                learning_rates=(base.learning_rate, base.learning_rate),
                seeds=(0, 1, 2),
            )
            for base in bases
        ),
        searcher="grid",
        scheduler="fifo",  # stopping early would favour policies that are quick rather than good
    )


def full_search() -> SearchConfig:
    """The full space, for a cluster with GPUs."""
    families: tuple[tuple[TrainConfig, tuple[str, ...], tuple[float, float]], ...] = (
        (
            TrainConfig(detector="faster_rcnn", variant="resnet50", batch_size=8),
            ("resnet50", "resnet50_v2"),
            (5e-5, 1e-3),
        ),
        (TrainConfig(detector="yolox", variant="m"), ("s", "m", "l"), (3e-4, 3e-3)),
        (TrainConfig(detector="efficientdet", variant="d2"), ("d0", "d2", "d4"), (3e-4, 3e-3)),
    )
    return SearchConfig(
        preset="search",
        candidates=tuple(
            Candidate(
                base=replace(base, pretrained=True, precision="bf16", repeat_threshold=0.1),
                policies=POLICIES,
                strengths=(0.25, 0.5, 0.75, 1.0),
                learning_rates=rates,
                variants=variants,
                image_sizes=(512, 640, 1024),
                normal_shares=(0.1, 0.25, 0.5),
                trials=24,
            )
            for base, variants, rates in families
        ),
        searcher="optuna",
    )


def with_steps(config: TrainConfig, steps: int) -> TrainConfig:
    """Another budget, with as many reports and the same share of it spent warming up."""
    return replace(
        config,
        steps=steps,
        report_every=max(1, config.report_every * steps // config.steps),
        warmup_steps=config.warmup_steps * steps // config.steps,
    )


def override(
    search: SearchConfig,
    *,
    steps: int | None = None,
    trials: int | None = None,
    seed: int = 0,
    gpus_per_trial: float | None = None,
) -> SearchConfig:
    """A search with some fields replaced, for all of its families; None leaves the preset's value."""
    least = (("steps", steps, 1), ("trials", trials, 1), ("seed", seed, 0), ("gpus-per-trial", gpus_per_trial, 0))
    for name, value, bound in least:
        if value is not None and value < bound:
            raise InputError(f"--{name} {value}: want {bound} or more")
    candidates = []
    for candidate in search.candidates:
        base = replace(candidate.base, seed=seed)
        base = with_steps(base, steps or base.steps)
        seeds = tuple(seed + number for number in candidate.seeds)
        candidates.append(replace(candidate, base=base, seeds=seeds, trials=trials or candidate.trials))
    gpus = search.gpus_per_trial if gpus_per_trial is None else gpus_per_trial
    return replace(search, candidates=tuple(candidates), gpus_per_trial=gpus, seed=seed)


def config_hash(config: TrainConfig) -> str:
    """Sixteen hex digits that are equal exactly for equal configs, on every machine and Python version."""
    text = json.dumps(dataclasses.asdict(config), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def train_config_from(values: dict[str, Any], *, where: str = "config") -> TrainConfig:
    """A checked TrainConfig from JSON; raises InputError that names the field and `where` it stood."""
    hints = get_type_hints(TrainConfig)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise InputError(f"{where}: unknown field {unknown[0]!r}; the fields are {', '.join(hints)}")
    for name, value in values.items():
        _check_type(name, value, hints[name], where)
    config = TrainConfig(**values)
    check_train_config(config, where=where)
    return config


def _check_type(name: str, value: Any, hint: Any, where: str) -> None:
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise InputError(f"{where}: {name} is {value!r}; choose one of {', '.join(map(str, get_args(hint)))}")
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
        ("strength", 0 <= config.strength <= 1, "between 0 and 1"),
        ("normal_share", 0 <= config.normal_share <= 0.9, "between 0 and 0.9"),
        ("repeat_threshold", 0 <= config.repeat_threshold <= 1, "between 0 and 1"),
        ("steps", config.steps > 0, "positive"),
        ("batch_size", config.batch_size > 0, "positive"),
        ("learning_rate", config.learning_rate > 0, "positive"),
        ("weight_decay", config.weight_decay >= 0, "0 or more"),
        ("warmup_steps", config.warmup_steps >= 0, "0 or more"),
        ("grad_clip", config.grad_clip > 0, "positive"),
        ("ema_decay", 0 <= config.ema_decay < 1, "at least 0 and below 1"),
        ("fold", config.fold >= 0, "0 or more"),
        ("report_every", config.report_every > 0, "positive"),
    )
    for name, is_good, wanted in rules:
        if not is_good:
            raise InputError(f"{where}: {name} is {getattr(config, name)!r} for {config.detector}; want {wanted}")
