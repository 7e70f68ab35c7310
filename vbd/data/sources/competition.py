"""The competition's own layout, and its resized mirrors: train.csv, train/, test/, sample_submission.csv."""

import gzip
import zlib
from typing import TYPE_CHECKING

import numpy as np

from vbd import storage
from vbd.data.rejects import Reject, reject
from vbd.data.sources.competition_rows import NEEDED_COLUMNS, OPTIONAL_COLUMNS, parse_rows, refusals, usable_ids
from vbd.data.sources.csv_table import read_csv, readable_rows
from vbd.data.sources.mirror_sizes import Sizes, check_scale, refuse_unsized, told_sizes
from vbd.data.sources.tables import (
    ALL_REFUSED,
    IN_BOTH_PARTS,
    SYNTHETIC_MARK,
    TRUTH_COLUMNS,
    Source,
    fingerprint,
    image_table,
    in_order,
    list_folder,
    refuse_broken,
    refuse_repeated,
)
from vbd.errors import InputError
from vbd.labels import NO_FINDING
from vbd.records import READING_COLUMNS

if TYPE_CHECKING:
    import pandas as pd

_GZIP = b"\x1f\x8b"


def read_competition(folder: str) -> Source:
    """Reads the competition's folder; see `sources.read_source`."""
    import pandas as pd

    names = storage.list_names(folder)
    name, data = _train_csv(folder, names)
    table = read_csv(data, file=storage.join(folder, name), needed=NEEDED_COLUMNS, optional=OPTIONAL_COLUMNS)
    sizes = told_sizes(folder, names, table)
    parts, image_rejects = _list_parts(folder, sizes)
    rows = parse_rows(table)
    reasons = refusals(rows, known_ids=set(parts["train"]["image_id"]), sizes=sizes.hw)
    lines = rows["line"].tolist()
    row_rejects = [reject(name, lines[at], reasons[at]) for at in np.flatnonzero(reasons != "")]
    usable = usable_ids(rows, reasons)
    kept = rows[(reasons == "") & rows["image_id"].isin(usable)]
    listed = pd.concat(parts.values())
    parts["train"], unlabelled = _refuse_unlabelled(parts["train"], usable, set(table["image_id"]), name)
    images = pd.concat([image_table(part, split, sizes.hw) for split, part in parts.items()], ignore_index=True)
    readings = in_order(kept[kept["label"] != NO_FINDING], READING_COLUMNS)
    if not sizes.hw:
        check_scale(images, readings, folder)
    truth, truth_texts = _truth(folder, names, parts["test"], sizes)
    order, order_texts, order_rejects = _sample_submission(folder, names, parts["test"])
    texts = {"train.csv": data, **sizes.texts, **truth_texts, **order_texts}
    return Source(
        kind="competition",
        images=images.sort_values(["split", "image_id"], ascending=[False, True], ignore_index=True),
        readings=readings,
        readers=in_order(kept[["image_id", "rad_id"]].drop_duplicates(), ("image_id", "rad_id")),
        rejects=[*row_rejects, *sizes.rejects, *image_rejects, *unlabelled, *order_rejects],
        truth=truth,
        sample_submission=order,
        synthetic=SYNTHETIC_MARK in names,
        fingerprint=fingerprint(texts, listed),
    )


def _train_csv(folder: str, names: list[str]) -> tuple[str, bytes]:
    """The label table's name, and its content."""
    if "train.csv" in names:
        return "train.csv", storage.read_bytes(storage.join(folder, "train.csv"))
    if "train.csv.gz" not in names:
        raise InputError(f"{folder}: no train.csv; give the folder that holds train.csv and train/")
    packed = storage.join(folder, "train.csv.gz")
    data = storage.read_bytes(packed)
    try:
        # pyarrow unpacks a file by its name's ending on some stores.
        return "train.csv.gz", gzip.decompress(data) if data.startswith(_GZIP) else data
    except (OSError, EOFError, zlib.error):
        raise InputError(f"{packed}: truncated or no gzip file; fetch it again") from None


def _list_parts(folder: str, sizes: Sizes) -> "tuple[dict[str, pd.DataFrame], list[Reject]]":
    """The usable image files of `train` and `test`, and the others; of an id in both parts the test image stays."""
    parts, rejects = {}, []
    for part in ("test", "train"):
        images = list_folder(storage.join(folder, part)).images
        images["name"] = part + "/" + images["name"]
        for refuse in (refuse_broken, refuse_repeated):
            images, refused = refuse(images)
            rejects += refused
        parts[part] = images
    if not len(parts["train"]):
        raise InputError(
            f"{folder}/train: no {'usable ' if rejects else ''}.dicom, .dcm, .png or .jpg files; "
            "put the images that train.csv names there"
        )
    shared = parts["train"]["image_id"].isin(parts["test"]["image_id"])
    rejects += [reject(path, 0, IN_BOTH_PARTS) for path in parts["train"].loc[shared, "path"]]
    parts["train"] = parts["train"][~shared].reset_index(drop=True)
    parts, unsized = refuse_unsized({part: parts[part] for part in ("train", "test")}, sizes, folder)
    return parts, [*rejects, *unsized]


def _refuse_unlabelled(
    train: "pd.DataFrame", usable: set[str], named: set[str], file: str
) -> "tuple[pd.DataFrame, list[Reject]]":
    """Takes out the images that have no accepted row; `named` are the ids of all rows."""
    is_usable = train["image_id"].isin(usable)
    out = train[~is_usable]
    rejects = [
        reject(path, 0, ALL_REFUSED if image_id in named else f"{file} has no row for this image")
        for image_id, path in zip(out["image_id"], out["path"], strict=True)
    ]
    return train[is_usable].reset_index(drop=True), rejects


def _truth(
    folder: str, names: list[str], test: "pd.DataFrame", sizes: Sizes
) -> "tuple[pd.DataFrame | None, dict[str, bytes]]":
    """The test part's known findings, where there are any. A wrong row is fatal: no score may rest on a part."""
    name = "test_truth.csv"
    if not len(test) or name not in names:
        return None, {}
    file = storage.join(folder, name)
    data = storage.read_bytes(file)
    rows = parse_rows(read_csv(data, file=file, needed=NEEDED_COLUMNS))
    reasons = refusals(rows, known_ids=set(test["image_id"]), sizes=sizes.hw)
    for at in np.flatnonzero(reasons != "")[:1]:
        raise InputError(f"{file}:{rows['line'].tolist()[at]}: {reasons[at]}; mend the row or remove the file")
    return in_order(rows[rows["label"] != NO_FINDING], TRUTH_COLUMNS), {name: data}


def _sample_submission(
    folder: str, names: list[str], test: "pd.DataFrame"
) -> tuple[list[str], dict[str, bytes], list[Reject]]:
    """The order of the test ids: that of sample_submission.csv, else sorted."""
    name = "sample_submission.csv"
    if name not in names:
        return sorted(test["image_id"]), {}, []
    file = storage.join(folder, name)
    data = storage.read_bytes(file)
    if not len(test) and len(data.splitlines()) <= 1:  # a data set without a test part
        return [], {name: data}, []
    table, rejects = readable_rows(read_csv(data, file=file, needed=(("image_id",),)), name)
    known, seen = set(test["image_id"]), set()
    for image_id, line in zip(table["image_id"].tolist(), table["line"].tolist(), strict=True):
        if image_id in seen:
            rejects.append(reject(name, line, "duplicate image id"))
        elif image_id not in known:
            rejects.append(reject(name, line, f"no usable image file for {image_id!r}"))
        seen.add(image_id)
    return table["image_id"].drop_duplicates().tolist(), {name: data}, rejects
