"""Detections read from a Parquet file that a user may have written or edited: every value is checked."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vbd import storage
from vbd.errors import InputError
from vbd.labels import NUM_FINDINGS
from vbd.records import Detections, detections_from_table

if TYPE_CHECKING:
    import pyarrow as pa

# No film is as large: a coordinate beyond this is no pixel.
LARGEST_PIXEL = 1e6
_COLUMNS = ("image_id", "boxes", "scores", "labels", "no_finding")
_AGAIN = "write it as jobs/predict.py does"


def read_detections(location: str) -> list[Detections]:
    """The detections of a Parquet file, in its order.

    Raises InputError for a column that is missing or of another type, and names row and value of the first box with a label
    outside 0..13, a score outside 0..1, or corners that are no pixels or in the wrong order. A box may leave its image.
    """
    table = storage.read_table(location)
    missing = [name for name in _COLUMNS if name not in table.column_names]
    if missing:
        raise InputError(f"{location}: no column {missing[0]!r}; want {', '.join(_COLUMNS)}, as jobs/predict.py writes")
    try:
        detections = detections_from_table(_typed(table, location))
    except (ValueError, TypeError) as error:  # a row whose lists have different lengths, or none
        raise InputError(f"{location}: {error}; {_AGAIN}") from None
    _check(detections, location)
    return detections


def _check(detections: Sequence[Detections], location: str) -> None:
    rows = np.repeat(np.arange(len(detections)), [len(found.scores) for found in detections])
    boxes = np.concatenate([np.zeros((0, 4), np.float32), *(found.boxes for found in detections)])
    scores = np.concatenate([np.zeros(0, np.float32), *(found.scores for found in detections)])
    labels = np.concatenate([np.zeros(0, np.int64), *(found.labels for found in detections)])
    no_label = f"labels are 0 to {NUM_FINDINGS - 1}, and P(normal) stands in the column no_finding"
    rules: tuple[tuple[str, Any, Any, str], ...] = (
        ("label", labels, (labels >= 0) & (labels < NUM_FINDINGS), no_label),
        ("score", scores, (scores >= 0) & (scores <= 1), "scores are 0 to 1"),
        ("box", boxes, (np.abs(boxes) <= LARGEST_PIXEL).all(1), f"corners are pixels, at most {LARGEST_PIXEL:,.0f}"),
        ("box", boxes, (boxes[:, :2] <= boxes[:, 2:]).all(1), "want x_min, y_min, x_max, y_max"),
    )
    for name, values, is_good, wanted in rules:
        if not is_good.all():
            place = int(is_good.argmin())
            value, row = values[place].tolist(), int(rows[place])
            raise InputError(
                f"{location}: row {row}: image {detections[row].image_id!r} has the {name} {value}; {wanted}; {_AGAIN}"
            )
    for row, found in enumerate(detections):
        p = found.no_finding
        if p is not None and not 0 <= p <= 1:
            raise InputError(
                f"{location}: row {row}: image {found.image_id!r} has P(normal) {p}; want 0 to 1, or null; {_AGAIN}"
            )


def _typed(table: "pa.Table", location: str) -> "pa.Table":
    """The columns of `detections_to_table`, in its types."""
    import pyarrow as pa

    types = {
        "image_id": pa.string(),
        "boxes": pa.list_(pa.list_(pa.float32(), 4)),
        "scores": pa.list_(pa.float32()),
        "labels": pa.list_(pa.int64()),
        "no_finding": pa.float64(),
    }
    columns = {}
    for name, wanted in types.items():
        try:
            columns[name] = table[name].cast(wanted)
        except pa.ArrowException:
            raise InputError(
                f"{location}: column {name!r} holds {table[name].type}, want {wanted}, as jobs/predict.py writes"
            ) from None
        if name != "no_finding" and columns[name].null_count:
            raise InputError(f"{location}: column {name!r} has an empty cell; an image without boxes has empty lists")
    return pa.table(columns)
