"""The exploratory report: what a prepared dataset holds, on one page."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vbd.data.prepared import open_dataset
from vbd.drawing import draw
from vbd.labels import CLASS_NAMES
from vbd.reports.census import (
    AllBoxes,
    Census,
    all_boxes,
    class_factors,
    images_by_votes,
    read_census,
    rejects_by_reason,
    sampled_counts,
)
from vbd.reports.eda.boxes import boxes_on_an_image, classes, classes_together, positions, sizes
from vbd.reports.eda.readers import folds, readers
from vbd.reports.gallery import data_uri, read_image, reader_layers
from vbd.reports.page import Cell, Picture, Section, Table, share, write_page
from vbd.storage import shown

_THRESHOLDS = (0.1, 0.2)
_SAMPLES = 9
_SAMPLE_SIDE = 420  # pixels of a sample image on the page
_MAX_REASONS = 30


def write_eda(data: str, output: str) -> None:
    """Writes the exploratory report of a prepared dataset as one HTML page that works offline.

    `output` may be a path or a URI. Raises InputError when there is no finished dataset in `data`.
    """
    census = read_census(open_dataset(data))
    dataset = census.dataset
    boxes = all_boxes(census)
    sections = [
        _overview(census, boxes),
        _samples(census),
        classes(census, boxes),
        boxes_on_an_image(census, boxes),
        classes_together(census),
        sizes(boxes),
        positions(boxes),
        readers(census),
        folds(census),
        _sampling(census),
        _rejects(census),
    ]
    subtitle = (
        f"{shown(dataset.location)}: {len(census.truths):,} training images of {dataset.options.image_size} px, "
        f"{len(boxes.labels):,} boxes, dataset {dataset.fingerprint}"
    )
    write_page(output, "What the dataset holds", sections, synthetic=dataset.synthetic, subtitle=subtitle)


def _overview(census: Census, boxes: AllBoxes) -> Section:
    counts, options = census.dataset.counts, census.dataset.options
    normal = sum(not labels for labels in census.label_sets)
    sets = sorted({read for _, read in images_by_votes(census)})
    heard = [*options.readers, *(f"not {name}" for name in options.without_readers)]
    rules = [
        f"{options.fusion} at IoU {options.fusion_iou:g}",
        *([f"drawn by {options.min_readers} or more"] if options.min_readers > 1 else []),
        *([f"readers heard: {', '.join(heard)}"] if heard else []),
    ]
    rows = [
        ("training images", f"{len(census.truths):,}"),
        ("of them normal", f"{normal:,} ({share(normal, len(census.truths))})"),
        ("test images", f"{counts.get('test_images', 0):,}"),
        ("test images that look like a training image", f"{counts.get('test_lookalikes', 0):,}"),
        ("boxes that readers drew", f"{len(census.readings):,}"),
        ("boxes after fusing the readers", f"{len(boxes.labels):,} ({'; '.join(rules)})"),
        ("readers", f"{census.readers['rad_id'].nunique():,}"),
        ("readers of one image", " or ".join(map(str, sets)) or "-"),
        ("folds", f"{options.num_folds}"),
        ("refused files and rows", f"{counts.get('rejects', 0):,}"),
        ("prepared image", f"{options.image_size} px, {options.resize}, {options.image_format}, {options.channels}"),
    ]
    return Section("Overview", [Table("The dataset in a few numbers", ("", "value"), rows)])


def _samples(census: Census) -> Section:
    """Images with a finding, from those with most classes to those with one."""
    richness = sorted(
        (-len(labels), census.truths[i].image_id, i) for i, labels in enumerate(census.label_sets) if labels
    )
    pictures = []
    for _, image_id, place in richness[:: max(1, len(richness) // _SAMPLES)][:_SAMPLES]:
        image, who, hw = read_image(census.dataset, image_id), census.readers_of(image_id), census.original_hw[image_id]
        layers = reader_layers(census.dataset, census.readings_of(image_id), readers=who, original_hw=hw)
        drawn = draw(image, layers, zoom=_SAMPLE_SIDE / image.shape[0], legend=True)
        shown = ", ".join(CLASS_NAMES[i] for i in sorted(census.label_sets[place]))
        pictures.append(
            Picture(
                data_uri(drawn),
                alt=f"Chest image {image_id} with the boxes of {len(who)} readers: {shown}",
                caption=f"{image_id}, fold {census.folds[place]}, {hw[1]}\u00a0x\u00a0{hw[0]}\u00a0px",
            )
        )
    text = "Boxes as each reader drew them, before fusing; colour and line tell the readers apart."
    return Section("Sample images", [text if pictures else "No image has a finding.", *pictures])


def _sampling(census: Census) -> Section:
    plain = sampled_counts(census, threshold=0)
    columns: list[str] = ["", "once each"]
    cells: list[Sequence[Cell]] = [("all abnormal images", *CLASS_NAMES), [int(count) for count in plain]]
    for threshold in _THRESHOLDS:
        columns += [f"t = {threshold:g}: own factor", f"t = {threshold:g}: shown"]
        factors = class_factors(census, threshold=threshold)
        cells += [("", *(f"{factor:.2f}" for factor in factors)), _shown(census, plain, threshold=threshold)]
    columns += ["policy D: shown"]
    cells += [_shown(census, plain, policy_d=True)]
    rows = list(zip(*cells, strict=True))
    text = (
        "How often one epoch shows the abnormal images of each class, with repeat factors at a threshold t and under "
        "policy D at full strength. A class's own factor is what its rarity asks for; an image is repeated for the "
        "rarest of its classes and repeats the others with it. The share of normal images is set apart, by "
        "normal_share."
    )
    return Section("What sampling shows", [text, Table("Images of each class in one epoch", columns, rows)])


def _rejects(census: Census) -> Section:
    reasons = rejects_by_reason(census.dataset)
    if not reasons:
        return Section("Refused files and rows", ["Nothing was refused."])
    rest = sum(count for _, count, _ in reasons[_MAX_REASONS:])
    note = [f"{rest:,} more for other reasons; see rejects.csv."] if rest else []
    table = Table("Reasons (# stands for any value)", ("reason", "times", "for example"), reasons[:_MAX_REASONS])
    return Section("Refused files and rows", [table, *note])


def _shown(census: Census, plain: NDArray[np.float64], *, threshold: float = 0, policy_d: bool = False) -> list[str]:
    """Images of an epoch, in all and of each class, and their ratio to `plain`, an epoch without repeats."""
    counts = sampled_counts(census, threshold=threshold, policy_d=policy_d)
    return [f"{count:,.0f} (x{count / once:.2f})" if once else "-" for count, once in zip(counts, plain, strict=True)]
