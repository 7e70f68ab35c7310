"""Boxes drawn on images and images put on one sheet: pictures as arrays, and as PNG; knows no dataset."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from vbd.boxes import Boxes
from vbd.storage.outputs import PICTURE_MARK

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw

LineStyle = Literal["solid", "dashed", "dotted"]
RGB = NDArray[np.uint8]

# Bright on a dark film, and told apart by colour-blind people (Okabe and Ito 2008); the line style differs too.
LAYER_COLOURS: tuple[str, ...] = ("#56B4E9", "#E69F00", "#CC79A7", "#F0E442", "#009E73")
LAYER_STYLES: tuple[LineStyle, ...] = ("solid", "dashed", "dotted")
# Pixels drawn and left out along a line.
_PATTERN: dict[LineStyle, tuple[int, int]] = {"solid": (1, 0), "dashed": (9, 5), "dotted": (3, 4)}
_MARGIN = 6


@dataclass(frozen=True)
class Layer:
    """Boxes of one origin: a reader, the fused truth, a detector."""

    boxes: Boxes  # (n, 4) in pixels of the image they are drawn on
    texts: Sequence[str]  # (n,) written at each box; "" writes nothing
    colour: str  # #rrggbb
    caption: str
    style: LineStyle = "solid"


def draw(image: NDArray[np.uint8], layers: Sequence[Layer], *, zoom: float = 1, legend: bool = False) -> RGB:
    """An image, grey (H, W) or RGB (H, W, 3), with boxes on it, as RGB (zoom * H, zoom * W, 3).

    Later layers lie above earlier ones. `zoom` enlarges the image before anything is drawn, so that lines and letters
    stay sharp on small images. `legend` writes the captions of the layers into the lower left corner.
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


def png(image: NDArray[np.uint8], *, greys: int | None = 128) -> bytes:
    """A picture, (H, W) or (H, W, 3), as PNG.

    An RGB one keeps `greys` greys and shades of the layers' colours, at a third of the size; None keeps every colour.
    """
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    picture, mark = Image.fromarray(image), PngInfo()
    mark.add_text(*PICTURE_MARK)
    if image.ndim == 3 and greys is not None:
        # A palette of our own: one computed from the picture spends itself on noise and loses greys or lines.
        palette = Image.new("P", (1, 1))
        palette.putpalette(_palette(greys).tobytes())
        picture = picture.quantize(palette=palette, dither=Image.Dither.NONE)
    stream = io.BytesIO()
    picture.save(stream, "PNG", optimize=True, pnginfo=mark)
    return stream.getvalue()


def _palette(greys: int) -> RGB:
    """Greys, and each layer's colour in shades down to black as the smoothed edges of letters have them: (n, 3)."""
    ramp = np.repeat(np.linspace(0, 255, greys)[:, None], 3, axis=1)
    colours = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in LAYER_COLOURS])
    shades = colours[:, None] * np.linspace(0.2, 1, 8)[:, None]
    return np.rint(np.concatenate([ramp, shades.reshape(-1, 3)])).astype(np.uint8)
