"""YOLO text labels: one `<image>.txt` per image, lines `class cx cy w h` in parts of the image's sides.

Labels stand under `labels/` (mirroring `images/`, or flat) or beside the images. An image without a label file, or with
an empty one, is normal. Images below a folder called `test` are the test part.
"""

import math
from typing import Any

from vbd import storage
from vbd.data.images import read_size
from vbd.data.sources_tables import (
    Source,
    assemble,
    box_table,
    decode_text,
    fingerprint,
    image_table,
    list_images,
    refuse_unusable,
)
from vbd.errors import InputError
from vbd.labels import NO_FINDING, label_of
from vbd.rejects import Reject, reject


def read_yolo(folder: str) -> Source:
    """Reads a YOLO folder; see `sources.read_source`. Opens every image's header for its size."""
    import pandas as pd

    files, rejects = refuse_unusable(list_images(folder, recursive=True))
    if not len(files):
        raise InputError(f"{folder}: no .png, .jpg or .dicom images in it or below it")
    classes = _class_labels(folder)
    label_files = _label_files(folder)
    rows: list[tuple[Any, ...]] = []
    sizes, texts, unusable, has_truth = {}, [], set(), False
    for image_id, path, name in zip(files["image_id"], files["path"], files["name"], strict=True):
        hw = read_size(path)
        label_file = next((file for file in _label_candidates(name) if file in label_files), None)
        if hw is None:
            rejects.append(reject(path, 0, "not a readable image: its header tells no size"))
            unusable.add(image_id)
            continue
        sizes[image_id] = (float(hw[0]), float(hw[1]))
        if label_file is None:
            continue
        has_truth = has_truth or _is_test(name)
        texts.append(storage.read_bytes(storage.join(folder, label_file)))
        boxes, bad = _read_labels(texts[-1], label_file, image_id, hw, classes)
        rows, rejects = rows + boxes, rejects + bad
        if bad and not boxes:
            rejects.append(reject(path, 0, "its findings were all refused, and it is not normal"))
            unusable.add(image_id)
    kept = files[~files["image_id"].isin(unusable)]
    in_test = kept["name"].map(_is_test).astype(bool)
    images = pd.concat([image_table(kept[~in_test], "train", sizes), image_table(kept[in_test], "test", sizes)])
    return assemble(
        "yolo",
        images,
        box_table(rows),
        has_truth=has_truth,
        rejects=rejects,
        synthetic="SYNTHETIC.json" in storage.list_names(folder),
        fingerprint=fingerprint(texts, files),
    )


def _is_test(name: str) -> bool:
    return "test" in name.split("/")[:-1]


def _label_files(folder: str) -> set[str]:
    """All text files, relative to the folder."""
    from pyarrow.fs import FileSelector

    files, root = storage.filesystem(folder)
    found = files.get_file_info(FileSelector(root, recursive=True))
    return {info.path[len(root) :].lstrip("/") for info in found if info.path.endswith(".txt")}


def _label_candidates(image_name: str) -> list[str]:
    """Where the labels of `images/train/a.png` may stand, best first."""
    stem = image_name.rsplit(".", 1)[0]
    below = stem.removeprefix("images/")
    return [f"labels/{below}.txt", f"labels/{stem.rsplit('/', 1)[-1]}.txt", f"{stem}.txt"]


def _class_labels(folder: str) -> dict[int, int]:
    """The file's class number to our label, from classes.txt or the data yaml; without them numbers are our labels."""
    names = storage.list_names(folder)
    if "classes.txt" in names:
        file = storage.join(folder, "classes.txt")
        listed: Any = [
            line.strip() for line in decode_text(storage.read_bytes(file), file=file).splitlines() if line.strip()
        ]
    else:
        yamls = [name for name in names if name.endswith((".yaml", ".yml"))]
        if not yamls:
            return {label: label for label in range(NO_FINDING + 1)}
        file = storage.join(folder, yamls[0])
        listed = _yaml_names(file)
    numbered = listed.items() if isinstance(listed, dict) else enumerate(listed)
    try:
        return {int(number): label_of(str(name)) for number, name in numbered}
    except InputError as error:
        raise InputError(f"{file}: {error}") from None


def _yaml_names(file: str) -> Any:
    import yaml

    try:
        document = yaml.safe_load(storage.read_bytes(file))
    except yaml.YAMLError as error:
        raise InputError(f"{file}: not valid YAML ({str(error).splitlines()[0]})") from None
    listed = document.get("names") if isinstance(document, dict) else None
    if not isinstance(listed, dict | list):
        raise InputError(f"{file}: no list called 'names'; add the class names in the order of their numbers")
    return listed


def _read_labels(
    data: bytes, file: str, image_id: str, hw: tuple[int, int], classes: dict[int, int]
) -> tuple[list[tuple[Any, ...]], list[Reject]]:
    """Rows of `box_table`, pixels, and what was refused. A sixth column, the confidence of predictions, is ignored."""
    rows, rejects = [], []
    for line, text in enumerate(decode_text(data, file=file).splitlines(), start=1):
        parts = text.split()
        if not parts:
            continue
        try:
            number, (cx, cy, w, h) = int(parts[0]), (float(part) for part in parts[1:5])
        except ValueError:
            rejects.append(reject(file, line, f"want 'class cx cy w h', found {text[:80]!r}"))
            continue
        label = classes.get(number)
        if label == NO_FINDING:
            continue
        if label is None:
            rejects.append(reject(file, line, f"unknown class {number}"))
        elif not (
            all(map(math.isfinite, (cx, cy, w, h)))
            and w > 0
            and h > 0
            and max(cx, cy, w, h) <= 1.01
            and min(cx, cy) >= 0
        ):
            rejects.append(reject(file, line, f"box {cx:g} {cy:g} {w:g} {h:g} is not inside 0..1"))
        else:
            height, width = hw
            corners = ((cx - w / 2) * width, (cy - h / 2) * height, (cx + w / 2) * width, (cy + h / 2) * height)
            rows.append((image_id, label, *corners))
    return rows, rejects
