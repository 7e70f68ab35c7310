"""A submission of real size: written, read back and checked by ours, against pandas' own writer on the same boxes.

    python benchmarks/submission.py [--boxes 150]

3,000 images with that many boxes each and a probability of No finding. Needs the extra `dev`.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from vbd.records import Detections
from vbd.submission.check import check_submission, read_sheet
from vbd.submission.file import read_submission, write_submission
from vbd.submission.signs import find_equal_scores, find_resized, find_reversed_whole

IMAGES, ROUNDS = 3_000, 3
Sizes = dict[str, tuple[int, int]]


def generate(boxes: int, seed: int = 0) -> tuple[list[Detections], Sizes]:
    """Boxes anywhere in images of the competition's sizes; scores that are mostly low, as an ensemble's are."""
    rng = np.random.default_rng(seed)
    detections, sizes = [], {}
    for i in range(IMAGES):
        height, width = int(rng.integers(927, 3_408)), int(rng.integers(823, 3_320))
        corners = rng.uniform(0, 0.8, (boxes, 2))
        xyxy = np.hstack([corners, corners + rng.uniform(0.01, 0.2, (boxes, 2))]) * [width, height, width, height]
        scores = np.sort(np.clip(rng.beta(0.5, 4, boxes), 1e-5, 1)).astype(np.float32)[::-1]
        image_id = f"{i:032x}"
        sizes[image_id] = (height, width)
        labels, p = rng.integers(0, 14, boxes), float(rng.uniform(0.01, 0.99))
        detections.append(Detections(image_id, xyxy.astype(np.float32), scores, labels, no_finding=p))
    return detections, sizes


def by_pandas(detections: list[Detections], path: str) -> None:
    """As notebooks do it: a string for each image by Python's formatting, and `DataFrame.to_csv`; nothing is checked."""
    strings = []
    for found in detections:
        parts = [
            f"{label} {score} {box[0]} {box[1]} {box[2]} {box[3]}"
            for label, score, box in zip(found.labels, found.scores, found.boxes, strict=True)
        ]
        strings.append(" ".join([*parts, f"14 {found.no_finding} 0 0 1 1"]))
    ids = [found.image_id for found in detections]
    pd.DataFrame({"image_id": ids, "PredictionString": strings}).to_csv(path, index=False)


def examine_signs(path: str, sizes: Sizes) -> None:
    """What `--check` infers from the whole file, the reading included."""
    sheet = read_sheet(path, sizes)
    assert find_resized(sheet, sizes, prepared_side=512) is None
    assert not [*find_equal_scores(sheet), *find_reversed_whole(sheet)]


def best_of(calls: dict[str, Callable[[], Any]]) -> dict[str, tuple[float, float]]:
    """The least wall and CPU seconds of each call, in turns."""
    best: dict[str, tuple[float, float]] = {}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            wall, cpu = time.perf_counter(), time.process_time()
            call()
            took = time.perf_counter() - wall, time.process_time() - cpu
            before = best.get(name, took)
            best[name] = (min(took[0], before[0]), min(took[1], before[1]))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--boxes", type=int, default=150, help="of each image")
    detections, sizes = generate(parser.parse_args().boxes)
    with tempfile.TemporaryDirectory(prefix="vbd-bench-") as folder:
        plain, ours = f"{folder}/pandas.csv", f"{folder}/submission.csv"
        calls: dict[str, Callable[[], Any]] = {
            "pandas, written": lambda: by_pandas(detections, plain),
            "vbd, written, read back and compared": lambda: write_submission(
                detections, ours, image_ids=list(sizes), original_hw=sizes
            ),
            "vbd, checked row by row": lambda: check_submission(ours, image_ids=list(sizes), original_hw=sizes),
            "vbd, looked at as a whole": lambda: examine_signs(ours, sizes),
            "vbd, read as detections": lambda: read_submission(ours),
        }
        best = best_of(calls)
        sizes_mb = [Path(path).stat().st_size / 1e6 for path in (plain, ours)]
    boxes = sum(len(found.boxes) for found in detections)
    print(f"\n{IMAGES:,} images, {boxes:,} boxes; {sizes_mb[0]:.1f} MB by pandas, {sizes_mb[1]:.1f} MB by vbd\n")
    print("| | wall s | CPU s | CPU time, pandas = 1 |\n|---|---|---|---|")
    unit = best["pandas, written"][1]
    for name, (wall, cpu) in best.items():
        print(f"| {name} | {wall:.2f} | {cpu:.2f} | {cpu / unit:.2f} |")


if __name__ == "__main__":
    main()
