"""Made-up members of known skill: detectors that find a share of the findings, and classifiers that know normal images."""

from collections.abc import Sequence

import numpy as np

from vbd.records import Detections, Truth


def truths_of(num_images: int, *, normal_share: float = 0.4) -> list[Truth]:
    """Images of 600 pixels, some normal, the others with one to three findings of three labels."""
    truths = []
    for i in range(num_images):
        rng = np.random.default_rng(i)
        n = 0 if rng.uniform() < normal_share else int(rng.integers(1, 4))
        corner = rng.uniform(0, 480, (n, 2))
        boxes = np.hstack([corner, corner + rng.uniform(60, 120, (n, 2))]).astype(np.float32)
        truths.append(Truth(f"i{i:04d}", boxes, rng.integers(0, 3, n), np.ones(n, np.int64), (600, 600)))
    return truths


def detector(
    truths: Sequence[Truth],
    seed: int,
    *,
    found: float = 0.6,
    false_boxes: int = 2,
    jitter: float = 8.0,
    false_scores: tuple[float, float] = (2, 3),
    room: int = 480,
) -> list[Detections]:
    """Finds a share of the findings, and false boxes of its own in every image that score lower on the whole.

    Those begin within `room` pixels of the corner.
    """
    detections = []
    for i, truth in enumerate(truths):
        rng = np.random.default_rng([seed, i])
        seen = rng.uniform(size=len(truth.boxes)) < found
        hits = truth.boxes[seen] + rng.normal(0, jitter, (int(seen.sum()), 4))
        corner = rng.uniform(0, room, (false_boxes, 2))
        boxes = np.vstack([hits, np.hstack([corner, corner + rng.uniform(60, 120, (false_boxes, 2))])])
        scores = np.append(rng.beta(3, 2, int(seen.sum())), rng.beta(*false_scores, false_boxes))
        labels = np.append(truth.labels[seen], rng.integers(0, 3, false_boxes))
        order = np.argsort(-scores)
        detections.append(
            Detections(
                truth.image_id,
                boxes[order].astype(np.float32),
                scores[order].astype(np.float32),
                labels[order].astype(np.int64),
            )
        )
    return detections


def classifier(truths: Sequence[Truth], seed: int, *, skill: float = 2.0) -> list[Detections]:
    """P(no finding) whose logit is `skill` to the right side, and noise of deviation 1; no boxes."""
    rng = np.random.default_rng(seed)
    sides = np.array([-1.0 if len(truth.boxes) else 1.0 for truth in truths])
    p = 1 / (1 + np.exp(-skill * sides - rng.normal(size=len(truths))))
    return [Detections(truth.image_id, no_finding=float(value)) for truth, value in zip(truths, p, strict=True)]
