"""The types that travel between the rooms. Boxes are `xyxy` float32 in pixels, labels int64 in 0..13."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, NotRequired, TypedDict

import numpy as np
from numpy.typing import NDArray

from vbd.boxes import EMPTY, Boxes, as_boxes
from vbd.config import TrainConfig
from vbd.config.checked import Count, Fields, PathBelow, Rule, SafeName, Score, Seconds, null_or_between

if TYPE_CHECKING:
    import pyarrow as pa
    import torch

# Columns of a table of readings: one row for each box a radiologist drew, in ORIGINAL pixels.
# A reader who found nothing has no row here.
READING_COLUMNS = ("image_id", "rad_id", "label", "x_min", "y_min", "x_max", "y_max")


class Row(TypedDict):
    """One image of a prepared dataset, as it stands in the shards and travels through augmentation."""

    image_id: str
    fold: int  # 0.. for training images, -1 for the test part
    image: NDArray[np.uint8]  # (H, W) grey, or (H, W, 3) composed; in the shards the encoded file's bytes
    original_hw: NDArray[np.int64]  # (2,)
    boxes: Boxes  # (n, 4) in pixels of `image`
    labels: NDArray[np.int64]  # (n,)
    readers: NDArray[np.int64]  # (n,) how many radiologists agreed on each box


class Target(TypedDict):
    """What a detector learns from, with torchvision's keys."""

    boxes: "torch.Tensor"  # float32 (n, 4)
    labels: "torch.Tensor"  # int64 (n,)
    weights: NotRequired["torch.Tensor"]  # float32 (n,) what each box counts in the loss; absent: 1


class Prediction(TypedDict):
    """What a detector says, with torchvision's keys; boxes in pixels of the input image."""

    boxes: "torch.Tensor"  # float32 (n, 4)
    labels: "torch.Tensor"  # int64 (n,)
    scores: "torch.Tensor"  # float32 (n,), descending
    no_finding: NotRequired["torch.Tensor"]  # float32 (), P(normal image), of a network that estimates it


@dataclass(frozen=True)
class Batch:
    """What one optimiser step sees."""

    image_ids: list[str]
    images: "torch.Tensor"  # float32 (B, 3, S, S) in 0..1
    targets: list[Target]


@dataclass(frozen=True)
class Detections:
    """The boxes found in one image, in pixels of the ORIGINAL image, by descending score."""

    image_id: str
    boxes: Boxes = field(default_factory=lambda: EMPTY)  # (n, 4)
    scores: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))  # (n,) in 0..1
    labels: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))  # (n,) in 0..13
    # P(normal image); None until someone has estimated it.
    no_finding: float | None = None

    def __post_init__(self) -> None:
        n = len(self.boxes)
        if self.boxes.shape != (n, 4) or self.scores.shape != (n,) or self.labels.shape != (n,):
            shapes = self.boxes.shape, self.scores.shape, self.labels.shape
            raise ValueError(f"detections of {self.image_id}: shapes {shapes}, want (n, 4), (n,), (n,)")


@dataclass(frozen=True)
class Truth:
    """The ground truth of one image in ORIGINAL pixels; a normal image has no boxes."""

    image_id: str
    boxes: Boxes = field(default_factory=lambda: EMPTY)  # (n, 4)
    labels: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))  # (n,) in 0..13
    readers: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))  # (n,) how many agreed on it
    original_hw: tuple[int, int] = (0, 0)  # of the image; zeros where it is not known


def detections_to_table(detections: Sequence[Detections]) -> "pa.Table":
    """One row for each image, so that an image without boxes keeps its row."""
    import pyarrow as pa  # 0.1 s: kept out of --help

    return pa.table(
        {
            "image_id": pa.array([found.image_id for found in detections], pa.string()),
            "boxes": pa.array([found.boxes.tolist() for found in detections], pa.list_(pa.list_(pa.float32(), 4))),
            "scores": pa.array([found.scores.tolist() for found in detections], pa.list_(pa.float32())),
            "labels": pa.array([found.labels.tolist() for found in detections], pa.list_(pa.int64())),
            "no_finding": pa.array([found.no_finding for found in detections], pa.float64()),
        }
    )


def finds_nothing(detections: "Sequence[Detections]") -> bool:
    """Whether there are images, and neither a box nor a P(normal) in any of them."""
    return bool(detections) and all(not len(found.labels) and found.no_finding is None for found in detections)


def detections_from_table(table: "pa.Table") -> list[Detections]:
    """The inverse of `detections_to_table`, in the table's order."""
    return [
        Detections(
            image_id=row["image_id"],
            boxes=as_boxes(row["boxes"]),
            scores=np.asarray(row["scores"], np.float32),
            labels=np.asarray(row["labels"], np.int64),
            no_finding=row["no_finding"],
        )
        for row in table.to_pylist()
    ]


_TIMES = ("timestamp", "attempt_started", "seconds", "validation_seconds", "images_per_second", "peak_memory_mb")
# What training reports at a step: besides these numbers only, null where one is NaN.
Report = Annotated[
    dict[str, Any],
    Fields(
        {"step": Count, "workers": Count, "score": Annotated[Any, null_or_between(0, 1)]}
        | dict.fromkeys(("host", "device", "failed"), str)
        | dict.fromkeys(_TIMES, Annotated[Any, null_or_between(0, 1e12)]),
        other=Annotated[Any, null_or_between(-1e15, 1e15)],
    ),
]
_STATUSES = ("running", "waiting", "finished", "stopped", "failed", "died", "refused", "unfinished")


def _have_steps(reports: Sequence[Mapping[str, Any]]) -> bool:
    return all("step" in report for report in reports)


@dataclass(frozen=True)
class Trial:
    """One configuration of a search, and how far it came."""

    trial_id: SafeName  # the first digits of the config's hash: the same configuration is the same trial
    config: TrainConfig
    config_hash: str
    score: Score  # on the validation fold at `steps` (`vbd.evaluation.score`); NaN when there is none
    steps: Count  # of the best checkpoint
    # Path or URI of the best, in a file relative to it; empty when there is none, or when it was not kept.
    checkpoint: PathBelow
    # running, waiting (trained as far as it should be for now), finished, stopped (early, by the scheduler), failed, died
    # (its process, time and again), refused (by the leaderboard), unfinished (was running when the search ended)
    status: Annotated[str, Rule(f"one of {', '.join(_STATUSES)}", _STATUSES.__contains__)] = "finished"
    reason: str = ""  # why it was stopped, failed or refused
    metrics: Report = field(default_factory=dict)  # the last report
    history: Annotated[
        Sequence[Report], Rule("a step in every report", _have_steps)
    ] = ()  # every report, in order of steps
    number: Count = 0  # in the order in which they were drawn
    host: str = ""
    device: str = ""
    seconds: Seconds = 0.0  # of training, over all attempts, to the last report
    peak_memory_mb: Seconds = 0.0
    detections: PathBelow = (
        ""  # path or URI of the best checkpoint's detections on the validation fold; kept of every trial
    )
