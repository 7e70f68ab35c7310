"""Weighted box fusion: ours against the authors' `ensemble-boxes`, on the same generated boxes in one run.

    python benchmarks/fusion.py [--scale 0.1]

Five models' boxes on 3,000 images, 513,135 boxes in all, 14 classes, on one core. Needs the extra `dev`.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from typing import Any

# A fresh folder, so that the first call really compiles.
os.environ["NUMBA_CACHE_DIR"] = tempfile.mkdtemp(prefix="vbd-bench-")

import numpy as np
from ensemble_boxes import weighted_boxes_fusion

from vbd.ensemble.fusion import fuse_all
from vbd.labels import NUM_FINDINGS
from vbd.records import Detections

MODELS, IMAGES, BOXES, SIDE = 5, 3_000, 513_135, 2_048.0
IOU, SKIP = 0.4, 1e-4


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


def reference(members: list[list[Detections]]) -> tuple[list[tuple], float, float]:
    """The authors' code, image by image; its input lists are made beforehand and cost nothing here."""
    lists = [
        (
            [member[i].boxes.astype(float) / SIDE for member in members],
            [member[i].scores.astype(float) for member in members],
            [member[i].labels for member in members],
        )
        for i in range(len(members[0]))
    ]
    return seconds_of(lambda: [weighted_boxes_fusion(*columns, iou_thr=IOU, skip_box_thr=SKIP) for columns in lists])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", type=float, default=1.0, help="share of the images and boxes, 0..1")
    scale = parser.parse_args().scale
    members = generate(round(IMAGES * scale), round(BOXES * scale))
    weights = [1.0] * MODELS

    _, compiling, compiling_cpu = seconds_of(lambda: fuse_all([member[:1] for member in members], weights))
    runs = [seconds_of(lambda: fuse_all(members, weights, iou_threshold=IOU, skip_threshold=SKIP)) for _ in range(3)]
    ours = runs[0][0]
    theirs, theirs_wall, theirs_cpu = reference(members)

    same = sum(len(a.boxes) == len(b[0]) for a, b in zip(ours, theirs, strict=True))
    worst = max(
        np.abs(np.sort(a.scores) - np.sort(b[1])).max(initial=0)
        for a, b in zip(ours, theirs, strict=True)
        if len(a.boxes) == len(b[0])
    )
    boxes = sum(len(found.boxes) for member in members for found in member)
    print(f"\n{MODELS} models, {len(ours):,} images, {boxes:,} boxes -> {sum(len(f.boxes) for f in ours):,} boxes\n")
    print("| | wall s | CPU s | wall ratio | CPU ratio |\n|---|---|---|---|---|")
    print(f"| ensemble-boxes | {theirs_wall:.2f} | {theirs_cpu:.2f} | 1 | 1 |")
    for number, (_, wall, cpu) in enumerate(runs, start=1):
        print(f"| vbd, run {number} | {wall:.2f} | {cpu:.2f} | {theirs_wall / wall:.0f} x | {theirs_cpu / cpu:.0f} x |")
    print(f"| vbd, compiling once per machine | {compiling:.2f} | {compiling_cpu:.2f} | | |")
    print(f"\nSame number of boxes in {same:,} of {len(ours):,} images; there, scores differ by at most {worst:.1e}.")


if __name__ == "__main__":
    main()
