"""The exploratory report's sections on who read the images, how far they agree, and how the folds share both out."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from vbd.drawing import contact_sheet, draw
from vbd.labels import CLASS_NAMES
from vbd.reports.census import (
    Census,
    ReaderCount,
    TeamCount,
    fold_table,
    images_by_votes,
    reader_counts,
    similar_images,
    team_counts,
)
from vbd.reports.gallery import data_uri, read_image
from vbd.reports.page import Cell, Picture, Plot, Section, Table, label, matrix, percent, share

if TYPE_CHECKING:
    import pandas as pd

_MAX_TEAMS = 12
_MAX_READERS_DRAWN = 40
_SIMILAR_SHOWN, _SIMILAR_ACROSS, _SIMILAR_SIDE = 3, 4, 150


def readers(census: Census) -> Section:
    """Who read what, and how far the readers agree."""
    from vbd.evaluation.agreement import ALL_CLASSES, leave_one_reader_out

    counts = reader_counts(census)
    if not counts:
        return Section("Readers", ["The source of this dataset does not tell who read which image."])
    table = leave_one_reader_out(census.readings, census.readers)
    overall = table[table["class_name"] == ALL_CLASSES].set_index("rad_id")
    rows: list[tuple[Cell, ...]] = [
        (
            count.rad_id,
            count.images,
            share(count.abnormal, count.images),
            share(count.drew, count.images),
            count.boxes,
            f"{count.boxes / count.drew:.1f}" if count.drew else "-",
            *(percent(overall[name].get(count.rad_id, np.nan)) for name in ("precision", "recall")),
        )
        for count in counts
    ]
    columns = (
        *("reader", "images read", "abnormal", "with own box", "boxes drawn", "boxes per such image"),
        *("precision", "recall"),
    )
    text = (
        "Abnormal: images that this reader read and on which any reader drew a box. Precision: of a reader's boxes, the "
        "share that the fused boxes of the other readers of the same images confirm (same class, IoU of 0.4 or more). "
        "Recall: the share of the others' fused boxes that this reader drew too."
    )
    drew = [count for count in counts if count.boxes][:_MAX_READERS_DRAWN]
    blocks = [_drawn_classes(drew), _votes(census), _pairs(census, drew), _by_class(table)]
    return Section(
        "Readers",
        [text, Table("What each reader read and drew", columns, rows), *(block for block in blocks if block)],
    )


def _drawn_classes(counts: Sequence[ReaderCount]) -> Plot | None:
    """Which classes each reader draws."""
    if not counts:
        return None
    shares = np.array([count.per_class / count.drew for count in counts])
    hovers = [
        [
            f"{label(count.rad_id)} drew {name} on {images:,} of {count.drew:,} images"
            for name, images in zip(CLASS_NAMES, count.per_class, strict=True)
        ]
        for count in counts
    ]
    texts = [[f"{value:.0%}" if value else "" for value in row] for row in shares]
    names = [f"{label(count.rad_id)} ({count.drew:,})" for count in counts]
    plot = matrix(shares, names, CLASS_NAMES, texts=texts, hovers=hovers)
    return Plot(
        plot,
        "Of the images on which a reader drew a box (in brackets: how many), the share on which it was the class.",
    )


def _votes(census: Census) -> Table:
    """How many of an image's readers drew anything."""
    counts = images_by_votes(census)
    rows = [
        (f"{drew} of {read}", images, share(images, sum(counts.values()))) for (drew, read), images in counts.items()
    ]
    return Table("Images by how many of their readers drew a box", ("readers who drew", "images", "share"), rows)


def _pairs(census: Census, counts: Sequence[ReaderCount]) -> Plot | None:
    """How far each two readers draw the same boxes: a matrix, when two readers saw the same images."""
    from vbd.evaluation.agreement import ALL_CLASSES, reader_pairs

    pairs = reader_pairs(census.readings, census.readers)
    pairs = pairs[(pairs["class_name"] == ALL_CLASSES) & (pairs["boxes"] + pairs["reference_boxes"] > 0)]
    if pairs.empty:
        return None
    order = [count.rad_id for count in counts if count.rad_id in set(pairs["rad_id"])]
    pairs = pairs.assign(dice=2 * pairs["agreed"] / (pairs["boxes"] + pairs["reference_boxes"]))
    dice, images = (
        pairs.pivot(index="rad_id", columns="other_rad_id", values=name)
        .reindex(index=order, columns=order)
        .to_numpy(float)
        for name in ("dice", "images")
    )
    names = [label(name) for name in order]
    hovers = [
        [f"{row} and {column}: {np.nan_to_num(images[i, j]):,.0f} images" for j, column in enumerate(names)]
        for i, row in enumerate(names)
    ]
    texts = [["" if np.isnan(value) else f"{value:.0%}" for value in row] for row in dice]
    caption = (
        "Agreement of each two readers on the images that both read: boxes drawn by both, as a share of the boxes of "
        "either (Dice). Readers without a common abnormal image have no number."
    )
    return Plot(matrix(dice, names, names, texts=texts, hovers=hovers), caption)


def _by_class(table: "pd.DataFrame") -> Table:
    """Leave-one-reader-out, all readers together: what a model may be held against."""
    sums = table.groupby("class_name")[["boxes", "reference_boxes", "agreed"]].sum()
    rows = []
    for name in (*CLASS_NAMES, "all"):
        boxes, others, agreed = (int(sums[column].get(name, 0)) for column in ("boxes", "reference_boxes", "agreed"))
        rows.append((name, boxes, share(agreed, boxes), others, share(agreed, others)))
    columns = ("class", "boxes drawn", "precision", "fused boxes of the others", "recall")
    return Table("Each reader against the others, all readers together: the human reference for a model", columns, rows)


def folds(census: Census) -> Section:
    """How evenly the folds share the classes, the readers and the images that look alike."""
    table = fold_table(census)
    names = ("images", "normal images", *CLASS_NAMES)
    columns = tuple(f"fold {k}" for k in range(len(table)))
    rows = [(name, *values) for name, values in zip(names, table.T.tolist(), strict=True)]
    total = table.sum(axis=0)
    known = [i for i in range(len(names)) if total[i]]
    ratio = (table[:, known] * len(table) / total[known]).T
    hovers = [
        [f"fold {k}: {table[k, i]:,} of {total[i]:,} images ({names[i]})" for k in range(len(table))] for i in known
    ]
    texts = [[f"{value:.2f}" for value in row] for row in ratio]
    plot = matrix(
        ratio, [names[i] for i in known], columns, texts=texts, hovers=hovers, low=0.5, high=1.5, diverging=True
    )
    caption = "Images of each fold against an even share: 1.00 is even, 1.20 a fifth more than its share."
    return Section(
        "Folds",
        [
            Plot(plot, caption),
            Table("Images of each fold, and those that show a class", ("images of", *columns), rows),
            *_teams(team_counts(census), columns),
            *_similar(census, columns),
        ],
    )


def _teams(teams: Sequence[TeamCount], columns: Sequence[str]) -> list[Table]:
    """The folds' images by who read them together."""
    if not any(team.rad_ids for team in teams):
        return []
    shown, rest = teams[:_MAX_TEAMS], teams[_MAX_TEAMS:]
    rows = [_team_row(", ".join(team.rad_ids) or "nobody", [team]) for team in shown]
    if rest:
        rows.append(_team_row(f"{len(rest):,} other sets of readers", rest))
    return [Table("Images of each fold by who read them", ("read by", "images", "abnormal", *columns), rows)]


def _team_row(name: str, teams: Sequence[TeamCount]) -> tuple[Cell, ...]:
    per_fold = np.sum([team.per_fold for team in teams], axis=0)
    return (name, int(per_fold.sum()), share(sum(team.abnormal for team in teams), per_fold.sum()), *per_fold.tolist())


def _similar(census: Census, columns: Sequence[str]) -> list[str | Table | Picture]:
    """Images that look alike, which must not stand in two folds."""
    if not census.groups:
        return []
    groups = similar_images(census)
    if not groups:
        return ["No two images look alike."]
    inside = np.bincount(census.folds[[place for group in groups for place in group]], minlength=len(columns))
    split = sum(len(set(census.folds[group].tolist())) > 1 for group in groups)
    rows: list[tuple[Cell, ...]] = [
        (
            "groups",
            len(groups),
            *np.bincount(census.folds[[group[0] for group in groups]], minlength=len(columns)).tolist(),
        ),
        ("images in them", int(inside.sum()), *inside.tolist()),
    ]
    text = (
        f"Groups that stand in more than one fold: {split:,}. Scores on their images would be too good."
        if split
        else "Every group of images that look alike stands in one fold."
    )
    table = Table("Images that look alike in each fold", ("", "all", *columns), rows)
    return [table, text, *(_similar_picture(census, group) for group in groups[:_SIMILAR_SHOWN])]


def _similar_picture(census: Census, group: Sequence[int]) -> Picture:
    ids = [census.truths[place].image_id for place in group[:_SIMILAR_ACROSS]]
    images = [read_image(census.dataset, image_id) for image_id in ids]
    shrunk = [draw(image, [], zoom=_SIMILAR_SIDE / image.shape[0]) for image in images]
    sheet = contact_sheet(shrunk, [f"fold {census.folds[place]}" for place in group[: len(ids)]], 2)
    caption = f"{len(group)} images that look alike: {', '.join(ids)}" + (
        " and others" if len(group) > len(ids) else ""
    )
    return Picture(data_uri(sheet), alt=f"{len(ids)} chest images that look alike", caption=caption)
