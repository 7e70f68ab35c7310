"""Pictures of a prepared dataset: its images, the boxes of their readers and the fused ones, for pages and the README."""

import base64
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vbd import storage
from vbd.boxes import EMPTY, as_boxes, iou_matrix, to_prepared
from vbd.data.images.headers import ImageError
from vbd.data.images.prepare import decode_image, suffix_of
from vbd.data.prepared import PreparedDataset, open_dataset
from vbd.drawing import LAYER_COLOURS, LAYER_STYLES, Layer, contact_sheet, draw, png
from vbd.errors import InputError
from vbd.labels import name_of
from vbd.records import Truth

if TYPE_CHECKING:
    import pandas as pd

_SAME_LESION_IOU = 0.2
_README_MAX_BYTES = 200_000


def data_uri(image: NDArray[np.uint8]) -> str:
    """A picture as the `src` of an `img` element."""
    return "data:image/png;base64," + base64.b64encode(png(image)).decode()


def read_image(dataset: PreparedDataset, image_id: str) -> NDArray[np.uint8]:
    """A prepared image, grey (S, S); of a composed one the film. Raises InputError when it is missing or broken."""
    name = f"{image_id}{suffix_of(dataset.options.image_format)}"
    location = storage.join(dataset.location, "images", name)
    try:
        image = decode_image(storage.read_bytes(location))
    except ImageError as error:
        raise InputError(f"{location}: {error}; prepare the dataset again") from None
    return image if image.ndim == 2 else np.ascontiguousarray(image[..., 0])


def film_of(dataset: PreparedDataset, image_id: str) -> tuple[NDArray[np.uint8], str]:
    """A prepared image, or an empty one with the reason."""
    try:
        return read_image(dataset, image_id), ""
    except InputError as error:
        side = dataset.options.image_size
        return np.full((side, side), 40, np.uint8), f" The image could not be read: {error}."


def reader_layers(
    dataset: PreparedDataset, readings: "pd.DataFrame", *, readers: Sequence[str], original_hw: tuple[int, int]
) -> list[Layer]:
    """One layer for each reader of an image, in the readers' order; `readings` are that image's rows.

    A lesion is named once: at the box of the first reader who drew it.
    """
    layers: list[Layer] = []
    named, named_labels = EMPTY, np.zeros(0, np.int64)
    for place, reader in enumerate(readers):
        rows = readings[readings["rad_id"] == reader]
        boxes, labels = as_boxes(rows[["x_min", "y_min", "x_max", "y_max"]]), rows["label"].to_numpy(np.int64)
        is_same = (iou_matrix(boxes, named) > _SAME_LESION_IOU) & (labels[:, None] == named_labels)
        is_new = ~is_same.any(axis=1)
        named, named_labels = np.concatenate([named, boxes]), np.concatenate([named_labels, labels])
        layers.append(
            Layer(
                boxes=to_prepared(boxes, original_hw, dataset.options.image_size, dataset.options.resize),
                texts=[name_of(int(label)) if new else "" for label, new in zip(labels, is_new, strict=True)],
                colour=LAYER_COLOURS[place % len(LAYER_COLOURS)],
                caption=f"reader {reader} ({len(rows)} box{'' if len(rows) == 1 else 'es'})",
                style=LAYER_STYLES[place % len(LAYER_STYLES)],
            )
        )
    return layers


def truth_layer(dataset: PreparedDataset, truth: Truth, *, original_hw: tuple[int, int], num_readers: int) -> Layer:
    """The fused boxes of an image, each with how many of its readers drew it."""
    return Layer(
        boxes=to_prepared(truth.boxes, original_hw, dataset.options.image_size, dataset.options.resize),
        texts=[
            f"{name_of(int(label))} {agreed}/{num_readers}"
            for label, agreed in zip(truth.labels, truth.readers, strict=True)
        ],
        colour=LAYER_COLOURS[3],
        caption="fused boxes",
    )


# -------------------------------------------------------------------------------------------------------------- README


def readme_picture(dataset_location: str, output: str) -> str:
    """One image with each reader's boxes on the left and the fused boxes on the right, as a PNG under 200 kB.

    Returns the id of the image that was chosen.
    """
    from vbd.reports.census import read_census

    census = read_census(open_dataset(dataset_location))
    truth = photogenic(census.truths)
    hw, readers = census.original_hw[truth.image_id], census.readers_of(truth.image_id)
    image = read_image(census.dataset, truth.image_id)
    left = reader_layers(census.dataset, census.readings_of(truth.image_id), readers=readers, original_hw=hw)
    # The left half is about the spread of the boxes; the right half names them.
    unnamed = [Layer(layer.boxes, [""] * len(layer.texts), layer.colour, layer.caption, layer.style) for layer in left]
    right = [truth_layer(census.dataset, truth, original_hw=hw, num_readers=len(readers))]
    note = "SYNTHETIC chest phantom" if census.dataset.synthetic else f"image {truth.image_id}"
    captions = [
        f"{note}: what {len(readers)} readers drew",
        f"{'SYNTHETIC: ' if census.dataset.synthetic else ''}the boxes fused, and how many readers agreed",
    ]
    for side in (512, 448, 384, 320, 256):
        zoom = side / image.shape[0]
        panels = [draw(image, unnamed, zoom=zoom, legend=True), draw(image, right, zoom=zoom)]
        data = png(contact_sheet(panels, captions, 2))
        if len(data) < _README_MAX_BYTES:
            break
    storage.write_bytes(output, data)
    return truth.image_id


def photogenic(truths: Sequence[Truth]) -> Truth:
    """The image with most classes on which readers agree that is not crowded; the same one on every machine."""

    def merit(truth: Truth) -> tuple[float, int, str]:
        agreed = truth.readers >= 2
        classes = len(set(truth.labels[agreed].tolist()))
        return (-classes + max(0, len(truth.labels) - 7), int((~agreed).sum()), truth.image_id)

    abnormal = [truth for truth in truths if len(truth.labels)]
    if not abnormal:
        raise InputError("no image has a finding; a picture needs one")
    return min(abnormal, key=merit)
