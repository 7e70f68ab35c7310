"""The metric written down plainly and slowly, and pycocotools: what ours is compared with."""

from contextlib import redirect_stdout
from io import StringIO

import numpy as np

NO_FINDING = 14


def box_iou(first, second):
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    area = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return shared / (area[0] + area[1] - shared)


def objects(images, label):
    """Image id, index within it, box and score of a class, in the order of the images."""
    for image in images:
        scores = getattr(image, "scores", np.ones(len(image.boxes)))
        if label < NO_FINDING:
            for k in np.flatnonzero(image.labels == label):
                yield image.image_id, int(k), [float(x) for x in image.boxes[k]], float(scores[k])
        elif hasattr(image, "no_finding"):
            if image.no_finding is not None:
                yield image.image_id, -1, [0.0, 0.0, 1.0, 1.0], image.no_finding
        elif len(image.boxes) == 0:
            yield image.image_id, -1, [0.0, 0.0, 1.0, 1.0], 1.0


def voc_verdicts(detections, truths, label, threshold, ignored=(), outside=()):
    """The devkit's loop: True, False or None (ignored) for each detection by descending score; and what to find."""
    wanted = list(objects(truths, label))
    ranked = sorted(objects(detections, label), key=lambda row: -row[3])  # stable
    taken, verdicts = set(), []
    for image_id, k, box, _ in ranked:
        best, best_iou = None, -1.0
        for other_id, other_k, other, _ in wanted:
            if other_id == image_id and box_iou(box, other) > best_iou:
                best, best_iou = (other_id, other_k), box_iou(box, other)
        if best_iou > threshold:
            verdicts.append(None if best in ignored else best not in taken)
            taken.add(best)
        else:
            verdicts.append(None if (image_id, k) in outside else False)
    return verdicts, sum((image_id, k) not in ignored for image_id, k, _, _ in wanted)


def all_point_ap(verdicts, positives):
    """Area under the falling precision, point by point."""
    if not positives:
        return np.nan
    counted = [verdict for verdict in verdicts if verdict is not None]
    recalls = [sum(counted[: i + 1]) / positives for i in range(len(counted))]
    precisions = [sum(counted[: i + 1]) / (i + 1) for i in range(len(counted))]
    area, last = 0.0, 0.0
    for i, recall in enumerate(recalls):
        area += (recall - last) * max(precisions[i:])
        last = recall
    return area


def reference_scores(detections, truths, threshold=0.4, ignored=(), outside=()):
    """All-point AP of the 15 classes."""
    return [all_point_ap(*voc_verdicts(detections, truths, label, threshold, ignored, outside)) for label in range(15)]


def pycocotools_precision(detections, truths, *, thresholds=None, sizes=False, max_detections=None):
    """COCOeval's (thresholds, 101, 14, sizes) with its own settings, but for what is given; -1 for nothing to find."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with redirect_stdout(StringIO()):
        both = []
        for images in (truths, detections):
            coco = COCO()
            coco.dataset = {
                "images": [{"id": i} for i in range(len(truths))],
                "categories": [{"id": label} for label in range(14)],
                "annotations": _annotations(images, truths),
            }
            coco.createIndex()
            both.append(coco)
        scorer = COCOeval(*both, "bbox")
        if thresholds is not None:
            scorer.params.iouThrs = np.array(thresholds)
        if max_detections is not None:
            scorer.params.maxDets = [max_detections]
        if not sizes:
            scorer.params.areaRng, scorer.params.areaRngLbl = [[0, 1e10]], ["all"]
        scorer.evaluate()
        scorer.accumulate()
    return scorer.eval["precision"][..., -1]


def _annotations(images, truths):
    """Areas count in pixels of an image of 512 px."""
    number = {image.image_id: i for i, image in enumerate(truths)}
    rows = []
    for image in images:
        scores = getattr(image, "scores", np.ones(len(image.boxes)))
        height, width = truths[number[image.image_id]].original_hw
        for box, label, score in zip(image.boxes.astype(float), image.labels, scores, strict=True):
            x, y, w, h = float(box[0]), float(box[1]), float(box[2] - box[0]), float(box[3] - box[1])
            row = {"id": len(rows) + 1, "image_id": number[image.image_id], "category_id": int(label), "iscrowd": 0}
            area = w * h / (height * width) * 512**2 if height else w * h
            rows.append(row | {"bbox": [x, y, w, h], "area": area, "score": float(score)})
    return rows


def mean_known(precision):
    known = precision[precision > -1]
    return known.mean() if len(known) else np.nan
