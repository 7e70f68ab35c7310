"""Images with findings and detections, made up for the tests of the metric."""

import numpy as np

from vbd.records import Detections, Truth

HW = (512, 512)  # of every image here: COCO's bounds of size count in its pixels


def found(image_id, boxes=(), scores=(), labels=None, no_finding=None):
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    labels = np.zeros(len(boxes), np.int64) if labels is None else np.asarray(labels, np.int64)
    return Detections(image_id, boxes, np.asarray(scores, np.float32), labels, no_finding)


def truth(image_id, boxes=(), labels=None, readers=None, original_hw=HW):
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    labels = np.zeros(len(boxes), np.int64) if labels is None else np.asarray(labels, np.int64)
    readers = np.ones(len(boxes), np.int64) if readers is None else np.asarray(readers, np.int64)
    return Truth(image_id, boxes, labels, readers, original_hw)


def random_images(seed, num_images=12):
    """Truth and jittered, noisy detections with distinct scores; some images normal, some without detections."""
    rng = np.random.default_rng(seed)
    detections, truths = [], []
    for i in range(num_images):
        n = int(rng.integers(0, 5))
        corner, side = rng.uniform(0, 300, (n, 2)), rng.uniform(10, 180, (n, 2))
        boxes, labels = np.hstack([corner, corner + side]), rng.integers(0, 4, n)
        truths.append(truth(f"i{i}", boxes, labels, rng.integers(1, 4, n)))
        shown = np.repeat(np.arange(n), 2)
        moved = boxes[shown] + rng.normal(0, 8, (len(shown), 4))
        moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2] + 1)
        detections.append(found(f"i{i}", moved, rng.uniform(0.01, 1, len(shown)), labels[shown], rng.uniform()))
    return detections, truths


def tied_images(seed, num_images=8, num_labels=3):
    """Boxes on a coarse grid with few scores: full of equal scores, equal overlaps, duplicates and exact thresholds."""
    rng = np.random.default_rng(seed)

    def boxes(n):
        corner = rng.integers(0, 4, (n, 2)) * 20.0
        return np.hstack([corner, corner + rng.integers(1, 6, (n, 2)) * 20.0])

    detections, truths = [], []
    for i in range(num_images):
        n, k = int(rng.integers(0, 6)), int(rng.integers(0, 10))
        truths.append(truth(f"i{i}", boxes(n), rng.integers(0, num_labels, n), rng.integers(1, 4, n)))
        scores, labels = rng.integers(0, 5, k) / 4, rng.integers(0, num_labels, k)
        no_finding = float(rng.integers(0, 3) / 2) if rng.uniform() < 0.7 else None
        detections.append(found(f"i{i}", boxes(k), scores, labels, no_finding))
    return detections, truths


def with_boxes(image, boxes):
    return type(image)(**(vars(image) | {"boxes": np.asarray(boxes, np.float32)}))


def renamed(image, image_id):
    return type(image)(**(vars(image) | {"image_id": image_id}))
