"""What members score together on images with ground truth: flattened once, fused and scored many times."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from vbd.errors import InputError
from vbd.evaluation.average_precision import average_precisions, mean_over_known
from vbd.evaluation.matching import FlatBoxes, Matches, flatten, match_flat
from vbd.fusion.detections import FlatMembers, FusionOptions, flatten_members, fuse_flat
from vbd.labels import NUM_FINDINGS
from vbd.records import Detections, Truth


class FusedScore:
    """map_40_findings of members fused with given weights and options, on fixed images."""

    def __init__(self, members: Mapping[str, Sequence[Detections]], truths: Sequence[Truth]) -> None:
        """Raises InputError for detections of an image without ground truth."""
        self.names = list(members)
        self._num_images = len(truths)
        self._wanted = _findings(flatten([], truths)[1])
        self._flat = _on_images(flatten_members(list(members.values())), [truth.image_id for truth in truths])

    def score(self, weights: Sequence[float] | NDArray, options: FusionOptions) -> float:
        """A weight for each of `names`; 0 without ground truth."""
        score = mean_over_known(average_precisions(self.matches(weights, options))[:NUM_FINDINGS])
        return 0.0 if np.isnan(score) else score

    def matches(self, weights: Sequence[float] | NDArray, options: FusionOptions) -> Matches:
        """Verdicts on the fused boxes; a lone member's boxes count as they are, not fused among themselves."""
        flat, used = self._flat, np.flatnonzero(weights)
        if len(used) == 1:
            own = flat.models == used[0]
            found = FlatBoxes(flat.images[own], flat.labels[own], flat.boxes[own], flat.scores[own])
        else:
            fused = fuse_flat(flat, weights, options)
            # Detections carry float32: score what they will carry.
            scores = fused.scores.astype(np.float32).astype(np.float64)
            found = FlatBoxes(fused.images, fused.labels, fused.boxes.astype(np.float64), scores)
        return match_flat(found, self._wanted, self._num_images)

    def copies(self) -> dict[int, int]:
        """Members that found exactly what an earlier one found, and that one, by their places in `names`."""
        flat, first, result = self._flat, dict[bytes, int](), dict[int, int]()
        for k in range(len(self.names)):
            own = np.flatnonzero(flat.models == k)
            order = own[np.argsort(flat.images[own], kind="stable")]
            content = b"".join(c[order].tobytes() for c in (flat.images, flat.labels, flat.boxes, flat.scores))
            if first.setdefault(content, k) != k:
                result[k] = first[content]
        return result


def _on_images(flat: FlatMembers, image_ids: Sequence[str]) -> FlatMembers:
    """The same boxes with images numbered as in `image_ids`."""
    index = {image_id: position for position, image_id in enumerate(image_ids)}
    unknown = [image_id for image_id in flat.image_ids if image_id not in index]
    if unknown:
        raise InputError(f"detections of image {unknown[0]!r}: the ground truth does not have this image")
    position = np.array([index[image_id] for image_id in flat.image_ids], np.int64)
    return FlatMembers(
        image_ids=tuple(image_ids),
        boxes=flat.boxes,
        scores=flat.scores,
        labels=flat.labels,
        models=flat.models,
        images=position[flat.images] if len(position) else flat.images,
        no_finding=np.full((len(flat.no_finding), len(image_ids)), np.nan),
    )


def _findings(wanted: FlatBoxes) -> FlatBoxes:
    """Ground truth without class 14, which fusing boxes does not touch."""
    rows = wanted.labels < NUM_FINDINGS
    return FlatBoxes(wanted.images[rows], wanted.labels[rows], wanted.boxes[rows], wanted.scores[rows])
