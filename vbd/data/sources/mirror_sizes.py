"""Original sizes of resized mirrors: told by `width,height` columns or by meta files, needed when boxes would not fit.

A mirror's boxes stay in pixels of the ORIGINAL image, so a picture without its original size cannot be used.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vbd import storage
from vbd.data.rejects import Reject, reject
from vbd.data.sources.csv_table import read_csv, readable_rows
from vbd.data.sources.tables import DICOM_SUFFIXES, read_sizes
from vbd.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

# test.csv is what some mirrors call the sizes of their test part.
_META_FILES = ("train_meta.csv", "test_meta.csv", "test.csv")
_NEEDED = (("image_id",), ("dim0", "height"), ("dim1", "width"))
# How many images tell whether files are smaller than their originals.
_PROBES = 32
# Pixels; no film comes near it.
_MAX_SIDE = 100_000


@dataclass(frozen=True)
class Sizes:
    """What a folder tells of its original sizes."""

    hw: Mapping[str, tuple[float, float]]  # image_id -> (height, width) of the ORIGINAL image
    conflicts: Mapping[str, str]  # image_id -> what is told of it, where that differs
    rejects: list[Reject]
    texts: Mapping[str, bytes]  # the meta files' bytes, by name


def told_sizes(folder: str, names: list[str], labels: "pd.DataFrame") -> Sizes:
    """Sizes from the label table's own columns and from the meta files among the folder's `names`."""
    import pandas as pd

    tables, rejects, texts = [], [], {}
    if {"width", "height"} <= set(labels.columns):
        tables.append(labels.assign(file="")[["image_id", "height", "width", "line", "file"]])
    for name in _META_FILES:
        if name in names:
            file = storage.join(folder, name)
            texts[name] = storage.read_bytes(file)
            if name == "test.csv" and b"width" not in texts[name].split(b"\n", 1)[0]:
                continue  # a list of ids
            table, refused = readable_rows(read_csv(texts[name], file=file, needed=_NEEDED), name)
            table = table.rename(columns={"dim0": "height", "dim1": "width"})
            tables.append(table.loc[:, ~table.columns.duplicated()].assign(file=name))
            rejects += refused
    if not tables:
        return Sizes({}, {}, rejects, texts)
    sizes = pd.concat(tables, ignore_index=True)
    sides = sizes[["height", "width"]].apply(pd.to_numeric, errors="coerce").to_numpy(float)
    good = np.isfinite(sides).all(1) & (sides >= 1).all(1) & (sides <= _MAX_SIDE).all(1)
    for row in sizes[~good & (sizes["file"] != "")].to_dict("records"):
        reason = f"size {row['width']!r} x {row['height']!r} is not two positive numbers"
        rejects.append(reject(row["file"], row["line"], reason))
    sizes[["height", "width"]] = sides
    return _agreed(sizes[good], rejects, texts)


def _agreed(sizes: "pd.DataFrame", rejects: list[Reject], texts: Mapping[str, bytes]) -> Sizes:
    """Sizes of the images that all rows agree on."""
    told = sizes.drop_duplicates(["image_id", "height", "width"])
    differs = told["image_id"].duplicated(keep=False)
    conflicts = {}
    for image_id, rows in told[differs].sort_values(["height", "width"]).groupby("image_id", sort=True):
        pairs = zip(rows["width"].tolist(), rows["height"].tolist(), strict=True)
        conflicts[str(image_id)] = " and ".join(f"{width:g}x{height:g}" for width, height in pairs)
    wrong = sizes[sizes["image_id"].isin(conflicts) & (sizes["file"] != "")]
    refused = [
        reject(file, line, f"the sizes of {image_id!r} differ: {conflicts[image_id]}")
        for file, line, image_id in zip(wrong["file"], wrong["line"], wrong["image_id"], strict=True)
    ]
    sure = told[~differs]
    pairs = zip(sure["height"].tolist(), sure["width"].tolist(), strict=True)
    return Sizes(dict(zip(sure["image_id"].tolist(), pairs, strict=True)), conflicts, [*rejects, *refused], texts)


def refuse_unsized(
    parts: "Mapping[str, pd.DataFrame]", sizes: Sizes, folder: str
) -> "tuple[dict[str, pd.DataFrame], list[Reject]]":
    """The images of each part (`train`, `test`) without those whose original size is needed and not known for sure.

    Raises InputError when a part of a resized mirror has no sizes at all.
    """
    rejects: list[Reject] = []
    kept = dict(parts)
    needs_sizes = _is_resized(parts, sizes)
    for part, images in parts.items():
        clashes = images["image_id"].isin(sizes.conflicts)
        unsized = needs_sizes & _is_picture(images) & ~images["image_id"].isin(sizes.hw) & ~clashes
        if len(images) and unsized.all():
            raise InputError(
                f"{folder}: the images of {part}/ are resized and nothing tells their original sizes; "
                f"put {part}_meta.csv (image_id,dim0,dim1 = original height, width) into it"
            )
        reasons = {image_id: f"its original sizes differ: {told}" for image_id, told in sizes.conflicts.items()}
        for image_id, path in images.loc[clashes | unsized, ["image_id", "path"]].itertuples(index=False):
            rejects.append(reject(path, 0, reasons.get(image_id, "resized, and nothing tells its original size")))
        kept[part] = images[~(clashes | unsized)].reset_index(drop=True)
    return kept, rejects


def _is_picture(images: "pd.DataFrame") -> "pd.Series[bool]":
    return ~images["path"].str.lower().str.endswith(DICOM_SUFFIXES).astype(bool)


def _is_resized(parts: "Mapping[str, pd.DataFrame]", sizes: Sizes) -> bool:
    """Whether pictures are of other sizes than they were; opens some, and none when every picture's size is told."""
    import pandas as pd

    pictures = pd.concat([images[_is_picture(images)] for images in parts.values()])
    sized = pictures["image_id"].isin(sizes.hw)
    if sized.all() or not sized.any():
        return False
    probed = _spread(pictures[sized].sort_values("image_id"))
    found = zip(probed["image_id"], read_sizes(probed["path"].tolist()), strict=True)
    others = sum(hw is not None and hw != sizes.hw[image_id] for image_id, hw in found)
    return others > len(probed) / 2


def check_scale(images: "pd.DataFrame", readings: "pd.DataFrame", folder: str) -> None:
    """Refuses a resized mirror whose original sizes nothing tells: its boxes are not in the files' own pixels.

    Single boxes beyond their image are left to whoever decodes it.
    """
    reach = _spread(readings.groupby("image_id", sort=True)[["x_max", "y_max"]].max())
    path_of = dict(zip(images["image_id"], images["path"], strict=True))
    paths = [path_of[image_id] for image_id in reach.index]
    beyond = [
        f"{path} is {hw[1]}x{hw[0]} pixels, train.csv has a box up to {x_max:g},{y_max:g}"
        for path, hw, (x_max, y_max) in zip(paths, read_sizes(paths), reach.to_numpy().tolist(), strict=True)
        if hw is not None and (x_max > hw[1] + 1 or y_max > hw[0] + 1)
    ]
    if len(beyond) > len(reach) / 2:
        raise InputError(
            f"{beyond[0]}: the boxes are in the original's pixels; "
            f"put train_meta.csv (image_id,dim0,dim1 = original height, width) into {folder}"
        )


def _spread(table: "pd.DataFrame") -> "pd.DataFrame":
    """Some rows, evenly spread over the table."""
    return table.iloc[np.unique(np.linspace(0, len(table) - 1, min(_PROBES, len(table)), dtype=int))]
