"""The images that detectors are asked about, and the square pixels that each detector wants of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vbd import storage
from vbd.config import PrepareConfig
from vbd.data.images.prepare import decode_image, prepare_image, resize_square, suffix_of
from vbd.data.prepared import Part, PreparedDataset, image_sizes
from vbd.data.rejects import Reject, reject
from vbd.data.sources.tables import IMAGE_SUFFIXES
from vbd.errors import InputError, StoreError

# An image to look at: `image_id`, `path`, the original's `height` and `width`, `channels` and `resize` of the dataset. Raw files
# have zeros and empty texts there; `size` and `mtime_ns` tell whether one was replaced since.
Item = dict[str, Any]


@dataclass(frozen=True)
class Pixels:
    """A way to make square pixels: of a raw file by `config`, and of what is prepared by its last resizing alone."""

    config: PrepareConfig
    image_size: int


@dataclass(frozen=True)
class DecodedPart:
    """The images of a part that could be read, in its order, in every size that is wanted."""

    places: list[int]  # of these images in the part
    original_hw: list[tuple[int, int]]
    squares: list[NDArray[np.uint8]]  # one for each wanted Pixels: (n, S, S), or (n, S, S, 3) when composed
    rejects: list[Reject]


def images_of_part(dataset: PreparedDataset, part: Part) -> list[Item]:
    """The images of a prepared dataset, as items for `predict`."""
    suffix = suffix_of(dataset.options.image_format)
    return [
        {
            "image_id": image_id,
            "path": storage.join(dataset.location, "images", f"{image_id}{suffix}"),
            "height": hw[0],
            "width": hw[1],
            "channels": dataset.options.channels,
            "resize": dataset.options.resize,
        }
        for image_id, hw in image_sizes(dataset, part).items()
    ]


def images_in_folder(folder: str) -> list[Item]:
    """The DICOM, PNG and JPEG files in a folder and below it, as items for `predict`; raises InputError when there are none.

    A file without a suffix, or named by a DICOM UID, may be a DICOM too, as archives export them. An image is called by its
    name without suffix, after the folders it lies in.
    """
    files = {name: facts for name, facts in storage.list_files(folder, recursive=True).items() if _may_be_image(name)}
    if not files:
        raise InputError(f"{folder}: no images here; want files that end in {', '.join(IMAGE_SUFFIXES)}")
    root = storage.absolute(folder)
    items: dict[str, Item] = {}
    for name in sorted(files):
        image_id = str(PurePosixPath(name).with_suffix("")) if _suffix(name) else name
        if image_id in items:
            raise InputError(f"{folder}: two images are called {image_id}; their detections could not be told apart")
        items[image_id] = {
            "image_id": image_id,
            "path": storage.join(root, name),
            "height": 0,
            "width": 0,
            "channels": "",
            "resize": "",
            "size": files[name].size,
            "mtime_ns": files[name].mtime_ns,
        }
    return list(items.values())


def _suffix(name: str) -> str:
    """In lower case; the last number of a DICOM UID is none."""
    suffix = PurePosixPath(name).suffix.lower()
    return "" if suffix[1:].isdecimal() else suffix


def _may_be_image(name: str) -> bool:
    path = PurePosixPath(name)
    if any(part.startswith(".") for part in path.parts) or path.name == "DICOMDIR":
        return False
    return _suffix(name) in ("", *IMAGE_SUFFIXES)


def is_raw(item: Item) -> bool:
    """Whether an item is a raw file, and no image of a prepared dataset."""
    return item["height"] == 0


def read_item(item: Item) -> bytes:
    """An image's bytes; raises InputError."""
    return storage.read_bytes(item["path"])


def decode_items(items: Sequence[Item], wanted: Sequence[Pixels]) -> DecodedPart:
    """Reads and decodes each image once. One that is no image becomes a reject; raises StoreError for a store out of reach."""
    places, sizes, rejects = list[int](), list[tuple[int, int]](), list[Reject]()
    squares: list[list[NDArray[np.uint8]]] = [[] for _ in wanted]
    for place, item in enumerate(items):
        try:
            found, hw = square_images(read_item(item), item, wanted)
        except InputError as error:
            if isinstance(error, StoreError) and not storage.is_local(item["path"]):
                raise
            rejects.append(reject(item["path"], 0, str(error).removeprefix(f"{item['path']}: ")))
            continue
        places.append(place)
        sizes.append(hw)
        for images, image in zip(squares, found, strict=True):
            images.append(image)
    stacked = [np.stack(images) if images else np.zeros((0, 0, 0), np.uint8) for images in squares]
    return DecodedPart(places, sizes, stacked, rejects)


def square_images(data: bytes, item: Item, wanted: Sequence[Pixels]) -> tuple[list[NDArray[np.uint8]], tuple[int, int]]:
    """uint8 (S, S) or (S, S, 3) for each wanted Pixels and the original (height, width); raises ImageError.

    A raw file takes the whole way of a prepared one, so that it gives the very same pixels.
    """
    hw = item["height"], item["width"]
    pictures: dict[PrepareConfig | None, NDArray[np.uint8]] = {}
    found = []
    for pixels in wanted:
        key = pixels.config if is_raw(item) else None
        if key not in pictures:
            picture = data
            if key is not None:
                made = prepare_image(data, name=item["path"], config=key, with_hash=False)
                picture, hw = made.data, made.original_hw
            pictures[key] = decode_image(picture)
        found.append(resize_square(pictures[key], pixels.image_size))
    return found, hw
