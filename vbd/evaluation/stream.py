"""The metric while images are still arriving: what is matched once is not matched again."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vbd.errors import InputError
from vbd.evaluation.average_precision import Scores, scores_of
from vbd.evaluation.matching import FlatBoxes, Matches, assemble, count_truths, flatten, judge, rank
from vbd.labels import NO_FINDING, NUM_FINDINGS
from vbd.records import Detections, Truth


class Evaluator:
    """Scores of images that come in parts, exactly those of one `evaluate` on all of them in the order they were added.

    A part is matched when it is added; only the ranking of all detections is made anew by `scores` and `matches`. Equal
    scores keep the order of adding, and within a part that of its detections: with ties, the order of the parts counts
    as the order of images counts in `evaluate`. Add the images sorted by id where parts come in any order.
    """

    def __init__(self, *, iou_threshold: float = 0.4) -> None:
        self._iou_threshold = iou_threshold
        self._parts: list[_Part] = []
        self._seen: set[str] = set()

    def add(self, detections: Sequence[Detections], truths: Sequence[Truth]) -> None:
        """Matches the detections of some images with their ground truth, joined by image_id.

        Every image comes once, with its truth; one without detections counts. Errors as in `evaluate`, and for an image
        that was added before; then nothing of the part is kept.
        """
        again = next((truth.image_id for truth in truths if truth.image_id in self._seen), None)
        if again is not None:
            raise InputError(f"ground truth: image {again!r} was added before; add every image once")
        found, wanted = flatten(detections, truths)
        ranking = rank(found)
        verdicts = np.empty((2, len(found.scores)), np.int8)
        for coco in (False, True):
            verdicts[int(coco), ranking.rows] = judge(
                found, wanted, len(truths), ranking, iou_threshold=self._iou_threshold, coco=coco
            )
        self._parts.append(_Part(found, verdicts, count_truths(wanted, len(truths))))
        self._seen.update(truth.image_id for truth in truths)

    @property
    def num_images(self) -> int:
        """How many images were added."""
        return len(self._seen)

    @property
    def matches(self) -> Matches:
        """`matching.match` on all images so far; image indices count in the order the truths were added."""
        return self._matches()[0]

    def scores(self) -> Scores:
        """`evaluate` on all images so far."""
        return scores_of(*self._matches())

    def _matches(self) -> tuple[Matches, Matches]:
        """By VOC's and by COCO's rule."""
        found, verdicts, num_truths = _join(self._parts)
        ranking = rank(found)
        voc, coco = (assemble(ranking, each[ranking.rows], num_truths) for each in verdicts)
        return voc, coco


class _Part:
    """Some images: their detections in the order of `flatten`, and what was made of them."""

    def __init__(self, found: FlatBoxes, verdicts: NDArray[np.int8], num_truths: NDArray[np.int64]) -> None:
        self.labels, self.scores, self.images = found.labels, found.scores, found.images
        self.verdicts = verdicts  # (2, n) by VOC's and by COCO's rule
        self.num_truths = num_truths  # (15, images)


def _join(parts: Sequence[_Part]) -> tuple[FlatBoxes, NDArray[np.int8], NDArray[np.int64]]:
    """All parts as `flatten` would have given them at once: class 14 of all images behind all findings."""
    counts = [part.num_truths.shape[1] for part in parts]
    first_images = np.cumsum([0, *counts])
    labels = np.concatenate([np.zeros(0, np.int64), *(part.labels for part in parts)])
    scores = np.concatenate([np.zeros(0), *(part.scores for part in parts)])
    images = np.concatenate(
        [np.zeros(0, np.int64), *(part.images + first for part, first in zip(parts, first_images, strict=False))]
    )
    verdicts = np.concatenate([np.zeros((2, 0), np.int8), *(part.verdicts for part in parts)], axis=1)
    num_truths = np.concatenate([np.zeros((NUM_FINDINGS + 1, 0), np.int64), *(p.num_truths for p in parts)], axis=1)
    rows = np.argsort(labels == NO_FINDING, kind="stable")
    no_boxes = np.zeros((len(rows), 0))
    return FlatBoxes(images[rows], labels[rows], no_boxes, scores[rows]), verdicts[:, rows], num_truths
