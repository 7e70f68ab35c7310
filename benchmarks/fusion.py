"""Fusing boxes by every rule: ours against the authors' `ensemble-boxes`, on the same generated boxes in one run.

    python benchmarks/fusion.py [--scale 0.1]

Five models' boxes on 3,000 images, 513,135 boxes in all, 14 classes, on one core. Needs the extra `dev`.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

# A fresh folder, so that the first call really compiles.
os.environ.setdefault("NUMBA_CACHE_DIR", tempfile.mkdtemp(prefix="vbd-bench-"))

import numpy as np
from ensemble_boxes import nms, non_maximum_weighted, soft_nms, weighted_boxes_fusion

from vbd.fusion.detections import METHODS, FusionOptions, fuse_all
from vbd.fusion.wbf import CONFIDENCES
from vbd.labels import NUM_FINDINGS
from vbd.records import Detections

MODELS, IMAGES, BOXES, SIDE = 5, 3_000, 513_135, 2_048.0
IOU, SKIP, WEIGHTS = 0.4, 1e-4, [1.0] * 5

RULES = [FusionOptions("wbf", confidence, IOU, SKIP) for confidence in CONFIDENCES]
RULES += [FusionOptions(method, "avg", IOU, SKIP) for method in METHODS if method != "wbf"]

# The first call in a process, told by itself: compiling when the folder of compiled code is empty, loading otherwise.
FIRST_CALL = """
import time, numpy as np
from vbd.fusion.detections import METHODS, fuse_all
from vbd.records import Detections
box = Detections("a", np.array([[0, 0, 9, 9]], np.float32), np.ones(1, np.float32), np.zeros(1, np.int64))
for method in METHODS:
    start = time.process_time()
    fuse_all([[box]], [1.0], method=method)
    print(f"{time.process_time() - start:.2f}", end=" ")
"""


def generate(num_images: int, num_boxes: int, seed: int = 0) -> list[list[Detections]]:
    """Boxes that gather around some places of each image, as detectors' boxes do, and scores that are mostly low."""
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(num_boxes, np.full(num_images * MODELS, 1 / (num_images * MODELS)))
    members: list[list[Detections]] = [[] for _ in range(MODELS)]
    for i in range(num_images):
        centres, sizes = rng.uniform(300, SIDE - 300, (40, 2)), rng.uniform(30, 250, (40, 2))
        labels = rng.integers(0, NUM_FINDINGS, 40)
        for m in range(MODELS):
            n = counts[i * MODELS + m]
            place = rng.integers(0, 40, n)
            centre = centres[place] + rng.normal(0, 15, (n, 2))
            half = sizes[place] / 2 * rng.uniform(0.8, 1.25, (n, 2))
            # No floor that several scores would share: the reference settles ties arbitrarily.
            scores = np.sort(2 * SKIP + (1 - 2 * SKIP) * rng.beta(0.5, 4, n))[::-1]
            boxes = np.clip(np.hstack([centre - half, centre + half]), 0, SIDE)
            members[m].append(Detections(f"{i}", boxes.astype(np.float32), scores.astype(np.float32), labels[place]))
    return members


def seconds_of(call: Callable[[], Any]) -> tuple[Any, float, float]:
    """What a call returns, its wall seconds and its CPU seconds, which other processes disturb less."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = call()
    return result, time.perf_counter() - wall, time.process_time() - cpu


def plain_lists(members: list[list[Detections]]) -> list[tuple[list, list, list]]:
    """Each image as the authors' code takes it; made beforehand, so that it costs nothing here."""
    return [
        (
            [member[i].boxes.astype(float) / SIDE for member in members],
            [member[i].scores.astype(float) for member in members],
            [member[i].labels for member in members],
        )
        for i in range(len(members[0]))
    ]


def reference(rule: FusionOptions, boxes: list, scores: list, labels: list) -> tuple:
    """The authors' code on one image."""
    if rule.method == "wbf":
        kind = {"allows_overflow": True} if rule.confidence == "sum" else {"conf_type": rule.confidence}
        return weighted_boxes_fusion(boxes, scores, labels, weights=WEIGHTS, iou_thr=IOU, skip_box_thr=SKIP, **kind)
    if rule.method == "nmw":
        return non_maximum_weighted(boxes, scores, labels, weights=WEIGHTS, iou_thr=IOU, skip_box_thr=SKIP)
    scores = list(scores)  # it writes into the list
    if rule.method == "nms":
        return nms(boxes, scores, labels, iou_thr=IOU, weights=WEIGHTS)
    number = 1 if rule.method == "soft_nms" else 2
    return soft_nms(boxes, scores, labels, method=number, sigma=rule.sigma, iou_thr=IOU, weights=WEIGHTS)


def compare(rule: FusionOptions, members: list[list[Detections]], lists: list[tuple]) -> str:
    """One line of the table; theirs is run once, ours thrice."""
    runs = [seconds_of(lambda: fuse_all(members, WEIGHTS, rule)) for _ in range(3)]
    ours, wall, cpu = runs[0][0], *(min(run[column] for run in runs) for column in (1, 2))
    reference(rule, *lists[0])  # compiles
    theirs, their_wall, their_cpu = seconds_of(lambda: [reference(rule, *image) for image in lists])
    same = sum(len(a.boxes) == len(b[0]) for a, b in zip(ours, theirs, strict=True))
    name = f"{rule.method} {rule.confidence}" if rule.method == "wbf" else rule.method
    return (
        f"| {name} | {their_wall:.2f} | {wall:.2f} | {their_wall / wall:.0f} x | {their_cpu:.2f} | {cpu:.2f} "
        f"| {their_cpu / cpu:.0f} x | {same:,} | {worst_score(rule, ours, theirs)} |"
    )


def worst_score(rule: FusionOptions, ours: list[Detections], theirs: list[tuple]) -> str:
    """The largest difference of scores, in images with equally many boxes."""
    if rule.method.startswith("soft_nms"):
        return "(theirs gives back the scores from before the decay)"
    worst = 0.0
    for a, b in zip(ours, theirs, strict=True):
        if len(a.boxes) == len(b[1]):
            expected = -np.expm1(-b[1]) if rule.confidence == "sum" else b[1]
            worst = max(worst, float(np.abs(np.sort(a.scores) - np.sort(expected)).max(initial=0)))
    return f"{worst:.0e}"


def first_calls() -> str:
    """CPU seconds of each method's first call in a new process, in the order of METHODS."""
    return subprocess.run([sys.executable, "-c", FIRST_CALL], capture_output=True, text=True, check=True).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", type=float, default=1.0, help="share of the images and boxes, 0..1")
    scale = parser.parse_args().scale
    print(
        f"CPU s of the first call of {', '.join(METHODS)}: once per machine {first_calls()}; once per process {first_calls()}"
    )
    members = generate(round(IMAGES * scale), round(BOXES * scale))
    lists = plain_lists(members)
    boxes = sum(len(found.boxes) for member in members for found in member)
    print(f"\n{MODELS} models, {len(lists):,} images, {boxes:,} boxes\n")
    titles = ["rule", "theirs, wall s", "ours", "ratio", "theirs, CPU s", "ours", "ratio"]
    print("| " + " | ".join([*titles, "images with as many boxes", "scores differ by"]) + " |")
    print("|---" * 9 + "|")
    for rule in RULES:
        print(compare(rule, members, lists), flush=True)


if __name__ == "__main__":
    main()
