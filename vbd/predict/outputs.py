"""What else may be made of detections: COCO results, pictures with boxes, and DICOM structured reports."""

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vbd import storage
from vbd.boxes import EMPTY, to_prepared, xyxy_to_xywh
from vbd.cluster.tasks import Task, run_tasks
from vbd.data.images.prepare import decode_image, read_gray
from vbd.data.prepared import image_numbers, open_dataset
from vbd.drawing import LAYER_COLOURS, Layer, draw, png
from vbd.errors import InputError
from vbd.labels import CLASS_NAMES
from vbd.predict.images import Item, is_raw, read_item
from vbd.predict.structured_report import structured_report
from vbd.records import Detections, detections_from_table
from vbd.storage.outputs import FOLDER_MARK, Kind

if TYPE_CHECKING:
    import pyarrow as pa

NOT_CLINICAL = "for research; not for clinical use"
# Longer side of a picture with boxes, pixels, and images of one task.
_PICTURE_SIDE, _TASK_IMAGES = 1024, 16


@dataclass(frozen=True)
class Extras:
    """Which of them, where, and of which boxes; an empty text is none."""

    coco: str = ""  # a JSON file
    overlay: str = ""  # a folder
    dicom_sr: str = ""  # a folder
    score_threshold: float = 0.3  # of boxes that are drawn or reported; COCO results hold all
    part: str = "test"  # of a prepared dataset

    @property
    def is_any(self) -> bool:
        """Whether anything is to be made."""
        return bool(self.coco or self.overlay or self.dicom_sr)

    def coco_of(self, name: str, names: Sequence[str]) -> str:
        """The COCO file of one of several checkpoints, or of the only one."""
        return f"{self.coco.removesuffix('.json')}-{name}.json" if len(names) > 1 else self.coco

    def places(self, output: str, names: Sequence[str]) -> dict[str, tuple[str | None, Kind]]:
        """Where these and the tables of some checkpoints in `output` go, as `check_outputs` takes it."""
        places: dict[str, tuple[str | None, Kind]] = {
            "--output": (output, "predictions"),
            "--overlay": (self.overlay, "pictures"),
            "--dicom-sr": (self.dicom_sr, "pictures"),
        }
        for name in names if self.coco else ():
            flag = f"--coco for {name}:" if len(names) > 1 else "--coco"
            places[flag] = self.coco_of(name, names), "coco"
        return places

    def check(self, items: Sequence[Item]) -> None:
        """Raises InputError for what cannot be made of these images."""
        if not 0 <= self.score_threshold <= 1:
            raise InputError(f"--score-threshold {self.score_threshold}: want 0 to 1")
        if self.coco and not self.coco.endswith(".json"):
            raise InputError(f"--coco {self.coco}: want a file that ends in .json")
        if self.dicom_sr and not all(is_raw(item) for item in items):
            raise InputError("--dicom-sr: prepared images have lost the DICOM files they refer to; give the raw files")


@dataclass(frozen=True)
class Found:
    """What a checkpoint found."""

    name: str  # of its table
    detector: str  # which it is
    table: "pa.Table"


def write_extras(
    extras: Extras,
    found: Sequence[Found],
    items: Sequence[Item],
    *,
    images: str,
    say: Callable[[str], None],
) -> None:
    """Makes what is asked for of each checkpoint's detections; pictures and reports in Ray's workers.

    `images` is the folder or prepared dataset of the items. With several checkpoints each has files or a folder of its own.
    """
    for folder, kind in ((extras.overlay, "pictures"), (extras.dicom_sr, "structured reports")):
        if folder:
            storage.write_json(storage.join(folder, FOLDER_MARK), {"kind": kind})
    for each in found:
        if extras.coco:
            target = extras.coco_of(each.name, [other.name for other in found])
            entries = _coco_results(detections_from_table(each.table), items, images=images, part=extras.part)
            storage.write_json(target, entries, compact=True)
            say(f"{storage.shown(target)}: {len(entries)} COCO results")
        for folder, worker in ((extras.overlay, _draw_images), (extras.dicom_sr, _report_images)):
            if folder:
                own = storage.join(folder, each.name) if len(found) > 1 else folder
                options = {"threshold": extras.score_threshold, "detector": each.detector}
                sums = _for_each_image(each.table, items, worker, folder=own, **options)
                say(f"{storage.shown(own)}: {sums['written']} files of {len(each.table)} images ({NOT_CLINICAL})")


def _for_each_image(
    table: "pa.Table", items: Sequence[Item], worker: Callable[..., dict[str, int]], *, folder: str, **options: Any
) -> dict[str, int]:
    of_id = {item["image_id"]: item for item in items}
    tasks: list[Task] = []
    for start in range(0, len(table), _TASK_IMAGES):
        rows = detections_from_table(table.slice(start, _TASK_IMAGES))
        tasks.append(
            {"items": json.dumps([of_id[row.image_id] for row in rows]), "found": [_plain(row) for row in rows]}
        )
    target = storage.absolute(folder)
    done = run_tasks(tasks, worker, title=PurePosixPath(folder).name, total=len(table), folder=target, **options)
    return {"written": 0} | done


def _plain(found: Detections) -> str:
    values = {"boxes": found.boxes.tolist(), "scores": found.scores.tolist(), "labels": found.labels.tolist()}
    return json.dumps({"image_id": found.image_id, "no_finding": found.no_finding} | values)


def _pairs(task: Task, threshold: float) -> list[tuple[Item, Detections]]:
    """Each image of a task, with its boxes above the threshold."""
    pairs = []
    for item, text in zip(json.loads(task["items"]), task["found"], strict=True):
        values = json.loads(text)
        scores = np.asarray(values["scores"], np.float32)
        kept = scores >= threshold
        found = Detections(
            item["image_id"],
            np.asarray(values["boxes"], np.float32).reshape(-1, 4)[kept],
            scores[kept],
            np.asarray(values["labels"], np.int64)[kept],
            values["no_finding"],
        )
        pairs.append((item, found))
    return pairs


# -------------------------------------------------------------------------------------------------------- COCO results


def _coco_results(
    found: Sequence[Detections], items: Sequence[Item], *, images: str, part: str
) -> list[dict[str, Any]]:
    """Boxes `xywh` of all scores; `category_id` is label + 1.

    Images of a prepared dataset have the numbers of its COCO file, and boxes are in pixels of the prepared image as there; raw
    files have their names, and boxes are in original pixels.
    """
    of_id = {item["image_id"]: item for item in items}
    dataset = open_dataset(images) if items and not is_raw(items[0]) else None
    numbers = image_numbers(dataset, part) if dataset else {}
    entries = []
    for each in found:
        item = of_id[each.image_id]
        boxes = each.boxes
        if dataset:
            options = dataset.options
            boxes = to_prepared(boxes, (item["height"], item["width"]), options.image_size, options.resize)
        key = numbers[each.image_id] if dataset else item["path"].removeprefix(f"{storage.absolute(images)}/")
        for box, score, label in zip(
            xyxy_to_xywh(boxes).tolist(), each.scores.tolist(), each.labels.tolist(), strict=True
        ):
            entries.append({"image_id": key, "category_id": label + 1, "bbox": box, "score": score})
    return entries


# --------------------------------------------------------------------------------------------------------- in a worker


def _draw_images(task: Task, *, folder: str, threshold: float, detector: str) -> dict[str, int]:
    pairs = _pairs(task, threshold)
    for item, found in pairs:
        storage.write_bytes(storage.join(folder, f"{found.image_id}.png"), overlay(item, found, threshold=threshold))
    return {"images": len(pairs), "written": len(pairs)}


def overlay(item: Item, found: Detections, *, threshold: float) -> bytes:
    """A PNG of the image, at most 1024 pixels high and wide, with the boxes, their labels and scores."""
    import cv2

    data = read_item(item)
    if is_raw(item):
        gray = read_gray(data, name=item["path"])
        hw = gray.shape[0], gray.shape[1]
    else:
        picture = decode_image(data)
        gray = (picture if picture.ndim == 2 else picture[..., 0]).astype(np.float32)
        hw = item["height"], item["width"]
    scale = min(1.0, _PICTURE_SIDE / max(gray.shape))
    size = max(1, round(gray.shape[1] * scale)), max(1, round(gray.shape[0] * scale))
    shown = _to_8_bit(cv2.resize(gray, size, interpolation=cv2.INTER_AREA))
    if is_raw(item):
        boxes = found.boxes * np.array([size[0] / hw[1], size[1] / hw[0]] * 2, np.float32)
    else:
        boxes = to_prepared(found.boxes, hw, size[0], item["resize"])
    texts = [
        f"{CLASS_NAMES[label]} {score:.2f}"
        for label, score in zip(found.labels.tolist(), found.scores.tolist(), strict=True)
    ]
    normal = "" if found.no_finding is None else f", P(normal) {found.no_finding:.2f}"
    layers = [
        Layer(boxes, texts, LAYER_COLOURS[0], f"score {threshold:g} or more{normal}"),
        Layer(EMPTY, [], LAYER_COLOURS[1], NOT_CLINICAL),  # a line of its own: it is never cut off
    ]
    zoom = max(1.0, 512 / max(size))  # letters need some pixels
    return png(draw(shown, layers, zoom=zoom, legend=True))


def _to_8_bit(gray: NDArray[np.float32]) -> NDArray[np.uint8]:
    low, high = float(gray.min()), float(gray.max())
    return np.round((gray - low) * (255 / max(high - low, 1e-6))).astype(np.uint8)


def _report_images(task: Task, *, folder: str, threshold: float, detector: str) -> dict[str, int]:
    """Files that are no DICOM have no report, and are left out of what was `written`."""
    pairs = _pairs(task, threshold)
    written = 0
    for item, found in pairs:
        report = structured_report(read_item(item), found, threshold=threshold, detector=detector)
        if report is not None:
            stream = io.BytesIO()
            report.save_as(stream, enforce_file_format=True)
            storage.write_bytes(storage.join(folder, f"{found.image_id}.dcm"), stream.getvalue())
            written += 1
    return {"images": len(pairs), "written": written}
