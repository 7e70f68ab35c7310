"""Images of an ensemble's report: what it found best and worst, with the truth."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vbd import storage
from vbd.boxes import Boxes, to_prepared
from vbd.data.prepared import PreparedDataset
from vbd.drawing import LAYER_COLOURS, Layer, draw
from vbd.labels import name_of
from vbd.records import Detections, Truth
from vbd.reports.ensemble.measure import Case, cases_of
from vbd.reports.gallery import film_of
from vbd.reports.page import Picture, Section
from vbd.reports.scores.pictures import webp_uri

_SIDE = 512  # pixels of a picture
_MAX_DRAWN = 10
_TRUTH, _FOUND = LAYER_COLOURS[3], LAYER_COLOURS[0]


def case_sections(
    dataset: PreparedDataset, detections: Sequence[Detections], truths: Sequence[Truth], *, limit: int = 6
) -> list[Section]:
    """The images from both ends, each with the truth and the fused boxes; `limit` pictures of a kind.

    An image that cannot be read is replaced by an empty one, and its picture says why.
    """
    cases = cases_of(detections, truths, limit=limit)
    drawn = (
        f" Drawn are the truth and at most {_MAX_DRAWN} boxes with a score of {cases.score_threshold:.3g} or more: one "
        "false box per image on average."
    )
    titled = {
        "The best images": (
            cases.best,
            "Every finding has a box with a high score, and no false box comes near. In order of the mean score of the "
            "findings, 0 for one that was missed, less the highest false box." + drawn,
        ),
        "The worst images": (cases.worst, "The other end of the same order." + drawn),
        "Normal images with the highest boxes": (cases.alarms, "All of these boxes are false." + drawn),
    }
    wanted = [case.truth.image_id for chosen, _ in titled.values() for case in chosen]
    films = dict(zip(wanted, storage.in_threads(lambda image_id: film_of(dataset, image_id), wanted), strict=True))
    return [
        Section(
            title,
            [
                text if chosen else "There are none.",
                *(
                    _picture(case, *films[case.truth.image_id], dataset=dataset, score_threshold=cases.score_threshold)
                    for case in chosen
                ),
            ],
        )
        for title, (chosen, text) in titled.items()
    ]


def _picture(
    case: Case, film: NDArray[np.uint8], fault: str, *, dataset: PreparedDataset, score_threshold: float
) -> Picture:
    def placed(boxes: Boxes) -> Boxes:
        return to_prepared(boxes, case.truth.original_hw, dataset.options.image_size, dataset.options.resize)

    found = case.found
    shown = np.flatnonzero(found.scores >= score_threshold)
    shown = shown[np.argsort(-found.scores[shown], kind="stable")][:_MAX_DRAWN]
    layers = [
        Layer(placed(case.truth.boxes), [name_of(int(label)) for label in case.truth.labels], _TRUTH, caption="truth"),
        Layer(
            placed(found.boxes[shown]),
            [f"{found.scores[i]:.2f} {name_of(int(found.labels[i]))}" for i in shown],
            _FOUND,
            caption="fused (score)",
            style="dashed",
        ),
    ]
    hits = "" if math.isnan(case.hit_score) else f"findings at {case.hit_score:.2f} on average, "
    normal = "" if found.no_finding is None else f"; P(no finding) {found.no_finding:.2f}"
    return Picture(
        webp_uri(draw(film, layers, zoom=_SIDE / film.shape[0], legend=not fault)),
        alt=f"Chest image {case.truth.image_id} with its findings and the fused boxes",
        caption=f"{hits}highest false box {case.false_score:.2f}{normal}. {case.truth.image_id}.{fault}",
    )
