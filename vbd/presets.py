"""Complete configurations of a search, each a function, and how a command line changes them."""

from dataclasses import replace
from typing import Literal, assert_never

from vbd.config import POLICIES, Candidate, SearchConfig, TrainConfig
from vbd.errors import InputError

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
