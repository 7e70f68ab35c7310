import io

import numpy as np
import pytest
from PIL import Image

from vbd.boxes import EMPTY, as_boxes
from vbd.drawing import LAYER_COLOURS, LAYER_STYLES, Layer, contact_sheet, draw, png

GREY = np.full((60, 80), 100, np.uint8)
BLUE = (0x56, 0xB4, 0xE9)


def layer(style: str = "solid", text: str = "") -> Layer:
    return Layer(as_boxes([[10, 20, 50, 45]]), [text], "#56B4E9", "reader", style)  # type: ignore[arg-type]


def test_a_box_is_drawn_on_its_edge_pixels_only() -> None:
    drawn = draw(GREY, [layer()])
    changed = (drawn != 100).any(axis=2)
    wanted = np.zeros((60, 80), bool)
    wanted[20:45, 10:50] = True
    wanted[21:44, 11:49] = False
    np.testing.assert_array_equal(changed, wanted)
    assert (drawn[wanted] == BLUE).all()
    assert (GREY == 100).all()


@pytest.mark.parametrize("style", ["dashed", "dotted"])
def test_a_broken_line_lies_on_the_same_edge_with_gaps(style: str) -> None:
    solid = (draw(GREY, [layer()]) != 100).any(axis=2)
    broken = (draw(GREY, [layer(style)]) != 100).any(axis=2)
    assert not (broken & ~solid).any()
    assert 0.2 < broken.sum() / solid.sum() < 0.95


def test_no_boxes_leave_the_image_as_it_is() -> None:
    drawn = draw(GREY, [Layer(EMPTY, [], "#56B4E9", "reader")])
    assert drawn.shape == (60, 80, 3)
    assert (drawn == 100).all()
    assert (draw(GREY, []) == 100).all()


def test_zoom_moves_the_box_with_the_image() -> None:
    drawn = draw(GREY, [layer()], zoom=3)
    assert drawn.shape == (180, 240, 3)
    assert (drawn[60, 30:150] == BLUE).all()
    assert (drawn[59] == 100).all()


@pytest.mark.parametrize(
    "box", [[-20, -20, 500, 500], [70, 50, 80, 60], [79, 59, 200, 200], [0, 0, 1, 1], [5, 5, 5, 5]]
)
def test_a_box_at_the_border_keeps_inside(box: list[float]) -> None:
    assert (draw(GREY, [Layer(as_boxes([box]), ["Cardiomegaly"], "#56B4E9", "r")], legend=True) != 100).any()


def test_a_text_is_written_near_its_box() -> None:
    with_text, without = draw(GREY, [layer(text="ILD")]), draw(GREY, [layer()])
    rows, columns = np.nonzero((with_text != without).any(axis=2))
    assert len(rows)
    assert rows.max() <= 21
    assert 10 <= columns.min() <= columns.max() <= 50


def test_a_contact_sheet_holds_every_image() -> None:
    images = [np.full((20, 30), value, np.uint8) for value in (10, 20, 30)]
    sheet = contact_sheet(images, ["one", "two", "three"], 2)
    assert [(sheet == value).all(axis=2).sum() >= 20 * 30 for value in (10, 20, 30)] == [True] * 3
    assert sheet.shape[1] > 2 * 30
    assert contact_sheet([], [], 3).shape == (1, 1, 3)


def test_a_png_keeps_the_colours_of_the_lines() -> None:
    noisy = np.random.default_rng(0).integers(0, 255, (60, 80)).astype(np.uint8)
    drawn = draw(noisy, [layer()])
    read = np.asarray(Image.open(io.BytesIO(png(drawn))).convert("RGB")).astype(int)
    assert (read[20, 10:50] == BLUE).all()
    assert np.abs(read - drawn).max() <= 4


def test_a_colour_image_keeps_its_colours_beside_the_boxes() -> None:
    colour = np.dstack([GREY, GREY // 2, GREY * 2])
    drawn = draw(colour, [layer()])
    assert (drawn[0, 0] == (100, 50, 200)).all()
    assert (drawn[20, 10:50] == BLUE).all()
    assert (drawn[30, 30] == (100, 50, 200)).all()
    assert draw(colour, [], zoom=2).shape == (120, 160, 3)


def test_a_contact_sheet_takes_grey_and_colour_images_of_any_size() -> None:
    sheet = contact_sheet([np.full((20, 30), 10, np.uint8), np.full((40, 10, 3), (200, 0, 0), np.uint8)], ["a", "b"], 2)
    assert (sheet == 10).all(axis=2).sum() >= 20 * 30
    assert (sheet == (200, 0, 0)).all(axis=2).sum() == 40 * 10


def test_a_png_keeps_every_colour_when_it_is_asked_to() -> None:
    colour = np.random.default_rng(0).integers(0, 255, (20, 30, 3)).astype(np.uint8)
    read = np.asarray(Image.open(io.BytesIO(png(colour, greys=None))))
    np.testing.assert_array_equal(read, colour)
    grey = np.asarray(Image.open(io.BytesIO(png(GREY))))
    np.testing.assert_array_equal(grey, GREY)


def test_layers_differ_in_colour_and_in_line() -> None:
    assert len(set(LAYER_COLOURS)) == len(LAYER_COLOURS)
    assert set(LAYER_STYLES) == {"solid", "dashed", "dotted"}
