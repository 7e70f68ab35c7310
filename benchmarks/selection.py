"""How long it takes to choose an ensemble and to measure its honest gain, on one core.

    python benchmarks/selection.py [--members 10] [--images 3000] [--trials 60]

SYNTHETIC detections of models that miss the same hard findings and score on different scales, 34 boxes an image.
"""

import argparse
import os
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

from vbd.ensemble.choose.diversity import diversity
from vbd.ensemble.choose.greedy import select_members
from vbd.ensemble.choose.select import Procedure, choose, honest_gain
from vbd.ensemble.choose.weight_search import search_weights
from vbd.ensemble.scores.calibrate import calibrate_crosswise, fit_calibration
from vbd.ensemble.scores.reliability import reliability
from vbd.labels import NUM_FINDINGS
from vbd.records import Detections, Truth

BOXES = 34


def boxes_at(rng: np.random.Generator, n: int) -> np.ndarray:
    corner = rng.uniform(0, 1_800, (n, 2))
    return np.hstack([corner, corner + rng.uniform(60, 300, (n, 2))])


def generate(num_members: int, num_images: int) -> tuple[list[Truth], dict[str, list[Detections]]]:
    """Half of the images are normal; a finding is seen by those models whose luck is above its difficulty."""
    truths, members = [], {f"model-{k}": list[Detections]() for k in range(num_members)}
    for i in range(num_images):
        rng = np.random.default_rng(i)
        n = int(rng.poisson(3)) if rng.uniform() < 0.5 else 0
        boxes, labels, difficulty = boxes_at(rng, n), rng.integers(0, NUM_FINDINGS, n), rng.normal(0, 1, n)
        truths.append(Truth(f"i{i}", boxes.astype(np.float32), labels, np.ones(n, np.int64)))
        for k, found in enumerate(members.values()):
            seen = rng.normal(0, 1, n) > difficulty - 0.8
            hits, false = int(seen.sum()), BOXES - int(seen.sum())
            places = np.vstack([boxes[seen] + rng.normal(0, 10, (hits, 4)), boxes_at(rng, false)])
            scores = np.append(rng.beta(1.5, 3, hits), rng.beta(0.4, 6, false)) ** (1 + 0.1 * k)
            order = np.argsort(-scores)
            names = np.append(labels[seen], rng.integers(0, NUM_FINDINGS, false))[order]
            found.append(Detections(f"i{i}", places[order].astype(np.float32), scores[order].astype(np.float32), names))
    return truths, members


def told(step: str, call: Callable[[], Any]) -> Any:
    """What a call returns; a line of the table is printed."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = call()
    print(f"| {step} | {time.perf_counter() - wall:.1f} | {time.process_time() - cpu:.1f} |", flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--members", type=int, default=10)
    parser.add_argument("--images", type=int, default=3_000)
    parser.add_argument("--trials", type=int, default=60, help="of the weight search")
    arguments = parser.parse_args()
    truths, members = generate(arguments.members, arguments.images)
    first, procedure = members["model-0"], Procedure(trials=arguments.trials)
    calibrate_crosswise(first[:50], truths[:50])  # compiles
    print(f"{arguments.members} members, {arguments.images:,} images, {BOXES} boxes an image\n")
    print("| step | wall s | CPU s |\n|---|---|---|")
    told("calibrate one member", lambda: fit_calibration(first, truths))
    calibrated = told(
        "calibrate all members crosswise", lambda: {n: calibrate_crosswise(f, truths) for n, f in members.items()}
    )
    selected = told("greedy selection", lambda: select_members(calibrated, truths))
    told(
        f"weight search, {arguments.trials} trials",
        lambda: search_weights(calibrated, truths, selected, seed=0, trials=arguments.trials),
    )
    told("choose: all of these", lambda: choose(members, truths, seed=0, procedure=procedure))
    gain = told("honest gain, twice on halves", lambda: honest_gain(members, truths, seed=0, procedure=procedure))
    told("diversity of all pairs", lambda: diversity(members, truths))
    told("reliability of one member", lambda: reliability(first, truths, seed=0))
    print(
        f"\ngreedy: {len(selected.weights)} members, {selected.score:.4f}, best single {max(selected.single_scores.values()):.4f}"
    )
    print(f"honest gain {gain.gain.estimate:+.4f} ({gain.gain.low:+.4f} to {gain.gain.high:+.4f}): {gain.verdict}")


if __name__ == "__main__":
    main()
