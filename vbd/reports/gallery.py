"""Boxes drawn on images, for pages, contact sheets and the README."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from vbd import storage
from vbd.boxes import EMPTY, Boxes, as_boxes, iou_matrix, to_prepared
from vbd.data.prepared import PreparedDataset, open_dataset
from vbd.errors import InputError
from vbd.labels import name_of
from vbd.records import Truth

if TYPE_CHECKING:
    import pandas as pd
    from PIL.ImageDraw import ImageDraw

LineStyle = Literal["solid", "dashed", "dotted"]
RGB = NDArray[np.uint8]

# Bright on a dark film, and told apart by colour-blind people (Okabe and Ito 2008); the line style differs too.
LAYER_COLOURS: tuple[str, ...] = ("#56B4E9", "#E69F00", "#CC79A7", "#F0E442", "#009E73")
LAYER_STYLES: tuple[LineStyle, ...] = ("solid", "dashed", "dotted")
# Pixels drawn and left out along a line.
_PATTERN: dict[LineStyle, tuple[int, int]] = {"solid": (1, 0), "dashed": (9, 5), "dotted": (3, 4)}
_MARGIN = 6
_SAME_LESION_IOU = 0.2
_README_MAX_BYTES = 200_000


@dataclass(frozen=True)
class Layer:
    """Boxes of one origin: a reader, the fused truth, a detector."""

    boxes: Boxes  # (n, 4) in pixels of the image they are drawn on
    texts: Sequence[str]  # (n,) written at each box; "" writes nothing
    colour: str  # #rrggbb
    caption: str
    style: LineStyle = "solid"


# ------------------------------------------------------------------------------------------------------------- drawing


def draw(image: NDArray[np.uint8], layers: Sequence[Layer], *, zoom: float = 1, legend: bool = False) -> RGB:
    """A grey image (H, W) with boxes on it, as RGB (zoom * H, zoom * W, 3); later layers lie above earlier ones.

    `zoom` enlarges the image before anything is drawn, so that lines and letters stay sharp on small images. `legend`
    writes the captions of the layers into the lower left corner.
    """
    from PIL import Image, ImageDraw

    height, width = round(zoom * image.shape[0]), round(zoom * image.shape[1])
    picture = Image.fromarray(image).convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(picture)
    line = max(1, round(min(height, width) / 240))
    size = max(9, round(min(height, width) / 34))
    for layer in layers:
        for box in np.rint(layer.boxes * zoom).astype(int):
            _draw_box(pen, box.tolist(), layer, line=line, hw=(height, width))
    # All texts after all lines: a word stays readable where boxes overlap.
    taken: list[tuple[float, ...]] = []
    for layer in layers:
        for box, text in zip(np.rint(layer.boxes * zoom).astype(int), layer.texts, strict=True):
            if text:
                taken.append(
                    _write_label(pen, text, box.tolist(), layer.colour, size=size, hw=(height, width), taken=taken)
                )
    if legend:
        _write_legend(pen, layers, size=size, height=height)
    return np.asarray(picture)


def _draw_box(pen: "ImageDraw", box: list[int], layer: Layer, *, line: int, hw: tuple[int, int]) -> None:
    height, width = hw
    # The far edge is one past the last pixel of the box; a box at the border keeps its line inside the image.
    x0, y0 = max(0, box[0]), max(0, box[1])
    x1, y1 = max(x0, min(width, box[2]) - 1), max(y0, min(height, box[3]) - 1)
    on, off = (length * line for length in _PATTERN[layer.style])
    for start in range(x0, x1 + 1, on + off):
        stop = min(start + on - 1, x1)
        pen.rectangle((start, y0, stop, min(y0 + line - 1, y1)), fill=layer.colour)
        pen.rectangle((start, max(y1 - line + 1, y0), stop, y1), fill=layer.colour)
    for start in range(y0, y1 + 1, on + off):
        stop = min(start + on - 1, y1)
        pen.rectangle((x0, start, min(x0 + line - 1, x1), stop), fill=layer.colour)
        pen.rectangle((max(x1 - line + 1, x0), start, x1, stop), fill=layer.colour)


def _write_label(
    pen: "ImageDraw",
    text: str,
    box: list[int],
    colour: str,
    *,
    size: int,
    hw: tuple[int, int],
    taken: Sequence[tuple[float, ...]],
) -> tuple[float, ...]:
    """Writes a box's text where no other text stands, if such a place is near; returns the place it took."""
    font = _font(size)
    left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
    wide, high = right - left + 4, bottom - top + 4
    places = []
    for y in (box[1] - high, box[3] + 1, box[1] + 2, box[3] - high - 2):
        for x in (box[0], box[2] - wide):
            x_in = min(max(0, x), max(0, hw[1] - wide))
            y_in = min(max(0, y), max(0, hw[0] - high))
            places.append((x_in, y_in, x_in + wide, y_in + high))
    place = next((p for p in places if not any(_overlap(p, other) for other in taken)), places[0])
    pen.rectangle(place, fill="#000000")
    pen.text((place[0] + 2 - left, place[1] + 2 - top), text, fill=colour, font=font)
    return place


def _overlap(one: Sequence[float], other: Sequence[float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _write_legend(pen: "ImageDraw", layers: Sequence[Layer], *, size: int, height: int) -> None:
    font, row = _font(size), size + 6
    top = height - row * len(layers) - 4
    widest = max((pen.textlength(layer.caption, font=font) for layer in layers), default=0)
    pen.rectangle((0, top - 4, widest + 46, height), fill="#000000")
    for place, layer in enumerate(layers):
        y = top + row * place
        on, off = (length * 2 for length in _PATTERN[layer.style])
        for x in range(6, 34, on + off):
            pen.rectangle((x, y + row // 2 - 2, min(x + on - 1, 34), y + row // 2), fill=layer.colour)
        pen.text((40, y), layer.caption, fill=layer.colour, font=font)


def contact_sheet(images: Sequence[NDArray[np.uint8]], captions: Sequence[str], columns: int) -> RGB:
    """Images, grey (H, W) or RGB (H, W, 3), in rows of `columns` on white, each above its caption; RGB (H, W, 3)."""
    from PIL import Image, ImageDraw

    if not images:
        return np.full((1, 1, 3), 255, np.uint8)
    high = max(image.shape[0] for image in images)
    wide = max(image.shape[1] for image in images)
    size = max(10, wide // 30)
    font, footer = _font(size), size + 2 * _MARGIN
    rows = -(-len(images) // columns)
    extent = (columns * (wide + _MARGIN) + _MARGIN, rows * (high + footer) + _MARGIN)
    sheet = Image.new("RGB", extent, "white")
    pen = ImageDraw.Draw(sheet)
    for place, (image, caption) in enumerate(zip(images, captions, strict=True)):
        row, column = divmod(place, columns)
        x, y = _MARGIN + column * (wide + _MARGIN), _MARGIN + row * (high + footer)
        sheet.paste(Image.fromarray(image).convert("RGB"), (x, y))
        pen.text((x, y + image.shape[0] + _MARGIN // 2), caption, fill="#1a1a1a", font=font)
    return np.asarray(sheet)


def _font(size: int):  # type: ignore[no-untyped-def]  # PIL has two font classes and no common name for them
    from PIL import ImageFont

    return ImageFont.load_default(size)


def png(image: NDArray[np.uint8], *, greys: int = 128) -> bytes:
    """A picture as PNG; an RGB one keeps `greys` greys and shades of the layers' colours, a third of the size."""
    from PIL import Image

    picture = Image.fromarray(image)
    if image.ndim == 3:
        # A palette of our own: one computed from the picture spends itself on noise and loses greys or lines.
        palette = Image.new("P", (1, 1))
        palette.putpalette(_palette(greys).tobytes())
        picture = picture.quantize(palette=palette, dither=Image.Dither.NONE)
    stream = io.BytesIO()
    picture.save(stream, "PNG", optimize=True)
    return stream.getvalue()


def _palette(greys: int) -> RGB:
    """Greys, and each layer's colour in shades down to black as the smoothed edges of letters have them: (n, 3)."""
    ramp = np.repeat(np.linspace(0, 255, greys)[:, None], 3, axis=1)
    colours = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in LAYER_COLOURS])
    shades = colours[:, None] * np.linspace(0.2, 1, 8)[:, None]
    return np.rint(np.concatenate([ramp, shades.reshape(-1, 3)])).astype(np.uint8)


def data_uri(image: NDArray[np.uint8]) -> str:
    """A picture as the `src` of an `img` element."""
    return "data:image/png;base64," + base64.b64encode(png(image)).decode()


# ----------------------------------------------------------------------------------------------------- prepared images


def read_image(dataset: PreparedDataset, image_id: str) -> NDArray[np.uint8]:
    """A prepared image, grey (S, S); raises InputError when it is missing or broken."""
    from PIL import Image, UnidentifiedImageError

    location = storage.join(dataset.location, "images", f"{image_id}.png")
    data = storage.read_bytes(location)
    try:
        return np.asarray(Image.open(io.BytesIO(data)).convert("L"))
    except (UnidentifiedImageError, OSError) as error:
        raise InputError(f"{location}: not a readable image ({error}); prepare the dataset again") from None


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
                caption=f"reader {reader} ({len(rows)} boxes)",
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
