"""Complete configurations of a search, each a function."""

from dataclasses import replace
from typing import Any, Literal, assert_never

from vbd.config import POLICIES, Candidate, SearchConfig, TrainConfig

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
        (
            # As many normal images as there are, near enough: it is they that it tells apart.
            replace(
                common,
                detector="classifier",
                variant="mobilenetv3_small_050",
                normal_share=0.5,
                agreement_weight=1.0,
                steps=320,
                report_every=80,
            ),
            (1e-3, 4e-3),
        ),
    )
    return SearchConfig(
        preset="smoke",
        candidates=tuple(
            Candidate(
                base, choices={"policy": ("A", "E"), "strength": (0.3, 0.6)}, ranges={"learning_rate": rates}, trials=2
            )
            for base, rates in candidates
        ),
        grace_share=0.25,
        reduction=2,
        keep_per_family=1,
    )


def study() -> SearchConfig:
    """How much augmentation is best? Every policy at several strengths, at EQUAL optimiser steps, over folds and seeds.

    Beside them, at full strength, the policies that multiply the data at equal EPOCHS, as they are often compared.
    """
    bases = (
        TrainConfig(detector="faster_rcnn", variant="resnet50", pretrained=True, learning_rate=2e-4, batch_size=8),
        TrainConfig(detector="yolox", variant="s", pretrained=True, learning_rate=1e-3),
        TrainConfig(detector="efficientdet", variant="d0", pretrained=True, learning_rate=1e-3),
    )
    arms = {"policy": POLICIES, "strength": (0.25, 0.5, 1.0)}
    return SearchConfig(
        preset="study",
        candidates=tuple(
            Candidate(base, choices=arms | {"seed": (0, 1), "fold": (0, 1, 2)}, equal_epochs=True) for base in bases
        ),
        searcher="grid",
        scheduler="fifo",  # stopping early would favour policies that are quick rather than good
    )


def full_search() -> SearchConfig:
    """The full space, for a cluster with GPUs: what is drawn and shown, how it is learnt, and each family's own fields."""
    # torchvision's detectors want lower rates than the others.
    rates_of_resnets, rates_of_others = (5e-5, 1e-3), (3e-4, 3e-3)
    anchors: dict[str, tuple[Any, ...]] = {
        "anchor_smallest": (0.0, 0.015, 0.04),
        "anchor_ratios": ((), (0.33, 0.66, 1.5, 3.0)),
    }
    resnets = {"variant": ("resnet50", "resnet50_v2")}
    families: tuple[tuple[TrainConfig, dict[str, tuple[Any, ...]], tuple[float, float]], ...] = (
        (TrainConfig(detector="faster_rcnn", variant="resnet50"), resnets | anchors, rates_of_resnets),
        (TrainConfig(detector="retinanet", variant="resnet50"), resnets | anchors, rates_of_resnets),
        (TrainConfig(detector="fcos", variant="resnet50"), {}, rates_of_resnets),
        (TrainConfig(detector="yolox", variant="m"), {"variant": ("s", "m", "l")}, rates_of_others),
        (
            TrainConfig(detector="efficientdet", variant="d2"),
            {"variant": ("d0", "d2", "d4")} | anchors,
            rates_of_others,
        ),
        (
            TrainConfig(detector="classifier", variant="tf_efficientnet_b4"),
            {"variant": ("efficientnet_b0", "tf_efficientnet_b4", "tf_efficientnet_b5", "convnext_small")},
            rates_of_others,
        ),
    )
    return SearchConfig(
        preset="search",
        candidates=tuple(
            Candidate(
                replace(base, pretrained=True, precision="bf16"),
                choices=own | _SHARED_CHOICES,
                ranges={"learning_rate": rates} | _SHARED_RANGES,
                trials=24,
            )
            for base, own, rates in families
        ),
        searcher="optuna",
    )


# What the full search varies in every family.
_SHARED_CHOICES: dict[str, tuple[Any, ...]] = {
    "image_size": (512, 640, 1024),
    "policy": POLICIES,
    "strength": (0.25, 0.5, 0.75, 1.0),
    "normal_share": (0.1, 0.25, 0.5),
    "sampler": ("repeat_factor", "instance_aware", "class_aware"),
    # On the real data 0.1 lengthens the epoch by 6 %, 0.2 by 21 %.
    "repeat_threshold": (0.05, 0.1, 0.2),
    "reader_fusion": ("", "nmw", "mean"),
    "agreement_weight": (0.0, 0.5, 1.0),
    "batch_size": (8, 16),
    "backbone_rate": (0.1, 0.3, 1.0),
    "ema_decay": (0.99, 0.998, 0.9995),
    "multi_scale": (0.0, 0.2),
}
_SHARED_RANGES: dict[str, tuple[float, float]] = {"weight_decay": (1e-4, 0.1), "warmup_steps": (200, 2000)}


def with_steps(config: TrainConfig, steps: int) -> TrainConfig:
    """Another budget, with as many reports and the same share of it spent warming up."""
    return replace(
        config,
        steps=steps,
        report_every=max(1, config.report_every * steps // config.steps),
        warmup_steps=config.warmup_steps * steps // config.steps,
    )
