"""What a detector gets most wrong, drawn: findings that it missed and false boxes that it is sure of."""

import base64
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vbd import storage
from vbd.boxes import Boxes, areas, iou_matrix, to_prepared
from vbd.data.prepared import PreparedDataset
from vbd.drawing import LAYER_COLOURS, Layer, draw
from vbd.evaluation.matching import match
from vbd.labels import NUM_FINDINGS, name_of
from vbd.records import Detections, Truth
from vbd.reports.gallery import film_of
from vbd.reports.page import Picture, Section

_SIDE = 512  # pixels of a picture
_QUALITY = 80  # of WebP: about 20 kB for a film
_MAX_DRAWN = 12  # detections on a picture, the most confident ones: more hide the film
_TRUTH, _FOUND = LAYER_COLOURS[3], LAYER_COLOURS[0]
_WRONG = "#FF5CA8"  # brighter than any layer, and its line is doubled: what the picture is about


@dataclass(frozen=True)
class Case:
    """A box that is worth a look: of a finding that was missed, or one that is false."""

    kind: Literal["missed", "false"]
    image_id: str
    box: Boxes  # (1, 4) original pixels
    label: int
    readers: int  # who drew a missed finding; 0 where it is not known
    score: float  # of the false box, or the best of the boxes that lie on the missed finding; 0 without one
    reason: str  # in words


def worst_misses(
    detections: Sequence[Detections], truths: Sequence[Truth], *, limit: int, iou_threshold: float = 0.4
) -> list[Case]:
    """Findings without a box of their class over `iou_threshold`, most readers first; one for each image.

    Among equals each class has its turn, its largest finding first. Where these are fewer than `limit`, those follow
    that are found with low scores only.
    """
    found_in = {found.image_id: found for found in detections}
    cases = []
    for truth in truths:
        if len(truth.labels):
            cases += _misses(truth, found_in.get(truth.image_id, Detections(truth.image_id)), iou_threshold)
    # A large one that is missed says more than a small one.
    cases.sort(key=lambda case: (-case.readers, case.score, -float(areas(case.box)[0]), case.image_id))
    seen: Counter[tuple[bool, int, int]] = Counter()
    turns = []
    for case in cases:
        kind = (case.score > 0, case.readers, case.label)
        turns.append((case.score > 0, -case.readers, seen[kind]))
        seen[kind] += 1
    order = sorted(range(len(cases)), key=turns.__getitem__)
    return _one_of_each_image([cases[i] for i in order], limit)


def _misses(truth: Truth, found: Detections, iou_threshold: float) -> list[Case]:
    """Every finding of an image as a case, with the best score of the boxes of its class that lie on it."""
    overlaps = iou_matrix(truth.boxes, found.boxes) * (truth.labels[:, None] == found.labels)
    covered = np.where(overlaps > iou_threshold, found.scores, 0).max(axis=1, initial=0)
    nearest = overlaps.max(axis=1, initial=0)
    return [
        Case(
            kind="missed",
            image_id=truth.image_id,
            box=truth.boxes[i : i + 1],
            label=int(truth.labels[i]),
            readers=int(readers),
            score=float(covered[i]),
            reason=f"found at score {covered[i]:.3g} only" if covered[i] else _no_box(float(nearest[i])),
        )
        for i, readers in enumerate(_readers_of(truth))
    ]


def _readers_of(truth: Truth) -> NDArray[np.int64]:
    """How many readers drew each finding; 0 where it is not known."""
    return truth.readers if len(truth.readers) == len(truth.labels) else np.zeros(len(truth.labels), np.int64)


def _no_box(nearest: float) -> str:
    return f"the nearest box of its class has IoU {nearest:.2f}" if nearest else "no box of its class touches it"


def most_confident_false(
    detections: Sequence[Detections], truths: Sequence[Truth], *, limit: int, iou_threshold: float = 0.4
) -> list[Case]:
    """False boxes by descending score, the first of each image; a second box on a found finding is false too."""
    truth_of = {truth.image_id: truth for truth in truths}
    matches = match(detections, truths, iou_threshold=iou_threshold)
    end = matches.starts[NUM_FINDINGS]
    wrong = np.flatnonzero(~matches.is_true_positive[:end])
    starts = np.concatenate([[0], np.cumsum([len(found.boxes) for found in detections])]).astype(np.int64)
    cases: dict[str, Case] = {}
    for place in wrong[np.argsort(-matches.scores[wrong], kind="stable")]:
        if len(cases) == limit:
            break
        row = int(matches.rows[place])
        which = int(np.searchsorted(starts, row, side="right")) - 1
        found, i = detections[which], row - starts[which]
        if found.image_id not in cases:
            box, label = found.boxes[i : i + 1], int(found.labels[i])
            reason = _why_false(box, label, truth_of[found.image_id], iou_threshold)
            cases[found.image_id] = Case("false", found.image_id, box, label, 0, float(found.scores[i]), reason)
    return list(cases.values())


def _why_false(box: Boxes, label: int, truth: Truth, iou_threshold: float) -> str:
    if not len(truth.labels):
        return "the image is normal"
    overlaps = iou_matrix(box, truth.boxes)[0]
    same = np.where(truth.labels == label, overlaps, 0)
    if same.max() > iou_threshold:
        return "a second box on a finding that was found"
    if overlaps.max() > iou_threshold:
        return f"the truth there is {name_of(int(truth.labels[overlaps.argmax()]))}"
    return f"IoU {same.max():.2f} with the nearest of its class" if same.max() else "nothing of its class is there"


def _one_of_each_image(cases: Sequence[Case], limit: int) -> list[Case]:
    first: dict[str, Case] = {}
    for case in cases:
        first.setdefault(case.image_id, case)
    return list(first.values())[:limit]


# ------------------------------------------------------------------------------------------------------------- drawing


def case_sections(
    dataset: PreparedDataset,
    detections: Sequence[Detections],
    truths: Sequence[Truth],
    *,
    score_threshold: float,
    limit: int = 12,
) -> list[Section]:
    """The worst misses and the most confident false boxes, `limit` pictures each.

    An image that cannot be read is replaced by an empty one, and its picture says why: the numbers hold without it.
    """
    found_in = {found.image_id: found for found in detections}
    truth_of = {truth.image_id: truth for truth in truths}
    named = {
        "The worst misses": (
            worst_misses(detections, truths, limit=limit),
            "Findings that no box of their class overlaps with IoU > 0.4, at any score; those that most readers drew "
            "come first, one of each image, the classes by turns. Findings with the lowest scores fill the rest.",
        ),
        "The most confident false boxes": (
            most_confident_false(detections, truths, limit=limit),
            "Boxes that match no finding of their class, or one that a better box has taken, by descending score; one "
            "of each image.",
        ),
    }
    wanted = [case.image_id for cases, _ in named.values() for case in cases]
    films = dict(zip(wanted, storage.in_threads(lambda image_id: film_of(dataset, image_id), wanted), strict=True))
    sections = []
    for title, (cases, text) in named.items():
        pictures = [
            _picture(
                case,
                *films[case.image_id],
                truth=truth_of[case.image_id],
                found=found_in.get(case.image_id, Detections(case.image_id)),
                dataset=dataset,
                score_threshold=score_threshold,
            )
            for case in cases
        ]
        drawn = f" Drawn are the truth and at most {_MAX_DRAWN} boxes with a score of {score_threshold:.3g} or more."
        sections.append(Section(title, [text + drawn if pictures else "There are none.", *pictures]))
    return sections


def _picture(
    case: Case,
    film: NDArray[np.uint8],
    fault: str,
    *,
    truth: Truth,
    found: Detections,
    dataset: PreparedDataset,
    score_threshold: float,
) -> Picture:
    name = name_of(case.label)
    drawn = draw(
        film, _layers(case, truth, found, dataset, score_threshold), zoom=_SIDE / film.shape[0], legend=not fault
    )
    who = f", drawn by {case.readers} reader{'' if case.readers == 1 else 's'}" if case.readers else ""
    what = f"{name}{who}: {case.reason}" if case.kind == "missed" else f"{name} at {case.score:.3f}: {case.reason}"
    return Picture(
        webp_uri(drawn),
        alt=f"Chest image {case.image_id} with a {'missed' if case.kind == 'missed' else 'false'} box of {name}",
        caption=f"{what}. {case.image_id}.{fault}",
    )


def _layers(
    case: Case, truth: Truth, found: Detections, dataset: PreparedDataset, score_threshold: float
) -> list[Layer]:
    """The other findings, the confident boxes, and above them the one that the picture is about."""

    def placed(boxes: Boxes) -> Boxes:
        return to_prepared(boxes, truth.original_hw, dataset.options.image_size, dataset.options.resize)

    readers = _readers_of(truth)
    is_case = (truth.boxes == case.box).all(axis=1) & (truth.labels == case.label) & (case.kind == "missed")
    confident = np.flatnonzero(found.scores >= score_threshold)
    confident = confident[np.argsort(-found.scores[confident], kind="stable")][:_MAX_DRAWN]
    if case.kind == "false":
        same = (found.boxes[confident] == case.box).all(axis=1) & (found.labels[confident] == case.label)
        confident = confident[~same]
    own = f"{case.score:.2f} " if case.kind == "false" else ""
    return [
        Layer(
            placed(truth.boxes[~is_case]),
            [_named(label, count) for label, count in zip(truth.labels[~is_case], readers[~is_case], strict=True)],
            _TRUTH,
            "truth (readers)" if readers.any() else "truth",
        ),
        Layer(
            placed(found.boxes[confident]),
            [f"{found.scores[i]:.2f} {name_of(int(found.labels[i]))}" for i in confident],
            _FOUND,
            "detected (score)",
            style="dashed",
        ),
        Layer(
            np.concatenate([placed(case.box), _around(placed(case.box), 3 * dataset.options.image_size / _SIDE)]),
            [own + _named(case.label, case.readers), ""],
            _WRONG,
            "missed" if case.kind == "missed" else "false box",
        ),
    ]


def _around(boxes: Boxes, pixels: float) -> Boxes:
    return (boxes + pixels * np.array([-1, -1, 1, 1])).astype(np.float32)


def _named(label: int, readers: int) -> str:
    return f"{name_of(int(label))} ({readers})" if readers else name_of(int(label))


def webp_uri(image: NDArray[np.uint8]) -> str:
    """An RGB picture (H, W, 3) as the `src` of an `img` element, a fifth of the size of a PNG."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "WEBP", quality=_QUALITY, method=4)
    return "data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode()
