"""Raw files to shards of prepared images, spread over the cluster by Ray Data.

Ray carries file names in and small numbers out; pixels never enter the object store. A worker decodes the images of one
shard, writes them, then the shard, and last the shard's receipt: which raw files it was made of. A later run compares the
receipts with a listing of the raw files, and does again only what is missing or has changed. Which images form a shard
follows from the sorted image ids, so the bytes are the same whatever the number of workers.
"""

import contextlib
import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from vbd import storage
from vbd.cluster.tasks import count_in_ray, run_tasks
from vbd.config import PrepareConfig, checked
from vbd.config.checked import Count, Rule, SafeName
from vbd.errors import InputError, StoreError
from vbd.hashing import short_hash
from vbd.storage import FileFacts

if TYPE_CHECKING:
    import pandas as pd

# Another number when the same file and options would give other pixels than before.
_PIXELS_VERSION = 2
_PIXEL_OPTIONS = ("image_size", "resize", "image_format", "channels", "duplicates")


def _is_hex(text: str) -> bool:
    return re.fullmatch("([0-9a-f]{2})*", text) is not None


@dataclass(frozen=True)
class Receipt:
    """What became of one raw file."""

    image_id: SafeName
    size: Count  # of the raw file, bytes
    mtime_ns: int  # of the raw file: it only spares reading files that did not change
    sha256: str  # of the raw file
    height: Count = 0  # of the raw image
    width: Count = 0
    perceptual_hash: Annotated[str, Rule("hexadecimal digits", _is_hex)] = (
        ""  # hex; empty when none was asked for, or the image is blank
    )
    prepared_size: int = 0  # bytes
    prepared_sha256: str = ""
    refused: str = ""  # why there is no prepared image

    @property
    def original_hw(self) -> tuple[int, int]:
        """Height and width of the raw image."""
        return self.height, self.width


@dataclass(frozen=True)
class _Receipts:
    """What `receipts/<shard>.json` holds."""

    key: str
    shard_size: Count
    images: tuple[Receipt, ...]


@dataclass(frozen=True)
class Shard:
    """A part of the images, in order of their ids."""

    name: str
    rows: list[dict[str, Any]]  # image_id, path, size, mtime_ns


def plan_shards(images: "pd.DataFrame", shard_size: int) -> list[Shard]:
    """`Source.images` cut into shards: training images by id, then test images by id."""
    ordered = images.assign(is_test=images["split"] == "test").sort_values(["is_test", "image_id"])
    rows = ordered[["image_id", "path", "size", "mtime_ns"]].to_dict("records")
    return [
        Shard(
            f"shard-{number:05d}",
            [{str(key): value for key, value in row.items()} for row in rows[start : start + shard_size]],
        )
        for number, start in enumerate(range(0, len(rows), shard_size))
    ]


def pixel_key(config: PrepareConfig) -> str:
    """What the prepared images depend on besides the raw files."""
    options = {name: getattr(config, name) for name in _PIXEL_OPTIONS}
    return short_hash(json.dumps([_PIXELS_VERSION, options], sort_keys=True))


@dataclass(frozen=True)
class Found:
    """What an earlier run left in the folder of a dataset."""

    receipts: Mapping[str, tuple[int, list[Receipt]]]  # by shard: size of the shard's file, and its images
    shards: Mapping[str, FileFacts]
    images: Mapping[str, FileFacts]
    image_ids: frozenset[str] = frozenset()  # of all receipts, those of other options too

    @property
    def by_image(self) -> dict[str, Receipt]:
        """Every image's receipt."""
        return {item.image_id: item for _, items in self.receipts.values() for item in items}


def look_around(output: str, key: str) -> Found:
    """Reads what is there of a dataset whose pixels were made with these options; a broken receipt counts as none."""
    folder = storage.join(output, "receipts")
    names = [name for name in storage.list_files(folder) if name.endswith(".json")]
    contents = storage.read_many([storage.join(folder, name) for name in names])
    read = {name.removesuffix(".json"): _parsed(content, key) for name, content in zip(names, contents, strict=True)}
    receipts = {name: told for name, told in read.items() if told is not None}
    shards, images = (storage.list_files(storage.join(output, part)) for part in ("shards", "images"))
    return Found(receipts, shards, images, frozenset(image_id for content in contents for image_id in _ids(content)))


def _ids(content: bytes) -> list[str]:
    """The images that a receipt names, whatever their options; none when it is broken."""
    try:
        return [str(item["image_id"]) for item in json.loads(content)["images"]]
    except (ValueError, TypeError, KeyError):
        return []


def _parsed(content: bytes, key: str) -> tuple[int, list[Receipt]] | None:
    """A receipt's shard size and images; None when it is broken or of other options."""
    with contextlib.suppress(InputError):  # half written or edited: as if there were none
        told = checked.parse(content, _Receipts, where="receipt", again="")
        if told.key == key:
            return told.shard_size, list(told.images)
    return None


def stale_shards(shards: Sequence[Shard], found: Found, suffix: str, *, retry: bool = False) -> list[Shard]:
    """The shards that are missing, broken, or made of other files than those that lie there now.

    With `retry` also those that hold an image which was refused.
    """
    return [shard for shard in shards if not _is_fresh(shard, found, suffix, retry=retry)]


def _is_fresh(shard: Shard, found: Found, suffix: str, *, retry: bool) -> bool:
    size, items = found.receipts.get(shard.name, (0, []))
    if f"{shard.name}.parquet" not in found.shards or found.shards[f"{shard.name}.parquet"].size != size:
        return False
    told = [(item.image_id, item.size, item.mtime_ns) for item in items]
    # A store that tells no times (0) leaves no other way than to read the file again.
    if told != [(row["image_id"], row["size"], row["mtime_ns"]) for row in shard.rows] or not all(t[2] for t in told):
        return False
    return all((item.refused and not retry) or _is_there(item, found, suffix) for item in items)


def _is_there(item: Receipt, found: Found, suffix: str) -> bool:
    if item.refused:
        return False
    file = found.images.get(f"{item.image_id}{suffix}")
    return file is not None and file.size == item.prepared_size


def write_shards(shards: Sequence[Shard], found: Found, output: str, config: PrepareConfig, *, suffix: str) -> None:
    """Writes the given shards with their images and receipts; needs a Ray connection when there are any."""
    known = found.by_image
    tasks = []
    for shard in shards:
        usable = [known.get(row["image_id"]) for row in shard.rows]
        # What was refused is tried again: the fault may have been this machine's.
        reusable = [dataclasses.asdict(item) for item in usable if item and _is_there(item, found, suffix)]
        tasks.append({"shard": shard.name, "rows": json.dumps(shard.rows), "known": json.dumps(reusable)})
    total = sum(len(shard.rows) for shard in shards)
    place = {"output": storage.absolute(output), "suffix": suffix}
    run_tasks(tasks, _write_shard, title="prepare", total=total, config=config, **place)


# ------------------------------------------------------------------------------------------------------------- workers


def _write_shard(task: dict[str, Any], *, output: str, config: PrepareConfig, suffix: str) -> dict[str, int]:
    """Runs in a Ray worker: the images of one shard, then the shard, then its receipt."""
    import cv2
    import pyarrow as pa

    cv2.setNumThreads(0)  # one core per Ray task
    known = {item["image_id"]: Receipt(**item) for item in json.loads(task["known"])}
    items: list[Receipt] = []
    pixels: list[bytes] = []
    for row in json.loads(task["rows"]):
        item, data = _prepare_one(row, known.get(row["image_id"]), output, config, suffix)
        items.append(item)
        pixels += [data] if data is not None else []
    kept = [item for item in items if not item.refused]
    table = pa.table(
        {
            "image_id": pa.array([item.image_id for item in kept], pa.string()),
            "image": pa.array(pixels, pa.binary()),
            "original_hw": pa.array([list(item.original_hw) for item in kept], pa.list_(pa.int64(), 2)),
        }
    )
    file = storage.join(output, "shards", f"{task['shard']}.parquet")
    size = storage.write_table(file, table, encoded=("image",))
    told = {"key": pixel_key(config), "shard_size": size, "images": [dataclasses.asdict(item) for item in items]}
    storage.write_json(storage.join(output, "receipts", f"{task['shard']}.json"), told, compact=True)
    refused = len(items) - len(kept)
    count_in_ray("vbd_images_prepared", "Raw images made ready, or found unchanged, by jobs/prepare.py", len(kept))
    count_in_ray("vbd_images_refused", "Raw images that jobs/prepare.py could not use", refused)
    return {"images": len(items), "refused": refused}


def _prepare_one(
    row: dict[str, Any], known: Receipt | None, output: str, config: PrepareConfig, suffix: str
) -> tuple[Receipt, bytes | None]:
    """One image's receipt, and its prepared file unless it was refused."""
    from vbd.data.images.prepare import prepare_image

    facts = {name: row[name] for name in ("image_id", "size", "mtime_ns")}
    target = storage.join(output, "images", f"{row['image_id']}{suffix}")
    is_same_file = (
        known is not None and row["mtime_ns"] and (known.size, known.mtime_ns) == (row["size"], row["mtime_ns"])
    )
    raw = b"" if is_same_file else storage.read_bytes(row["path"])
    digest = known.sha256 if known is not None and is_same_file else hashlib.sha256(raw).hexdigest()
    if known is not None and known.sha256 == digest:
        data = _verified(target, known)
        if data is not None:
            return dataclasses.replace(known, **facts), data
    raw = raw or storage.read_bytes(row["path"])
    try:
        made = prepare_image(raw, name=row["path"], config=config, with_hash=config.duplicates == "near")
    except StoreError:
        raise  # the file may be fine: the job stops here, and goes on when it is run again
    except InputError as error:
        return Receipt(**facts, sha256=digest, refused=str(error).removeprefix(f"{row['path']}: ")), None
    storage.write_bytes(target, made.data)
    height, width = made.original_hw
    item = Receipt(
        **facts,
        sha256=digest,
        height=height,
        width=width,
        perceptual_hash=(made.perceptual_hash or b"").hex(),
        prepared_size=len(made.data),
        prepared_sha256=digest if made.data is raw else hashlib.sha256(made.data).hexdigest(),
    )
    return item, made.data


def _verified(location: str, item: Receipt) -> bytes | None:
    """A prepared file, if it is there and is what the receipt says."""
    with contextlib.suppress(InputError):
        data = storage.read_bytes(location)
        if hashlib.sha256(data).hexdigest() == item.prepared_sha256:
            return data
    return None


# -------------------------------------------------------------------------------------------------------------- result


def read_receipts(output: str, shards: Sequence[Shard], key: str) -> list[Receipt]:
    """The receipts of all images of a finished run, in the shards' order.

    Raises InputError when they are not of these images and options: another run has written into the same folder.
    """
    contents = storage.read_many([storage.join(output, "receipts", f"{shard.name}.json") for shard in shards])
    receipts: list[Receipt] = []
    for shard, content in zip(shards, contents, strict=True):
        _, items = _parsed(content, key) or (0, [])
        if [item.image_id for item in items] != [row["image_id"] for row in shard.rows]:
            raise InputError(f"{output}: another run writes into this folder; stop it, and run this command again")
        receipts += items
    return receipts
