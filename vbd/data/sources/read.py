"""A folder of labelled X-rays, in any of the layouts people have, to one `Source`."""

from vbd import storage
from vbd.config import Layout
from vbd.console.words import count_of
from vbd.data.rejects import reject_reasons
from vbd.data.sources.tables import CONSENSUS, LIST_FILES, SYNTHETIC_MARK, Kind, Source
from vbd.errors import InputError

__all__ = ["Kind", "Source", "describe", "detect_kind", "read_source"]

# Folders in which exports put each part's images and labels together.
_PARTS = ("train", "valid", "val", "test")


def read_source(folder: str, kind: Layout = "auto") -> Source:
    """Reads the labels and lists the images, without decoding any. `folder` may be a single COCO JSON file.

    What is wrong with the folder as a whole raises InputError; a wrong row or file goes to `Source.rejects`. An image
    that would count as normal only because its boxes were refused is refused too.
    """
    folder = storage.absolute(str(folder))
    if not storage.exists(folder):
        raise InputError(f"{folder}: no such folder; give the one that holds train.csv")
    source = _read(folder, detect_kind(folder) if kind == "auto" else kind)
    needed = source.images["split"] == "train" if source.kind == "competition" else source.images["split"] != ""
    if not needed.any():
        reasons = reject_reasons(source.rejects)
        told = f"; most often ({reasons[0][1]:,}x): {reasons[0][2]}" if reasons else ""
        raise InputError(
            f"{folder}: none of its {'training ' * (source.kind == 'competition')}images can be used{told}"
        )
    return source


def _read(folder: str, kind: str) -> Source:
    match kind:
        case "competition":
            from vbd.data.sources.competition import read_competition

            return read_competition(folder)
        case "yolo":
            from vbd.data.sources.yolo import read_yolo

            return read_yolo(folder)
        case "coco":
            from vbd.data.sources.coco import read_coco

            return read_coco(folder)
        case other:
            raise InputError(f"{other!r} is no kind of source; choose auto, competition, yolo or coco")


def describe(source: Source) -> str:
    """One line on what was found, e.g. `competition layout, 15,000 train and 3,000 test images (.dicom), ...`."""
    in_test = int((source.images["split"] == "test").sum())
    suffixes = sorted({path[path.rindex(".") :].lower() for path in source.images["path"]})
    names = set(source.readers["rad_id"])
    readers = "readers not told apart" if names <= {CONSENSUS} else count_of(len(names), "reader")
    boxes, abnormal = len(source.readings), source.readings["image_id"].nunique()
    parts = [
        f"{source.kind} layout",
        f"{len(source.images) - in_test:,} train and {in_test:,} test images ({', '.join(suffixes)})",
        f"{count_of(boxes, 'box', 'boxes')} on {count_of(abnormal, 'image')} by {readers}",
        *(
            [f"{count_of(len(source.truth), 'box', 'boxes')} known of the test part"]
            if source.truth is not None
            else []
        ),
        *([f"{count_of(len(source.rejects), 'file or row', 'files or rows')} refused"] if source.rejects else []),
        *(["SYNTHETIC"] if source.synthetic else []),
    ]
    return ", ".join(parts)


def detect_kind(folder: str) -> Kind:
    """Which layout a folder (or a single JSON file) has; raises InputError that tells what was looked for."""
    if folder.endswith(".json"):
        return "coco"
    names = storage.list_names(folder)
    if "train.csv" in names or "train.csv.gz" in names:
        return "competition"
    if _holds_json(storage.join(folder, "annotations")):
        return "coco"
    if any(name in ("labels", "classes.txt", *LIST_FILES) or name.endswith((".yaml", ".yml")) for name in names):
        return "yolo"
    parts = [storage.join(folder, name) for name in _PARTS if name in names]
    if any("labels" in storage.list_names(part) for part in parts):
        return "yolo"
    if any(name.endswith(".json") and name != SYNTHETIC_MARK for name in names) or any(map(_holds_json, parts)):
        return "coco"
    hint = (
        "unpack train.csv.zip first" if "train.csv.zip" in names else "give the folder that directly holds one of them"
    )
    raise InputError(
        f"{folder}: none of train.csv (competition), labels/ or train.txt (YOLO), annotations/*.json (COCO) is in it; {hint}"
    )


def _holds_json(folder: str) -> bool:
    return any(name.endswith(".json") for name in storage.list_names(folder))
