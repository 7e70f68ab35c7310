"""Predictions for the dataset of `conftest`, and their files."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tests.reports.conftest import ATELECTASIS, BIG, CARDIOMEGALY, SMALL
from vbd import storage
from vbd.boxes import as_boxes
from vbd.records import Detections, detections_to_table
from vbd.training.members import OUT_OF_FOLD, Member, write_members


def found(image_id: str, *boxes: tuple[tuple[float, ...], int, float], no_finding: float | None = None) -> Detections:
    return Detections(
        image_id,
        as_boxes([box for box, _, _ in boxes]),
        np.array([score for _, _, score in boxes], np.float32),
        np.array([label for _, label, _ in boxes], np.int64),
        no_finding=no_finding,
    )


TEST_PART = [
    found("t", (BIG, CARDIOMEGALY, 0.9), ((0, 0, 20, 20), ATELECTASIS, 0.5), no_finding=0.1),
    found("u", (SMALL, CARDIOMEGALY, 0.2), no_finding=0.8),
]
# Both of the large findings of the training images, and nothing that is not there.
BIG_ONES = [found("a", (BIG, CARDIOMEGALY, 0.9)), found("b", (BIG, CARDIOMEGALY, 0.8)), found("c"), found("d")]
NOTHING = [found("a"), found("b"), found("c"), found("d")]


def parquet(folder: Path, detections: Sequence[Detections], name: str = "detections.parquet") -> str:
    storage.write_table(str(folder / name), detections_to_table(detections))
    return str(folder / name)


def submission(folder: Path, *rows: str) -> str:
    (folder / "submission.csv").write_text("\n".join(["image_id,PredictionString", *rows]) + "\n")
    return str(folder / "submission.csv")


def kept(folder: Path, members: dict[str, Sequence[Sequence[Detections]]], *, dataset: str = "f00d") -> str:
    """A folder of kept checkpoints: of each member the detections of its checkpoints."""
    written = []
    for name, runs in members.items():
        folders = tuple(str(folder / f"{name}-fold{k}") for k in range(len(runs)))
        for path, detections in zip(folders, runs, strict=True):
            parquet(Path(path), detections, OUT_OF_FOLD)
        written.append(Member(name, name, 0.5, folders))
    write_members(str(folder), written, dataset, synthetic=True)
    return str(folder)


def row_of(text: str, name: str) -> list[str]:
    """The cells of the first line that starts with a name."""
    line = next(line for line in text.splitlines() if line.startswith(name))
    return re.split(r"\s{2,}", line.strip())
