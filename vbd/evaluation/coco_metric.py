"""COCO's own average precision (Lin et al., "Microsoft COCO: Common objects in context", 2014), by hotcoco.

hotcoco gives the numbers of pycocotools to the last bit, from arrays and some fifty times faster (`benchmarks/metric.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vbd.boxes import areas, xyxy_to_xywh
from vbd.evaluation.average_precision import mean_over_known
from vbd.evaluation.matching import FlatBoxes, flatten
from vbd.evaluation.subsets import SIZES, Size
from vbd.labels import CLASS_NAMES, NO_FINDING, NUM_FINDINGS
from vbd.records import Detections, Truth

MAX_DETECTIONS = 100  # COCO's: of each image and class the best so many count, the others are dropped
_SIDE = 512  # COCO's bounds of size, 32² and 96² pixels, are those of images about this large


@dataclass(frozen=True)
class CocoScores:
    """COCO's numbers over the 14 findings; NaN where there is nothing to be found."""

    ap: float  # mean over IoU 0.50, 0.55 .. 0.95
    ap50: float  # at IoU 0.50
    ap75: float
    ap_by_size: dict[Size, float]  # `ap` of small, medium and large findings; NaN when an image's size is not known
    per_class: dict[str, float]  # `ap`
    per_class_50: dict[str, float]
    per_class_75: dict[str, float]
    num_images: int


def coco_scores(detections: Sequence[Detections], truths: Sequence[Truth]) -> CocoScores:
    """Scores detections as pycocotools' COCOeval does with its own settings, joined by image_id.

    Only the 100 best detections of each image and class count (`MAX_DETECTIONS`, COCO's maxDets), and "No finding"
    is no class here. Sizes are shares of the image's area, with COCO's bounds at 512 px as in `subsets.by_size`.
    Errors as in `average_precision.evaluate`.
    """
    found, wanted = (_findings(flat) for flat in flatten(detections, truths))
    image_areas = np.array([float(truth.original_hw[0]) * truth.original_hw[1] for truth in truths])
    has_sizes = bool((image_areas > 0).all())
    precision = _precision(found, wanted, image_areas if has_sizes else np.full(len(truths), float(_SIDE**2)))
    overall = precision[:, :, :, 0]
    ap, ap50, ap75 = (_per_class(part) for part in (overall, overall[:1], overall[5:6]))
    by_size = {
        size: mean_over_known(_per_class(precision[:, :, :, 1 + place])) if has_sizes else float("nan")
        for place, size in enumerate(SIZES)
    }
    return CocoScores(
        ap=mean_over_known(ap),
        ap50=mean_over_known(ap50),
        ap75=mean_over_known(ap75),
        ap_by_size=by_size,
        per_class=dict(zip(CLASS_NAMES, ap.tolist(), strict=True)),
        per_class_50=dict(zip(CLASS_NAMES, ap50.tolist(), strict=True)),
        per_class_75=dict(zip(CLASS_NAMES, ap75.tolist(), strict=True)),
        num_images=len(truths),
    )


def _findings(flat: FlatBoxes) -> FlatBoxes:
    rows = flat.labels != NO_FINDING
    return FlatBoxes(flat.images[rows], flat.labels[rows], flat.boxes[rows], flat.scores[rows])


def _precision(found: FlatBoxes, wanted: FlatBoxes, image_areas: NDArray) -> NDArray[np.float64]:
    """(10 IoU thresholds, 101 recalls, 14 classes, all and three sizes); -1 where there is nothing to be found."""
    import hotcoco  # kept out of --help

    images: list[dict[str, Any]] = [{"id": i, "width": _SIDE, "height": _SIDE} for i in range(len(image_areas))]
    categories: list[dict[str, Any]] = [{"id": i + 1, "name": name} for i, name in enumerate(CLASS_NAMES)]
    boxes, found_boxes = xyxy_to_xywh(wanted.boxes), xyxy_to_xywh(found.boxes)
    truth = hotcoco.COCO.from_arrays(
        images, categories, wanted.images, wanted.labels + 1, boxes, area=_areas_at_512(wanted, image_areas)
    )
    results = truth.load_res(np.column_stack([found.images, found_boxes, found.scores, found.labels + 1]))
    results.update_anns(ids=np.arange(1, len(found.labels) + 1), area=_areas_at_512(found, image_areas))
    scorer = hotcoco.COCOeval(truth, results, "bbox")
    scorer.evaluate()
    scorer.accumulate()
    result: Any = scorer.eval
    return np.asarray(result["precision"])[..., scorer.params.max_dets.index(MAX_DETECTIONS)]


def _areas_at_512(flat: FlatBoxes, image_areas: NDArray) -> NDArray[np.float64]:
    return areas(flat.boxes) / image_areas[flat.images] * _SIDE**2


def _per_class(precision: NDArray) -> NDArray[np.float64]:
    """Mean over thresholds and recalls of each class: (t, 101, 14) -> (14,)."""
    means = precision.reshape(-1, NUM_FINDINGS).mean(0)
    return np.where(means > -1, means, np.nan)
