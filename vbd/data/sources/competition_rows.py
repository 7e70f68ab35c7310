"""The rows of the competition's label tables: typed, and each with the reason why it is refused, if it is."""

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vbd import storage
from vbd.data.sources.tables import CONSENSUS, CONTRADICTED, DUPLICATE
from vbd.labels import CLASS_NAMES, NO_FINDING, NO_FINDING_BOX, NO_FINDING_NAME, NUM_FINDINGS

if TYPE_CHECKING:
    import pandas as pd

CORNERS = ("x_min", "y_min", "x_max", "y_max")
# What a label table must have, and what else of it is used.
NEEDED_COLUMNS = (("image_id",), ("class_id", "class_name"), *((corner,) for corner in CORNERS))
OPTIONAL_COLUMNS = ("rad_id", "width", "height")

_UNKNOWN = -1
_LABELS = {name.casefold(): label for label, name in enumerate((*CLASS_NAMES, NO_FINDING_NAME))}
_EMPTY_CELLS = ("", "nan", "none", "null")


def parse_rows(table: "pd.DataFrame") -> "pd.DataFrame":
    """A csv's rows with types: label -1 is an unknown class, corners may be NaN; `*_text` is what was written.

    Without a column `rad_id` all rows are one reader's.
    """
    import pandas as pd

    rows = table[["image_id", "line", "fault"]].copy()
    rows["rad_id"] = _each(_reader_name, table["rad_id"]) if "rad_id" in table else CONSENSUS
    readings = {"class_id": _label_of_number, "class_name": _label_of_name}
    labels = [_each(read, table[column]) for column, read in readings.items() if column in table]
    rows["label"] = labels[0].astype("int64")
    rows["mismatch"] = labels[0] != labels[-1]
    written = [table[column] for column in readings if column in table]
    rows["class_text"] = written[0] if len(written) == 1 else written[0] + " " + written[1]
    for corner in CORNERS:
        rows[corner] = pd.to_numeric(table[corner], errors="coerce").astype("float64")
        rows[f"{corner}_text"] = table[corner]
    is_empty = [_each(_is_empty, table[corner]).astype(bool) for corner in CORNERS]
    rows["has_no_box"] = np.all(is_empty, axis=0) | (rows[list(CORNERS)].to_numpy() == NO_FINDING_BOX).all(1)
    return rows.astype({"image_id": object, "rad_id": object})


def refusals(
    rows: "pd.DataFrame", *, known_ids: set[str], sizes: Mapping[str, tuple[float, float]]
) -> NDArray[np.object_]:
    """Why each row is refused; "" where it is not. The first reason that holds is told.

    `known_ids` are the images that can be used, `sizes` the original (height, width) of those where it is known.
    """
    import pandas as pd

    image, ids = pd.factorize(rows["image_id"])
    reader, names = pd.factorize(rows["rad_id"])
    unknown = (np.inf, np.inf)
    height, width = np.array([sizes.get(image_id, unknown) for image_id in ids], float).reshape(-1, 2)[image].T
    is_safe = np.array([storage.is_safe_id(image_id) for image_id in ids], bool)[image]
    is_known = np.array([image_id in known_ids for image_id in ids], bool)[image]
    is_normal, is_finding = rows["label"] == NO_FINDING, rows["label"].between(0, NUM_FINDINGS - 1)
    said = image * max(1, len(names)) + reader
    corners = rows[list(CORNERS)].to_numpy()
    x_min, y_min, x_max, y_max = corners.T
    box = "'{x_min_text} {y_min_text} {x_max_text} {y_max_text}'"  # quoted, so that equal reasons are counted together
    checks = (
        (rows["fault"] != "", "{fault}"),
        (~is_safe, "image id {image_id!r} cannot be a file name"),
        (~is_known, "no usable image file for {image_id!r}"),
        (rows["rad_id"] == "", "no rad_id"),
        (rows["mismatch"], "class_id and class_name disagree or are unknown: {class_text!r}"),
        (rows["label"] == _UNKNOWN, "unknown class {class_text!r}"),
        (is_normal & np.isin(said, said[is_finding]), CONTRADICTED),
        (is_normal & ~rows["has_no_box"], f"No finding with a box {box}"),
        (is_finding & ~np.isfinite(corners).all(1), f"coordinates {box} are not four finite numbers"),
        (is_finding & ((x_min < 0) | (y_min < 0)), f"negative coordinate in {box}"),
        (is_finding & (x_min >= x_max), "x_min {x_min_text} >= x_max {x_max_text}"),
        (is_finding & (y_min >= y_max), "y_min {y_min_text} >= y_max {y_max_text}"),
        (is_finding & ((x_min >= width) | (y_min >= height)), f"box {box} lies outside the image"),
        (_repeated(rows, is_normal), DUPLICATE),
    )
    reasons = np.full(len(rows), "", object)
    for fails, template in checks:
        places = np.flatnonzero(np.asarray(fails, bool) & (reasons == ""))
        for place, values in zip(places, rows.iloc[places].to_dict("records"), strict=True):
            reasons[place] = template.format_map({str(key): value for key, value in values.items()})
    return reasons


def usable_ids(rows: "pd.DataFrame", reasons: NDArray[np.object_]) -> set[str]:
    """Images with an accepted row, save those that are left without a finding only because one was refused."""
    accepted, is_finding = reasons == "", rows["label"] != NO_FINDING
    found = set(rows.loc[accepted & is_finding, "image_id"])
    lost = set(rows.loc[~accepted & is_finding & (reasons != DUPLICATE), "image_id"])
    return set(rows.loc[accepted, "image_id"]) - (lost - found)


def _each(function: Callable[[str], Any], column: "pd.Series[Any]") -> NDArray[np.object_]:
    """The function's value for each cell, worked out once for equal cells."""
    values = {cell: function(cell) for cell in column.unique()}
    return np.array([values[cell] for cell in column], object)


def _repeated(rows: "pd.DataFrame", is_normal: "pd.Series[bool]") -> "pd.Series[bool]":
    """Rows that say what an earlier one says already, however the numbers are written."""
    told = rows[["image_id", "rad_id", "label", *CORNERS]].copy()
    told.loc[is_normal, list(CORNERS)] = 0.0
    return told.duplicated()


def _reader_name(cell: str) -> str:
    # Some copies write R09 for R9.
    return re.sub(r"^[Rr]0*(\d+)$", r"R\1", cell)


def _label_of_number(cell: str) -> int:
    """Some copies write 3.0 for 3."""
    try:
        number = float(cell)
    except ValueError:
        return _UNKNOWN
    return int(number) if number in range(NO_FINDING + 1) else _UNKNOWN


def _label_of_name(cell: str) -> int:
    return _LABELS.get(cell.casefold(), _UNKNOWN)


def _is_empty(cell: str) -> bool:
    return cell.casefold() in _EMPTY_CELLS
