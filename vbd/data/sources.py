"""A folder of labelled X-rays, in any of the layouts people have, to one `Source`."""

from typing import Literal

from vbd import storage
from vbd.data.sources_tables import Kind, Source
from vbd.errors import InputError

__all__ = ["Kind", "Source", "detect_kind", "read_source"]


def read_source(folder: str, kind: Literal["auto", "competition", "yolo", "coco"] = "auto") -> Source:
    """Reads the labels and lists the images, without decoding any.

    What is wrong with the folder as a whole raises InputError; a wrong row or file goes to `Source.rejects`. An image
    that would count as normal only because its boxes were refused is refused too.
    """
    folder = storage.absolute(str(folder))
    if not storage.exists(folder):
        raise InputError(f"{folder}: no such folder; give the one that holds train.csv")
    match detect_kind(folder) if kind == "auto" else kind:
        case "competition":
            from vbd.data.sources_competition import read_competition

            return read_competition(folder)
        case "yolo":
            from vbd.data.sources_yolo import read_yolo

            return read_yolo(folder)
        case "coco":
            from vbd.data.sources_coco import read_coco

            return read_coco(folder)
        case other:
            raise InputError(f"{other!r} is no kind of source; choose auto, competition, yolo or coco")


def detect_kind(folder: str) -> Kind:
    """Which layout a folder has; raises InputError that tells what was looked for."""
    names = storage.list_names(folder)
    if "train.csv" in names or "train.csv.gz" in names:
        return "competition"
    annotations = storage.list_names(storage.join(folder, "annotations"))
    if folder.endswith(".json") or any(name.endswith(".json") for name in annotations):
        return "coco"
    if "labels" in names or "classes.txt" in names or any(name.endswith((".yaml", ".yml")) for name in names):
        return "yolo"
    if any(name.endswith(".json") for name in names):
        return "coco"
    raise InputError(
        f"{folder}: none of train.csv (competition), labels/ (YOLO), annotations/*.json (COCO) is in it; "
        "give the folder that directly holds one of them"
    )
