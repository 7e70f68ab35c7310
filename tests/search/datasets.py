"""The label files of a small dataset without pixels: all that a search looks at before it starts."""

from pathlib import Path

import pyarrow as pa

from vbd import storage
from vbd.config import PrepareConfig
from vbd.data.prepared import PreparedDataset


def labels_alone(folder: Path, *label_sets: list[int], readers: int = 3, folds: int = 3) -> PreparedDataset:
    """A dataset of one training image for each set of labels, of one normal training image and of one test image."""
    labels = [*label_sets, [], [1]]
    parts = [i % folds for i in range(len(label_sets) + 1)] + [-1]
    rows = {"image_id": [f"i{i}" for i in range(len(labels))], "fold": parts, "labels": labels}
    drawn = [(f"i{i}", f"R{r}") for i in range(len(label_sets)) for r in range(readers)]
    readings = {"image_id": [image for image, _ in drawn], "rad_id": [reader for _, reader in drawn]}
    storage.write_table(str(folder / "annotations" / "labels.parquet"), pa.table(rows))
    storage.write_table(str(folder / "annotations" / "readings.parquet"), pa.table(readings))
    return PreparedDataset(str(folder), (), PrepareConfig(num_folds=folds), "f" * 16, True, {}, ())
