"""The metric: ours against pycocotools' COCOeval on the same boxes at IoU 0.4, in one run.

    python benchmarks/metric.py [--scale 0.1]

3,000 images with 10,000 and with 500,000 detections; 1,000 bootstrap replicates of each. One core.
"""

import argparse
import time
from contextlib import redirect_stdout
from io import StringIO

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from vbd.boxes import xyxy_to_xywh
from vbd.evaluation.average_precision import evaluate
from vbd.evaluation.intervals import bootstrap
from vbd.labels import NUM_FINDINGS
from vbd.records import Detections, Truth

IMAGES, FINDINGS_PER_IMAGE = 3_000, 1.5


def generate(num_images: int, num_detections: int, seed: int = 0) -> tuple[list[Detections], list[Truth]]:
    """Truths and detections, a third of which lie near a truth, with distinct scores."""
    rng = np.random.default_rng(seed)
    detections, truths = [], []
    counts = rng.multinomial(num_detections, np.full(num_images, 1 / num_images))
    for i in range(num_images):
        n, k = int(rng.poisson(FINDINGS_PER_IMAGE)), int(counts[i])
        corner = rng.uniform(0, 1500, (n + k, 2))
        boxes = np.hstack([corner, corner + rng.uniform(30, 400, (n + k, 2))])
        labels = rng.integers(0, NUM_FINDINGS, n + k)
        truths.append(Truth(f"{i}", boxes[:n].astype(np.float32), labels[:n], np.ones(n, np.int64)))
        own, own_labels = boxes[n:], labels[n:]
        if n:
            near = np.flatnonzero(rng.uniform(size=k) < 1 / 3)
            place = rng.integers(0, n, len(near))
            own[near], own_labels[near] = boxes[place] + rng.normal(0, 10, (len(near), 4)), labels[place]
            # COCOeval passes over boxes turned inside out, the competition's metric counts them as false: make none.
            own[:, 2:] = np.maximum(own[:, 2:], own[:, :2] + 1)
        scores = np.sort(rng.uniform(0.001, 1, k))[::-1]
        detections.append(Detections(f"{i}", own.astype(np.float32), scores.astype(np.float32), own_labels))
    return detections, truths


def coco(images: list[Detections] | list[Truth]) -> COCO:
    """A COCO object with its index; not timed."""
    rows = []
    for image_id, image in enumerate(images):
        scores = image.scores if isinstance(image, Detections) else np.ones(len(image.boxes))
        for box, label, score in zip(xyxy_to_xywh(image.boxes.astype(float)), image.labels, scores, strict=True):
            row = {"id": len(rows) + 1, "image_id": image_id, "category_id": int(label), "iscrowd": 0}
            rows.append(row | {"bbox": box.tolist(), "area": float(box[2] * box[3]), "score": float(score)})
    result = COCO()
    result.dataset = {
        "images": [{"id": i} for i in range(len(images))],
        "categories": [{"id": label} for label in range(NUM_FINDINGS)],
        "annotations": rows,
    }
    result.createIndex()
    return result


def coco_map(truth: COCO, found: COCO) -> float:
    """COCOeval at one threshold, all areas and all detections."""
    scorer = COCOeval(truth, found, "bbox")
    scorer.params.iouThrs, scorer.params.maxDets = np.array([0.4]), [10**6]
    scorer.params.areaRng, scorer.params.areaRngLbl = [[0, 1e10]], ["all"]
    scorer.evaluate()
    scorer.accumulate()
    precision = scorer.eval["precision"]
    return float(precision[precision > -1].mean())


def timed(call, *args, **kwargs):
    """Result and seconds, the best of three."""
    times = []
    for _ in range(3):
        started = time.perf_counter()
        with redirect_stdout(StringIO()):
            result = call(*args, **kwargs)
        times.append(time.perf_counter() - started)
    return result, min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", type=float, default=1.0, help="share of the images and boxes, 0..1")
    scale = parser.parse_args().scale
    print("| | COCOeval s | vbd s | ratio | COCOeval | vbd, 101 points | vbd, map_40_findings |")
    print("|---|---|---|---|---|---|---|")
    for count in (10_000, 500_000):
        detections, truths = generate(round(IMAGES * scale), round(count * scale))
        with redirect_stdout(StringIO()):
            objects = coco(truths), coco(detections)
        evaluate(detections[:2], truths[:2])  # compiles
        theirs, theirs_time = timed(coco_map, *objects)
        ours, ours_time = timed(evaluate, detections, truths)
        print(
            f"| {len(truths):,} images, {round(count * scale):,} detections | {theirs_time:.2f} | {ours_time:.2f} "
            f"| {theirs_time / ours_time:.1f} x | {theirs:.6f} | {ours.map_coco_101:.6f} | {ours.map_40_findings:.6f} |"
        )
        _, seconds = timed(bootstrap, detections, truths, seed=0, replicates=1_000)
        print(f"| - 1,000 bootstrap replicates | | {seconds:.2f} | | | | |", flush=True)


if __name__ == "__main__":
    main()
