"""Images that the best trial of a search does well and badly on, with the truth and what it found."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vbd import storage
from vbd.boxes import to_prepared
from vbd.data.prepared import PreparedDataset, read_truths
from vbd.drawing import LAYER_COLOURS, Layer, draw
from vbd.errors import InputError
from vbd.evaluation.froc import froc_of
from vbd.evaluation.matching import Matches, match
from vbd.labels import NUM_FINDINGS, name_of
from vbd.records import Detections, Trial, Truth
from vbd.reports.gallery import read_image
from vbd.reports.page import Picture, Section
from vbd.reports.scores.pictures import case_sections, webp_uri
from vbd.reports.search.figures import described
from vbd.reports.search.measure import read_kept
from vbd.search.kept.leaderboard import is_scored

_SIDE = 512  # pixels of a picture
_LIMIT = 6  # pictures of each kind
_NO_THRESHOLD = 0.5


def picture_sections(trials: Sequence[Trial], dataset: PreparedDataset) -> list[Section]:
    """The best images, the worst misses and the surest false boxes of the best trial whose detections are kept."""
    for trial in trials:
        detections = read_kept(trial.detections) if is_scored(trial) and trial.detections else []
        if detections:
            return _of_trial(trial, detections, dataset)
    return []


def _of_trial(trial: Trial, detections: Sequence[Detections], dataset: PreparedDataset) -> list[Section]:
    truths = read_truths(dataset, trial.config.fold)
    matches = match(detections, truths)
    threshold = threshold_of(matches)
    sections = [
        _best(detections, truths, matches, threshold, dataset),
        *case_sections(dataset, detections, truths, score_threshold=threshold, limit=_LIMIT),
    ]
    whose = (
        f"The pictures are of the best trial whose detections are kept, {trial.trial_id}: {described(trial.config)}."
    )
    sections[0] = dataclasses.replace(sections[0], blocks=[whose, *sections[0].blocks])
    return sections


def threshold_of(matches: Matches) -> float:
    """The score above which there is at most one false box per image."""
    (threshold,) = froc_of(matches, rates=(1.0,)).pooled.score_thresholds
    return _NO_THRESHOLD if np.isnan(threshold) else threshold


def best_images(truths: Sequence[Truth], matches: Matches, *, score_threshold: float, limit: int) -> list[str]:
    """Ids of the images whose findings and boxes agree best (F1 above the threshold), those with most findings first.

    An image counts when at least one finding of it was found.
    """
    last = matches.starts[NUM_FINDINGS]
    is_kept = matches.scores[:last] >= score_threshold
    hits, images = matches.is_true_positive[:last], matches.images[:last]

    def per_image(chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
        return np.bincount(images[chosen], minlength=len(truths))

    found, boxes = per_image(is_kept & hits), per_image(is_kept)
    wanted = matches.num_truths[:NUM_FINDINGS].sum(0)
    f1 = 2 * found / np.maximum(boxes + wanted, 1)
    order = sorted(np.flatnonzero(found).tolist(), key=lambda i: (-f1[i], -found[i], truths[i].image_id))
    return [truths[i].image_id for i in order[:limit]]


def _best(
    detections: Sequence[Detections],
    truths: Sequence[Truth],
    matches: Matches,
    threshold: float,
    dataset: PreparedDataset,
) -> Section:
    title = "The best images"
    ids = best_images(truths, matches, score_threshold=threshold, limit=_LIMIT)
    if not ids:
        return Section(title, ["On no image was a finding found."])
    truth_of = {truth.image_id: truth for truth in truths}
    found_in = {found.image_id: found for found in detections}
    films = dict(zip(ids, storage.in_threads(lambda image_id: _film(dataset, image_id), ids), strict=True))
    text = (
        "Images on which truth and boxes agree best, those with most findings first. Drawn are the truth and all boxes "
        f"with a score of {threshold:.3g} or more, where there is at most one false box per image."
    )
    pictures = [
        _picture(film, truth_of[image_id], found_in[image_id], threshold, dataset)
        for image_id, film in films.items()
        if film is not None
    ]
    return Section(title, [text, *pictures])


def _film(dataset: PreparedDataset, image_id: str) -> NDArray[np.uint8] | None:
    """A prepared image; None where it is not within reach: the numbers hold without it."""
    try:
        return read_image(dataset, image_id)
    except InputError:
        return None


def _picture(
    film: NDArray[np.uint8], truth: Truth, found: Detections, threshold: float, dataset: PreparedDataset
) -> Picture:
    kept = found.scores >= threshold

    def placed(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
        return to_prepared(boxes, truth.original_hw, dataset.options.image_size, dataset.options.resize)

    layers = [
        Layer(placed(truth.boxes), [name_of(int(i)) for i in truth.labels], LAYER_COLOURS[3], "truth"),
        Layer(
            placed(found.boxes[kept]),
            [f"{score:.2f}" for score in found.scores[kept]],
            LAYER_COLOURS[0],
            "detected (score)",
            style="dashed",
        ),
    ]
    names = ", ".join(sorted({name_of(int(i)) for i in truth.labels}))
    boxes = f"{int(kept.sum())} box{'' if kept.sum() == 1 else 'es'} drawn"
    return Picture(
        webp_uri(draw(film, layers, zoom=_SIDE / film.shape[0], legend=True)),
        alt=f"Chest image {truth.image_id} with the truth and the boxes that were found",
        caption=f"{len(truth.labels)} to find ({names}), {boxes}. {truth.image_id}.",
    )
