"""COCO JSON: categories are matched by name, images by file name; a file called *test* describes the test part."""

import math
from typing import Any

from vbd import storage
from vbd.data.sources_tables import Source, assemble, box_table, fingerprint, image_table, list_images
from vbd.errors import InputError
from vbd.labels import NO_FINDING, label_of
from vbd.rejects import Reject, reject


def read_coco(folder: str) -> Source:
    """Reads a folder with COCO annotations, or one JSON file; see `sources.read_source`."""
    import pandas as pd

    root, documents = _documents(folder)
    files = list_images(root, recursive=True)
    by_name = dict(zip(files["name"], files["path"], strict=True))
    by_base = {name.rsplit("/", 1)[-1]: path for name, path in by_name.items()}
    entries: list[dict[str, Any]] = []
    rows: list[tuple[Any, ...]] = []
    rejects: list[Reject] = []
    has_truth = False
    for file in documents:
        document = _read_document(file)
        split = "test" if "test" in file.rsplit("/", 1)[-1] else "train"
        images, bad_images = _images(document, file, split, by_name | by_base, {entry["image_id"] for entry in entries})
        boxes, bad_boxes, lost = _boxes(document, file, {image["id"]: image["image_id"] for image in images})
        rejects += bad_images + bad_boxes
        rejects += [
            reject(i["path"], 0, "its findings were all refused, and it is not normal")
            for i in images
            if i["image_id"] in lost
        ]
        entries += [image for image in images if image["image_id"] not in lost]
        rows += boxes
        has_truth = has_truth or (split == "test" and bool(boxes))
    sizes = {entry["image_id"]: entry["hw"] for entry in entries}
    listing = pd.DataFrame(
        [(e["image_id"], e["path"], e["split"]) for e in entries], columns=["image_id", "path", "split"]
    )
    parts = [image_table(listing[listing["split"] == split], split, sizes) for split in ("train", "test")]
    return assemble(
        "coco",
        pd.concat(parts),
        box_table(rows),
        has_truth=has_truth,
        rejects=rejects,
        synthetic=any(bool(_read_document(file).get("info", {}).get("synthetic")) for file in documents),
        fingerprint=fingerprint([storage.read_bytes(file) for file in documents], files),
    )


def _documents(folder: str) -> tuple[str, list[str]]:
    """Where the images are looked for, and the JSON files to read: `instances_all.json` and the test part, else all."""
    if folder.endswith(".json"):
        return folder.rsplit("/", 1)[0], [folder]
    below = storage.join(folder, "annotations")
    where = below if any(name.endswith(".json") for name in storage.list_names(below)) else folder
    names = [name for name in storage.list_names(where) if name.endswith(".json") and name != "SYNTHETIC.json"]
    if "instances_all.json" in names:
        tests = [name for name in ("instances_test.json", "image_info_test.json") if name in names]
        names = ["instances_all.json", *tests[:1]]
    if not names:
        raise InputError(f"{folder}: no COCO JSON in it or in annotations/")
    return folder, [storage.join(where, name) for name in names]


def _read_document(file: str) -> dict[str, Any]:
    document = storage.read_json(file)
    missing = [key for key in ("images", "categories") if not isinstance(document, dict) or key not in document]
    if missing:
        raise InputError(f"{file}: no {missing[0]!r}; want COCO's images, annotations and categories")
    return document


def _images(
    document: dict[str, Any], file: str, split: str, paths: dict[str, str], taken: set[str]
) -> tuple[list[dict[str, Any]], list[Reject]]:
    """Images that have a file, with `id` (the document's), `image_id`, `path`, `split`, `hw`."""
    images, rejects, seen = [], [], set(taken)
    for row, image in enumerate(document["images"], start=1):
        name = str(image.get("file_name", ""))
        base = name.rsplit("/", 1)[-1]
        image_id, path = base.rsplit(".", 1)[0], paths.get(name) or paths.get(base)
        if "id" not in image or not storage.is_safe_id(image_id):
            rejects.append(reject(file, row, f"image {name!r} has no id or no safe file name"))
        elif path is None:
            rejects.append(reject(file, row, f"no image file {name}"))
        elif image_id in seen:
            rejects.append(reject(file, row, f"image {image_id} is listed twice"))
        else:
            seen.add(image_id)
            hw = (float(image.get("height") or math.nan), float(image.get("width") or math.nan))
            images.append({"id": image["id"], "image_id": image_id, "path": path, "split": split, "hw": hw})
    return images, rejects


def _boxes(
    document: dict[str, Any], file: str, image_ids: dict[Any, str]
) -> tuple[list[tuple[Any, ...]], list[Reject], set[str]]:
    """Rows of `box_table`, what was refused, and the images whose findings were all refused."""
    labels = _category_labels(document, file)
    rows, rejects, lost = [], [], set()
    for row, annotation in enumerate(document.get("annotations", ()), start=1):
        image_id, label = image_ids.get(annotation.get("image_id")), labels.get(annotation.get("category_id"))
        if label == NO_FINDING:
            continue
        reason, corners = _corners(annotation)
        if label is None:
            reason = f"unknown category {annotation.get('category_id')}"
        if image_id is None:
            rejects.append(reject(file, row, f"annotation of an unknown image {annotation.get('image_id')}"))
        elif reason or label is None:
            rejects.append(reject(file, row, reason))
            lost.add(image_id)
        else:
            rows.append((image_id, label, *corners))
    return rows, rejects, lost - {row[0] for row in rows}


def _corners(annotation: dict[str, Any]) -> tuple[str, tuple[float, ...]]:
    """Why a box is refused ("" when it is not), and its corners."""
    try:
        x, y, width, height = (float(value) for value in annotation["bbox"])
    except (KeyError, TypeError, ValueError):
        return f"bbox {annotation.get('bbox')!r} is not four numbers", ()
    if not all(map(math.isfinite, (x, y, width, height))) or width <= 0 or height <= 0:
        return f"bbox {annotation['bbox']!r} has no area", ()
    return "", (x, y, x + width, y + height)


def _category_labels(document: dict[str, Any], file: str) -> dict[Any, int]:
    try:
        return {category["id"]: label_of(str(category["name"])) for category in document["categories"]}
    except InputError as error:
        raise InputError(f"{file}: {error}") from None
    except (KeyError, TypeError):
        raise InputError(f"{file}: a category without 'id' or 'name'") from None
