"""The competition's own layout, and its resized mirrors: train.csv, train/, test/, sample_submission.csv.

Line numbers in messages and rejects count from 1, the header included, as an editor shows them.
"""

import gzip
import io
import zlib
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vbd import storage
from vbd.data.sources_tables import (
    CONSENSUS,
    TRUTH_COLUMNS,
    Source,
    decode_text,
    fingerprint,
    image_table,
    list_images,
    refuse_unusable,
)
from vbd.errors import InputError
from vbd.labels import CLASS_NAMES, NO_FINDING, NO_FINDING_BOX, NO_FINDING_NAME, NUM_FINDINGS
from vbd.records import READING_COLUMNS
from vbd.rejects import Reject, reject

if TYPE_CHECKING:
    import pandas as pd

_CORNERS = ("x_min", "y_min", "x_max", "y_max")
_UNKNOWN = -1
_GZIP = b"\x1f\x8b"
# Refusals that lose nothing: the finding itself stays.
_DUPLICATE = "duplicate row"
_CONTRADICTED = "No finding beside a finding by the same reader"
# How many images tell whether the boxes fit the files, when nothing else tells the original sizes.
_SIZE_PROBES = 32

Sizes = dict[str, tuple[float, float]]  # image_id -> (height, width) of the ORIGINAL image


def read_competition(folder: str) -> Source:
    """Reads the competition's folder; see `sources.read_source`."""
    import pandas as pd

    name, data = _train_csv(folder)
    table = _read_csv(data, file=storage.join(folder, name))
    _need_columns(table, ("rad_id", *_CORNERS), file=storage.join(folder, name))
    test, test_rejects = _part_images(folder, "test")
    train, train_rejects = _part_images(folder, "train", taken=set(test["image_id"]))
    sizes, metas = _sizes(folder, table)
    rows = _parse_rows(table)
    reasons = _reasons(rows, known_ids=set(train["image_id"]), sizes=sizes)
    usable = _usable_ids(rows, reasons)
    kept = rows[(reasons == "") & rows["image_id"].isin(usable)]
    readings = kept[kept["label"] != NO_FINDING][list(READING_COLUMNS)].reset_index(drop=True)
    parts = ((train[train["image_id"].isin(usable)], "train"), (test, "test"))
    images = pd.concat([image_table(part, split, sizes) for part, split in parts], ignore_index=True)
    if not sizes:
        _check_scale(images, readings, folder)
    truth, truth_data = _truth(folder, set(test["image_id"]))
    listed, listed_data, listed_rejects = _sample_submission(folder, test)
    lines = rows["line"].tolist()
    row_rejects = [reject(name, lines[at], reasons[at]) for at in np.flatnonzero(reasons != "")]
    return Source(
        kind="competition",
        images=images,
        readings=readings,
        readers=kept[["image_id", "rad_id"]].drop_duplicates(ignore_index=True),
        rejects=[
            *(*row_rejects, *train_rejects, *_refuse_unlabelled(train, rows, usable)),
            *(*test_rejects, *listed_rejects),
        ],
        truth=truth,
        sample_submission=listed,
        synthetic="SYNTHETIC.json" in storage.list_names(folder),
        fingerprint=fingerprint([data, *metas, truth_data, listed_data], pd.concat([train, test])),
    )


def _train_csv(folder: str) -> tuple[str, bytes]:
    names = storage.list_names(folder)
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


def _read_csv(data: bytes, *, file: str) -> "pd.DataFrame":
    """All cells as text, `line` added; raises InputError for what is no table with rows."""
    import pandas as pd

    text = decode_text(data, file=file)
    if not text.strip():
        raise InputError(f"{file}: empty file; fetch it again")
    try:
        table = pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False, skip_blank_lines=False)
    except pd.errors.ParserError as error:
        raise InputError(f"{file}: not a csv table ({str(error).strip().splitlines()[-1]})") from None
    if not isinstance(table.index, pd.RangeIndex):  # pandas takes surplus cells for an index
        raise InputError(f"{file}:2: more cells than the {len(table.columns)} columns of the header")
    table = table.rename(columns=lambda name: str(name).strip()).fillna("")
    table["line"] = np.arange(2, len(table) + 2)
    table = table[(table.drop(columns="line") != "").any(axis=1)]
    if not len(table):
        raise InputError(f"{file}: no rows below the header; fetch it again")
    return table.reset_index(drop=True)


def _need_columns(table: "pd.DataFrame", names: tuple[str, ...], *, file: str) -> None:
    have = [name for name in table.columns if name != "line"]
    missing = [name for name in ("image_id", *names) if name not in have]
    if "class_id" not in have and "class_name" not in have:
        missing.append("class_id")
    if missing:
        raise InputError(f"{file}:1: no column {missing[0]!r}; the columns are {', '.join(have)[:200]}")


def _part_images(
    folder: str, part: str, taken: frozenset[str] | set[str] = frozenset()
) -> "tuple[pd.DataFrame, list[Reject]]":
    """The usable image files of a part, and the others; `taken` are ids that belong to another part."""
    where = storage.join(folder, part)
    images = list_images(where)
    if part == "train" and not len(images):
        raise InputError(f"{where}: no .dicom, .dcm, .png or .jpg files; put the images that train.csv names there")
    images["name"] = part + "/" + images["name"]
    images, rejects = refuse_unusable(images)
    shared = images["image_id"].isin(taken)
    rejects += [reject(path, 0, "the test part has an image with this id") for path in images.loc[shared, "path"]]
    return images[~shared].reset_index(drop=True), rejects


def _sizes(folder: str, table: "pd.DataFrame") -> tuple[Sizes, list[bytes]]:
    """Original sizes from the csv's own columns or from the mirrors' meta files, and those files' bytes."""
    import pandas as pd

    found, texts = [], []
    if {"width", "height"} <= set(table.columns):
        found.append(table[["image_id", "height", "width"]])
    for name in ("train_meta.csv", "test_meta.csv"):
        file = storage.join(folder, name)
        if not storage.exists(file):
            continue
        texts.append(storage.read_bytes(file))
        meta = _read_csv(texts[-1], file=file).rename(columns={"dim0": "height", "dim1": "width"})
        missing = {"image_id", "height", "width"} - set(meta.columns)
        if missing:
            raise InputError(f"{file}:1: no column for {min(missing)}; want image_id,dim0,dim1 (height, width)")
        found.append(meta[["image_id", "height", "width"]])
    if not found:
        return {}, texts
    sizes = pd.concat(found, ignore_index=True).drop_duplicates("image_id")
    height, width = (pd.to_numeric(sizes[side], errors="coerce").to_numpy(float) for side in ("height", "width"))
    good = (height >= 1) & (width >= 1) & np.isfinite(height) & np.isfinite(width)
    pairs = zip(height[good].tolist(), width[good].tolist(), strict=True)
    return dict(zip(sizes["image_id"].to_numpy(object)[good], pairs, strict=True)), texts


def _parse_rows(table: "pd.DataFrame") -> "pd.DataFrame":
    """A csv's rows with types: label -1 is an unknown class, corners may be NaN; `*_text` is what was written."""
    import pandas as pd

    rows = pd.DataFrame({"image_id": table["image_id"].str.strip().astype(object), "line": table["line"]})
    # Some copies write R09 for R9.
    rows["rad_id"] = table["rad_id"].str.strip().str.replace(r"^[Rr]0*(\d+)$", r"R\1", regex=True).astype(object)
    by_id = by_name = None
    if "class_id" in table:
        numbers = pd.to_numeric(table["class_id"], errors="coerce")
        by_id = numbers.where(numbers.isin(range(NO_FINDING + 1)), _UNKNOWN).astype("int64")
    if "class_name" in table:
        labels = {name.casefold(): label for label, name in enumerate((*CLASS_NAMES, NO_FINDING_NAME))}
        by_name = table["class_name"].str.strip().str.casefold().map(labels).fillna(_UNKNOWN).astype("int64")
    rows["label"] = by_id if by_id is not None else by_name
    rows["mismatch"] = (by_id != by_name) if by_id is not None and by_name is not None else False
    written = [table[name] for name in ("class_id", "class_name") if name in table]
    rows["class_text"] = written[0] if len(written) == 1 else written[0] + " " + written[1]
    corners = table[list(_CORNERS)].apply(lambda column: column.str.strip())
    for corner in _CORNERS:
        rows[corner] = pd.to_numeric(corners[corner], errors="coerce").astype("float64")
        rows[f"{corner}_text"] = corners[corner]
    rows["is_empty"] = corners.apply(lambda column: column.str.lower().isin(["", "nan"])).all(axis=1)
    return rows


def _reasons(rows: "pd.DataFrame", *, known_ids: set[str], sizes: Sizes) -> NDArray[np.object_]:
    """Why each row is refused; "" where it is not. The first reason that holds is told."""
    import pandas as pd

    is_normal, is_finding = rows["label"] == NO_FINDING, rows["label"].between(0, NUM_FINDINGS - 1)
    reader = pd.MultiIndex.from_frame(rows[["image_id", "rad_id"]])
    contradicted = is_normal & reader.isin(reader[is_finding])
    safe_ids = {image_id for image_id in rows["image_id"].unique() if storage.is_safe_id(image_id)}
    corners = rows[list(_CORNERS)].to_numpy()
    x_min, y_min, x_max, y_max = corners.T
    unknown = (np.inf, np.inf)
    hw = {image_id: sizes.get(image_id, unknown) for image_id in rows["image_id"].unique()}
    height, width = np.array([hw[image_id] for image_id in rows["image_id"]]).T
    corner_text = "{x_min_text} {y_min_text} {x_max_text} {y_max_text}"
    checks = (
        (~rows["image_id"].isin(safe_ids), "image id {image_id!r} cannot be a file name"),
        (~rows["image_id"].isin(known_ids), "no usable image file for {image_id}"),
        (rows["rad_id"] == "", "no rad_id"),
        (rows["mismatch"], "class_id and class_name disagree or are unknown: {class_text}"),
        (rows["label"] == _UNKNOWN, "unknown class {class_text!r}"),
        (rows.duplicated(["image_id", "rad_id", "label", *(f"{c}_text" for c in _CORNERS)]), _DUPLICATE),
        (contradicted, _CONTRADICTED),
        (is_normal & ~rows["is_empty"] & ~(corners == NO_FINDING_BOX).all(1), f"No finding with a box {corner_text}"),
        (is_finding & ~np.isfinite(corners).all(1), f"coordinates {corner_text} are not four finite numbers"),
        (is_finding & ((x_min < 0) | (y_min < 0)), f"negative coordinate in {corner_text}"),
        (is_finding & (x_min >= x_max), "x_min {x_min_text} >= x_max {x_max_text}"),
        (is_finding & (y_min >= y_max), "y_min {y_min_text} >= y_max {y_max_text}"),
        (is_finding & ((x_min >= width) | (y_min >= height)), f"box {corner_text} lies outside the image"),
    )
    reasons = np.full(len(rows), "", object)
    for fails, template in checks:
        for at in np.flatnonzero(np.asarray(fails) & (reasons == "")):
            reasons[at] = template.format_map(dict(zip(rows.columns, rows.iloc[at], strict=True)))
    return reasons


def _usable_ids(rows: "pd.DataFrame", reasons: NDArray[np.object_]) -> set[str]:
    """Images with an accepted row, save those that are left without a finding only because one was refused."""
    accepted = reasons == ""
    found = set(rows.loc[accepted & (rows["label"] != NO_FINDING), "image_id"])
    lost = ~accepted & (rows["label"] != NO_FINDING) & (reasons != _DUPLICATE)
    return set(rows.loc[accepted, "image_id"]) - (set(rows.loc[lost, "image_id"]) - found)


def _refuse_unlabelled(train: "pd.DataFrame", rows: "pd.DataFrame", usable: set[str]) -> list[Reject]:
    out = train[~train["image_id"].isin(usable)]
    named = set(rows["image_id"])
    lost, unnamed = "its findings were all refused, and it is not normal", "train.csv has no row for this image"
    pairs = zip(out["image_id"], out["path"], strict=True)
    return [reject(path, 0, lost if image_id in named else unnamed) for image_id, path in pairs]


def _check_scale(images: "pd.DataFrame", readings: "pd.DataFrame", folder: str) -> None:
    """Refuses a resized mirror whose original sizes are unknown: its boxes are not in the files' own pixels.

    Single boxes beyond their image are left to whoever decodes it.
    """
    from vbd.data.images import read_size

    reach = readings.groupby("image_id", sort=True)[["x_max", "y_max"]].max()
    reach = reach.iloc[:: max(1, len(reach) // _SIZE_PROBES)][:_SIZE_PROBES]
    paths = dict(zip(images["image_id"], images["path"], strict=True))
    beyond = []
    for image_id, (x_max, y_max) in zip(reach.index, reach.to_numpy().tolist(), strict=True):
        hw = read_size(paths[image_id])
        if hw is not None and (x_max > hw[1] + 1 or y_max > hw[0] + 1):
            beyond.append(f"{paths[image_id]} is {hw[1]}x{hw[0]} pixels, train.csv has a box up to {x_max:g},{y_max:g}")
    if len(beyond) > len(reach) / 2:
        raise InputError(
            f"{beyond[0]}: the boxes are in the original's pixels; "
            f"put train_meta.csv (image_id,dim0,dim1 = original height, width) into {folder}"
        )


def _truth(folder: str, test_ids: set[str]) -> "tuple[pd.DataFrame | None, bytes]":
    """The test part's known findings, where there are any. A wrong row is fatal: no score may rest on a part."""
    file = storage.join(folder, "test_truth.csv")
    if not test_ids or not storage.exists(file):
        return None, b""
    data = storage.read_bytes(file)
    table = _read_csv(data, file=file).assign(rad_id=CONSENSUS)
    _need_columns(table, _CORNERS, file=file)
    rows = _parse_rows(table)
    reasons = _reasons(rows, known_ids=test_ids, sizes={})
    for at in np.flatnonzero(reasons != "")[:1]:
        raise InputError(f"{file}:{rows['line'].tolist()[at]}: {reasons[at]}; mend the row or remove the file")
    findings = rows[rows["label"] != NO_FINDING]
    return findings[list(TRUTH_COLUMNS)].reset_index(drop=True), data


def _sample_submission(folder: str, test: "pd.DataFrame") -> tuple[list[str], bytes, list[Reject]]:
    """The order of the test ids: that of sample_submission.csv, else sorted."""
    name = "sample_submission.csv"
    file = storage.join(folder, name)
    if not storage.exists(file):
        return sorted(test["image_id"]), b"", []
    data = storage.read_bytes(file)
    if not len(test) and len(data.splitlines()) <= 1:  # a data set without a test part
        return [], data, []
    table = _read_csv(data, file=file)
    if "image_id" not in table:
        raise InputError(f"{file}:1: no column 'image_id'")
    ids = table["image_id"].str.strip()
    missing = table[~ids.isin(set(test["image_id"]))]
    rejects = [
        reject(name, line, f"no usable image file for {image_id}")
        for image_id, line in zip(missing["image_id"], missing["line"], strict=True)
    ]
    return ids.drop_duplicates().tolist(), data, rejects
