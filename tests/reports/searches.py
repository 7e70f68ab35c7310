"""Searches made up with numbers as a real one has, without Ray: trials, their folder, and what they detected."""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np

from vbd import storage
from vbd.boxes import as_boxes
from vbd.config import POLICIES, TrainConfig, config_hash
from vbd.data.prepared import open_dataset, read_truths
from vbd.evaluation.average_precision import evaluate
from vbd.records import Detections, Trial, detections_to_table
from vbd.search.kept.leaderboard import Leaderboard, ranked, write_leaderboard
from vbd.search.kept.trial import TrialFolder

BASES = (
    TrainConfig(detector="yolox", variant="s", image_size=640, steps=8_000, report_every=1_000, learning_rate=1e-3),
    TrainConfig(detector="faster_rcnn", variant="resnet50", steps=6_000, report_every=1_000, learning_rate=2e-4),
    TrainConfig(detector="efficientdet", variant="d0", steps=8_000, report_every=1_000, learning_rate=1e-3),
)
HOSTS = (("gpu-node-1", "cuda:0"), ("gpu-node-1", "cuda:1"), ("gpu-node-2", "cuda:0"))
STARTED = 1_760_000_000.0
# What a policy adds to a score at its best strength, and how strong that is.
_GAIN = {"A": 0.0, "B": 0.012, "C": 0.025, "D": 0.03, "E": 0.035}
_BEST_STRENGTH = 0.5


def history_of(
    config: TrainConfig, score: float, *, start: float, steps: int, place: int = 0, attempt: int = 0, first: int = 0
) -> list[dict]:
    """The reports of one attempt, from step `first` to `steps`; a score that rises, a loss that falls."""
    host, device = HOSTS[place % len(HOSTS)]
    reports = []
    for step in range(first + config.report_every, steps + 1, config.report_every):
        share = step / config.steps
        seconds = (step - first) * 0.25
        reports.append(
            {
                "step": step,
                "score": score * (1 - math.exp(-4 * share)) / (1 - math.exp(-4)),
                "map_coco_101": 0.8 * score,
                "loss": 1.2 + 6 * math.exp(-5 * share),
                "gradient_norm": 3.0,
                "learning_rate": config.learning_rate * (1 - share),
                "images_per_second": 64.0,
                "seconds": seconds,
                "validation_seconds": 30.0,
                "micro_batch": config.batch_size,
                "peak_memory_mb": 7_500.0,
                "timestamp": start + seconds,
                "host": host,
                "device": device,
                "attempt": attempt,
                "attempt_started": start,
            }
        )
    return reports


def trial_of(config: TrainConfig, score: float, *, history: Sequence[dict] = (), **fields: object) -> Trial:
    """A trial as its folder tells it: its name, last report, place and time are those of its reports."""
    last = history[-1] if history else {}
    told = {
        "status": "finished",
        "metrics": last,
        "host": last.get("host", ""),
        "device": last.get("device", ""),
        "seconds": sum({r["attempt_started"]: r["seconds"] for r in history}.values()),
    }
    return Trial(
        trial_id=config_hash(config)[:10],
        config=config,
        config_hash=config_hash(config),
        score=score,
        steps=int(last.get("step", 0)),
        checkpoint="",
        history=history,
        **told | fields,  # type: ignore[arg-type]
    )


def configs() -> Iterator[TrainConfig]:
    """Every family, policy and strength by turns, each time with another seed and learning rate."""
    rng = np.random.default_rng(0)
    for seed in itertools.count():
        for base, policy, strength in itertools.product(BASES, POLICIES, (0.25, 0.5, 1.0)):
            rate = round(base.learning_rate * float(np.exp(rng.normal(0, 0.5))), 6)
            share = (0.1, 0.25, 0.5)[int(rng.integers(3))]
            fields = {"policy": policy, "strength": strength, "normal_share": share, "seed": seed}
            yield dataclasses.replace(base, **fields, learning_rate=rate)


def search_of(count: int, *, seed: int = 0) -> list[Trial]:
    """So many trials by their numbers: most finished, some stopped early, some failed, one resumed."""
    rng = np.random.default_rng(seed)
    free = [STARTED] * len(HOSTS)
    trials = []
    for number, config in enumerate(itertools.islice(configs(), count)):
        place = int(np.argmin(free))
        strength = 0 if config.policy == "A" else config.strength
        gain = _GAIN[config.policy] * (1 - 2 * abs(strength - _BEST_STRENGTH))
        score = 0.2 + gain + 0.03 * (config.detector == "yolox") + float(rng.normal(0, 0.01))
        kind, start = number % 11, free[place] + float(rng.uniform(5, 60))
        if kind == 7:
            history = history_of(config, score, start=start, steps=config.report_every, place=place)
            reason = "loss is nan at step 1,203; use a lower learning rate"
            trial = trial_of(config, math.nan, history=history, number=number, status="failed", reason=reason)
        elif kind in (3, 5):
            history = history_of(config, 0.6 * score, start=start, steps=config.steps // 4, place=place)
            reason = (
                f"halving: {0.3 * score:.4f} at step {config.steps // 4:,}, of its rung's 9 trials the best 3 go on"
            )
            best = history[-1]["score"]
            trial = trial_of(config, best, history=history, number=number, status="stopped", reason=reason)
        else:
            history = history_of(config, score, start=start, steps=config.steps, place=place)
            if kind == 4:  # killed half-way, and resumed elsewhere
                half = history[: len(history) // 2]
                begin = half[-1]["timestamp"] + 120
                rest = {"start": begin, "steps": config.steps, "place": place, "attempt": 1, "first": half[-1]["step"]}
                history = half + history_of(config, score, **rest)
            trial = trial_of(config, score, history=history, number=number)
        free[place] = history[-1]["timestamp"]
        trials.append(trial)
    return trials


def write_board(folder: str, trials: Sequence[Trial], *, dataset: str = "f00d", synthetic: bool = True) -> str:
    """The folder of a search that has ended: its leaderboard, and the mark of its kept checkpoints."""
    write_leaderboard(folder, Leaderboard("study", dataset, synthetic, ranked(trials)))
    storage.write_json(f"{folder}/best/manifest.json", {})
    return folder


def write_trials(folder: str, trials: Sequence[Trial], *, dataset: str = "f00d", data: str = "") -> str:
    """The folder of a search that runs: its plan, and each trial as it stands."""
    storage.write_json(f"{folder}/run.json", {"search": {"preset": "study"}, "dataset": dataset, "data": data})
    for trial in trials:
        TrialFolder(folder, trial.trial_id)._write(trial, dataset)
    return folder


def with_detections(folder: str, trials: Sequence[Trial], data: str) -> list[Trial]:
    """The trials with kept detections of their validation fold: the truth shaken, some of it missed, some invented."""
    dataset = open_dataset(data)
    kept = []
    for trial in trials:
        if math.isnan(trial.score):
            kept.append(trial)
            continue
        rng = np.random.default_rng(trial.number)
        truths = read_truths(dataset, trial.config.fold)
        location = f"{folder}/trials/{trial.trial_id}/out_of_fold.parquet"
        found = [_found(rng, t.image_id, t.boxes, t.labels, t.original_hw, 2 * trial.score) for t in truths]
        storage.write_table(location, detections_to_table(found))
        score = evaluate(found, truths).map_40_findings
        kept.append(dataclasses.replace(trial, detections=location, score=score))
    return kept


def _found(
    rng: np.random.Generator, image_id: str, boxes: np.ndarray, labels: np.ndarray, hw: tuple[int, int], skill: float
) -> Detections:
    is_seen = rng.random(len(boxes)) < skill
    sides = (boxes[:, 2:] - boxes[:, :2])[is_seen]
    shaken = boxes[is_seen] + np.tile(sides, 2) * rng.normal(0, 0.05, (len(sides), 4))
    count = int(rng.integers(2, 6))
    corners = rng.uniform(0, 0.6, (count, 2)) * hw[::-1]
    invented = np.concatenate([corners, corners + rng.uniform(0.05, 0.3, (count, 2)) * hw[::-1]], axis=1)
    scores = np.concatenate([rng.uniform(0.3, 1, len(shaken)), rng.uniform(0.05, 0.6, count)])
    order = np.argsort(-scores)
    return Detections(
        image_id,
        as_boxes(np.concatenate([shaken, invented])[order]),
        scores[order].astype(np.float32),
        np.concatenate([labels[is_seen], rng.integers(0, 14, count)])[order].astype(np.int64),
    )
