"""From a raw file to its prepared image and back to pixels; the ways of DICOM are in test_images_dicom.py."""

import io
from dataclasses import replace
from typing import Any, get_args

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.data.films import chunk, claims, dicom, jpeg, pattern, png, png_of, scanlines, smooth
from vbd import boxes
from vbd.augment.intensity import clahe
from vbd.config import ImageFormat, PrepareConfig
from vbd.data.images import headers as images_containers
from vbd.data.images.duplicates import perceptual_hash
from vbd.data.images.headers import ImageError
from vbd.data.images.prepare import (
    compose,
    decode_image,
    encode_image,
    prepare_image,
    read_gray,
    read_size,
    resize_square,
    suffix_of,
)
from vbd.errors import InputError

CONFIG = PrepareConfig(image_size=64)
FORMATS: tuple[ImageFormat, ...] = get_args(ImageFormat)


def prepared(data: bytes, config: PrepareConfig = CONFIG, **options: Any) -> np.ndarray:
    return decode_image(prepare_image(data, name="a", config=replace(config, **options), with_hash=False).data)


def by_pil(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def eight_bits(height: int = 80, width: int = 60) -> np.ndarray:
    """Noise of a few levels, far from black and white."""
    return (pattern(height, width, 100) + 50).astype(np.uint8)


# ------------------------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_png_keeps_its_values(dtype: type) -> None:
    image = pattern(largest=255).astype(dtype) * (1 if dtype == np.uint8 else 257)
    np.testing.assert_array_equal(read_gray(png(image), name="a.png"), image)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_every_kind_of_png_of_equal_channels_is_its_grey(mode: str) -> None:
    image = pattern(largest=255).astype(np.uint8)
    image = np.where(image > 128, 255, 0).astype(np.uint8) if mode == "1" else image
    np.testing.assert_array_equal(read_gray(by_pil(Image.fromarray(image).convert(mode)), name="a"), image)


def test_colour_becomes_grey_as_the_eye_weighs_it() -> None:
    colour = np.zeros((4, 4, 3), np.uint8)
    colour[:, :2] = (100, 200, 50)
    data = by_pil(Image.fromarray(colour))
    assert read_gray(data, name="a")[0, 0] == pytest.approx(0.299 * 100 + 0.587 * 200 + 0.114 * 50, abs=1e-3)


def test_what_is_transparent_counts_as_if_it_were_not() -> None:
    image = pattern(largest=255).astype(np.uint8)
    half = Image.merge("LA", (Image.fromarray(image), Image.fromarray(image[::-1].copy())))
    np.testing.assert_array_equal(read_gray(by_pil(half), name="a"), image)


def test_jpeg_is_read_and_never_turned() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for options in ({}, {"exif": exif}, {"progressive": True}):
        data = by_pil(Image.fromarray(smooth()), "JPEG", quality=95, **options)
        np.testing.assert_allclose(read_gray(data, name="a.jpg"), smooth(), atol=4)


def colour_type(data: bytes, value: int) -> bytes:
    """A PNG that claims another colour type, with a right checksum."""
    return data[:8] + chunk(b"IHDR", data[16:25] + bytes([value]) + data[26:29]) + data[33:]


ANIMATED = by_pil(Image.fromarray(eight_bits()), save_all=True, append_images=[Image.fromarray(eight_bits()[::-1])])
CMYK = by_pil(Image.fromarray(smooth()).convert("CMYK"), "JPEG")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"hello, I am text", "neither DICOM, PNG nor JPEG"),
        (png(pattern())[:-60], "truncated or corrupt PNG"),
        (png(pattern())[:-1], "truncated or corrupt PNG"),
        (png(pattern())[:18], "truncated before its size"),
        (png(pattern())[:500] + b"?" + png(pattern())[501:], "truncated or corrupt PNG (chunk 2"),
        (png_of(60, 80, scanlines(eight_bits(40, 60))), "corrupt PNG; it cannot be decoded"),
        (png_of(0, 80, b""), "header says 0x80"),
        (png_of(60, 80, b"")[:33] + chunk(b"IEND", b""), "IDAT"),
        (colour_type(png(eight_bits()), 5), "cannot be decoded"),
        (ANIMATED, "animated"),
        (jpeg(smooth(200, 200))[:-300], "no end marker"),
        (jpeg(smooth(200, 200))[:-2], "no end marker"),
        (b"\xff\xd8\xff\xe0", "truncated before its size"),
        (CMYK, "4 channels"),
        (claims(jpeg(smooth()), 8000, 8000), "bytes cannot hold them"),
        (claims(jpeg(smooth()), 0, 60), "header says 60x0"),
        (jpeg(smooth())[:-2] + jpeg(smooth())[2:], "several pictures"),
    ],
)
def test_bad_file_is_one_line_with_its_name(data: bytes, reason: str) -> None:
    with pytest.raises(ImageError) as caught:
        prepare_image(data, name="train/x.png", config=CONFIG)
    assert str(caught.value).startswith("train/x.png: ")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, InputError)


@pytest.mark.parametrize("data", [png(eight_bits()), jpeg(smooth()), by_pil(Image.fromarray(smooth()), "JPEG")])
def test_a_file_that_is_cut_anywhere_is_refused(data: bytes) -> None:
    for length in range(1, len(data), 7):
        with pytest.raises(ImageError):
            read_gray(data[:length], name="a")


def test_bytes_after_the_picture_do_no_harm_but_are_not_kept() -> None:
    data = png(eight_bits(64, 64))
    made = prepare_image(data + b"trailing", name="a", config=CONFIG)
    assert len(made.data) != len(data) + 8
    np.testing.assert_array_equal(decode_image(made.data), eight_bits(64, 64))


def test_size_is_read_from_the_first_part_of_a_file(tmp_path: Any) -> None:
    large = pattern(600, 500)
    for name, data in (("a.dicom", dicom(large)), ("b.png", png(large)), ("c.jpg", jpeg(smooth(600, 500)))):
        (tmp_path / name).write_bytes(data)
        assert read_size(str(tmp_path / name)) == (600, 500)
    (tmp_path / "d.png").write_bytes(b"nothing")
    assert read_size(str(tmp_path / "d.png")) is None


# ------------------------------------------------------------------------------------------------------------ resizing


@pytest.mark.parametrize("mode", ["stretch", "letterbox"])
@pytest.mark.parametrize("hw", [(200, 160), (90, 200), (20, 30), (64, 64), (301, 40)])
def test_a_painted_box_lands_where_the_boxes_go(mode: Any, hw: tuple[int, int]) -> None:
    height, width = hw
    box = boxes.as_boxes([width * 0.25, height * 0.5, width * 0.75, height * 0.9])
    image = np.zeros(hw, np.uint16)
    x_min, y_min, x_max, y_max = np.round(box[0]).astype(int)
    image[y_min:y_max, x_min:x_max] = 1000
    found = prepared(png(image), resize=mode)
    assert found.shape == (64, 64)
    rows, columns = np.nonzero(found > 127)
    corners = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    exact = boxes.to_prepared(boxes.as_boxes([x_min, y_min, x_max, y_max]), hw, 64, mode)[0]
    np.testing.assert_allclose(corners, exact, atol=1.01)


@pytest.mark.parametrize("hw", [(1, 5000), (40_000, 3), (1, 1)])
@pytest.mark.parametrize("options", [{}, {"resize": "letterbox"}, {"resize": "letterbox", "channels": "composed"}])
def test_the_oddest_shapes_fill_the_square(hw: tuple[int, int], options: dict[str, Any]) -> None:
    assert prepared(png(pattern(*hw)), **options).shape[:2] == (64, 64)


def test_letterbox_margins_are_the_darkest_value() -> None:
    image = np.full((64, 32), 200, np.uint8)
    image[0, 0] = 90
    found = prepared(png(image), resize="letterbox")
    assert (found[:, :16] == 90).all()
    assert (found[:, 48:] == 90).all()
    np.testing.assert_array_equal(found[:, 16:48], image)


def test_resizing_averages_before_it_quantises() -> None:
    # Halves of grey levels: quantised first, the sixteen columns would be of two values, not of three.
    image = np.repeat(np.array([[0, 3, 3, 3], [0, 0, 3, 3]], np.uint16), 32, axis=0)
    image = np.tile(image, (1, 16))
    found = prepared(png(image), image_size=32)
    assert sorted(np.unique(found)) == [0, 128, 255]


def test_a_square_is_resized_with_its_channels() -> None:
    composed = compose(smooth(64, 64))
    half = resize_square(composed, 32)
    assert half.shape == (32, 32, 3)
    np.testing.assert_array_equal(half[..., 0], resize_square(composed[..., 0], 32))
    assert resize_square(composed, 64) is composed


# ---------------------------------------------------------------------------------------------------------- grey values


def test_more_than_eight_bits_are_stretched_between_their_extremes() -> None:
    image = np.repeat(np.array([[300, 400, 500]], np.uint16), 3, axis=0)
    for data in (png(image), dicom(image)):
        assert prepared(data, image_size=3)[0].tolist() == [0, 128, 255]
    assert prepared(png(np.full((3, 3), 7, np.uint16)), image_size=3).max() == 0


def test_eight_bits_keep_their_grey_values() -> None:
    image = eight_bits()
    assert prepared(png(image), image_size=16).min() > image.min() > 0
    same_width = prepared(png(image[:60]), image_size=60)
    np.testing.assert_array_equal(same_width, image[:60])
    colour = np.repeat(image[:60, :, None], 3, axis=2)
    np.testing.assert_array_equal(prepared(png(colour), image_size=60), image[:60])


@pytest.mark.parametrize("image_format", FORMATS)
@pytest.mark.parametrize("mode", ["stretch", "letterbox"])
def test_preparing_what_was_prepared_changes_nothing(image_format: ImageFormat, mode: Any) -> None:
    config = replace(CONFIG, image_format=image_format, resize=mode)
    once = prepare_image(dicom(pattern()), name="a", config=config)
    again = prepare_image(once.data, name="b", config=config)
    assert again.data == once.data
    assert again.original_hw == (64, 64)


# -------------------------------------------------------------------------------------------------------- passing through


@pytest.mark.parametrize(("image_format", "encode"), [("png", png), ("jpeg", jpeg)])
def test_a_file_that_is_prepared_already_is_handed_on(image_format: Any, encode: Any) -> None:
    data = encode(eight_bits(64, 64))
    config = replace(CONFIG, image_format=image_format)
    for with_hash in (False, True):
        made = prepare_image(data, name="a", config=config, with_hash=with_hash)
        assert made.data is data
        assert made.original_hw == (64, 64)
    assert made.perceptual_hash == perceptual_hash(decode_image(data))


def test_a_file_that_is_prepared_already_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(cv2, "imdecode", never)
    data = png(eight_bits(64, 64))
    assert prepare_image(data, name="a", config=CONFIG, with_hash=False).data is data
    with pytest.raises(AssertionError, match="decoded"):
        prepare_image(data, name="a", config=CONFIG)


SQUARE = eight_bits(64, 64)
ORIENTED = Image.Exif()
ORIENTED[0x0112] = 6


@pytest.mark.parametrize(
    ("data", "options"),
    [
        (png(SQUARE), {"image_size": 32}),
        (png(SQUARE), {"image_format": "jpeg"}),
        (png(SQUARE), {"image_format": "png16"}),
        (png(SQUARE), {"channels": "composed"}),
        (png(SQUARE[:60]), {}),
        (png(SQUARE.astype(np.uint16) * 257), {}),
        (png(np.repeat(SQUARE[..., None], 3, axis=2)), {}),
        (png_of(64, 64, scanlines(SQUARE), extra=chunk(b"tRNS", b"\0\x20")), {}),
        (png_of(64, 64, scanlines(SQUARE), extra=chunk(b"tEXt", b"Patient\0Name")), {}),
        (by_pil(Image.fromarray(SQUARE), exif=ORIENTED), {}),
        (by_pil(Image.fromarray(SQUARE).convert("P")), {}),
        (jpeg(SQUARE), {}),
        (by_pil(Image.fromarray(SQUARE), "JPEG", exif=ORIENTED), {"image_format": "jpeg"}),
        (by_pil(Image.fromarray(SQUARE), "JPEG", comment=b"Patient Name"), {"image_format": "jpeg"}),
        (jpeg(np.repeat(SQUARE[..., None], 3, axis=2)), {"image_format": "jpeg"}),
    ],
)
def test_a_file_of_another_kind_is_encoded_anew(data: bytes, options: dict[str, Any]) -> None:
    made = prepare_image(data, name="a", config=replace(CONFIG, **options), with_hash=False)
    assert made.data != data
    assert b"Name" not in made.data
    decode_image(made.data)


def test_harmless_chunks_do_not_change_the_picture() -> None:
    extra = chunk(b"gAMA", b"\0\1\x86\xa0") + chunk(b"sBIT", b"\4") + chunk(b"bKGD", b"\0\7")
    data = png_of(64, 64, scanlines(SQUARE), extra=extra)
    made = prepare_image(data, name="a", config=CONFIG)
    assert made.data is data
    np.testing.assert_array_equal(decode_image(made.data), SQUARE)


def test_an_interlaced_png_is_read_and_encoded_anew() -> None:
    # The one pixel of a 1 x 1 picture is the whole first of the seven passes.
    header = b"\0\0\0\1\0\0\0\1\x08\0\0\0\1"
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", scanlines(SQUARE[:1, :1]))
    data += chunk(b"IEND", b"")
    made = prepare_image(data, name="a", config=replace(CONFIG, image_size=1), with_hash=False)
    assert made.data != data
    assert decode_image(made.data).tolist() == [[SQUARE[0, 0]]]


# -------------------------------------------------------------------------------------------------------------- formats


def test_suffixes() -> None:
    assert [suffix_of(image_format) for image_format in FORMATS] == [".png", ".png", ".jpg"]


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_eight_bits_survive_png_and_png16(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for shape in ((9, 7), (9, 7, 3)):
        image = rng.integers(0, 256, shape, np.uint8)
        np.testing.assert_array_equal(decode_image(encode_image(image, "png")), image)
        np.testing.assert_array_equal(decode_image(encode_image(image, "png16")), image)


def test_png16_keeps_sixteen_bits_and_is_read_as_eight() -> None:
    image = np.array([[0, 127, 128, 129, 385, 386, 65_534, 65_535]], np.uint16)
    data = encode_image(image, "png16")
    np.testing.assert_array_equal(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED), image)
    assert decode_image(data).tolist() == [[0, 0, 0, 1, 1, 2, 255, 255]]


def test_png16_of_a_film_is_finer_than_png() -> None:
    deep = prepare_image(
        dicom(pattern(largest=65_535), bits=16), name="a", config=replace(CONFIG, image_format="png16")
    )
    stored = cv2.imdecode(np.frombuffer(deep.data, np.uint8), cv2.IMREAD_UNCHANGED)
    assert (stored.dtype, stored.min(), stored.max()) == (np.uint16, 0, 65_535)
    assert len(np.unique(stored)) > 3000
    coarse = prepared(dicom(pattern(largest=65_535), bits=16))
    assert np.abs(decode_image(deep.data).astype(int) - coarse).max() <= 1


def test_jpeg_is_close_to_the_film() -> None:
    exact = prepared(dicom(smooth(), bits=8))
    lossy = prepared(dicom(smooth(), bits=8), image_format="jpeg")
    assert lossy.shape == exact.shape == (64, 64)
    assert 0 < np.abs(lossy.astype(int) - exact).max() <= 8


def test_wrong_types_are_not_encoded() -> None:
    for image, image_format in ((np.zeros((2, 2), np.uint16), "png"), (np.zeros((2, 2), np.float32), "png16")):
        with pytest.raises(ValueError, match="cannot encode"):
            encode_image(image, image_format)  # type: ignore[arg-type]


@pytest.mark.parametrize("data", [b"", b"nothing", png(np.zeros((4, 4, 4), np.uint8)), png(SQUARE)[:-40]])
def test_what_is_no_prepared_image_is_told(data: bytes) -> None:
    with pytest.raises(ImageError, match="prepared image"):
        decode_image(data)


def test_the_same_bytes_and_hash_every_time() -> None:
    for image_format in FORMATS:
        for channels in ("grey", "composed"):
            config = PrepareConfig(image_size=48, image_format=image_format, channels=channels)  # type: ignore[arg-type]
            first, second = (prepare_image(dicom(pattern()), name="a", config=config) for _ in range(2))
            assert first == second
            assert first.original_hw == (80, 60)


def test_the_hash_is_of_the_film_whatever_it_is_stored_as() -> None:
    configs = [replace(CONFIG, image_format=image_format) for image_format in FORMATS]
    configs += [replace(config, channels="composed") for config in configs]
    hashes = {prepare_image(dicom(smooth()), name="a", config=config).perceptual_hash for config in configs}
    assert hashes == {perceptual_hash(prepared(dicom(smooth())))}
    assert prepare_image(dicom(smooth()), name="a", config=CONFIG, with_hash=False).perceptual_hash is None


# ------------------------------------------------------------------------------------------------------------- composed


def test_a_composed_image_is_the_film_its_clahe_and_its_edges() -> None:
    film = prepared(dicom(pattern()))
    composed = prepared(dicom(pattern()), channels="composed")
    assert composed.shape == (64, 64, 3)
    np.testing.assert_array_equal(composed[..., 0], film)
    np.testing.assert_array_equal(composed[..., 1], clahe(film, strength=1))
    np.testing.assert_array_equal(composed, compose(film))


def test_other_programs_see_the_film_in_red() -> None:
    composed = prepare_image(png(SQUARE), name="a", config=replace(CONFIG, channels="composed"), with_hash=False)
    by_others = np.asarray(Image.open(io.BytesIO(composed.data)))
    np.testing.assert_array_equal(by_others[..., 0], SQUARE)
    np.testing.assert_array_equal(by_others, decode_image(composed.data))


def test_edges_are_bright_where_the_film_steps_and_black_where_it_is_flat() -> None:
    film = np.full((64, 64), 40, np.uint8)
    film[:, 32:] = 200
    edges = compose(film)[..., 2]
    assert (edges[:, 31:33] == 255).all()
    assert (edges[:, :24] == 0).all()
    assert (edges[:, 40:] == 0).all()
    assert compose(np.full((64, 64), 40, np.uint8))[..., 2].max() == 0


def test_the_length_of_an_edge_is_in_grey_levels_for_each_pixel() -> None:
    # A slope of two levels: the whole picture is the strongest edge there is, and fainter slopes are shown as they are.
    steep = np.tile(np.arange(0, 128, 2, dtype=np.uint8), (64, 1))
    assert (compose(steep)[:, 8:-8, 2] == 255).all()
    faint = np.repeat(np.arange(64, dtype=np.uint8)[None], 64, axis=0) // 4
    assert 32 < compose(faint)[:, 8:-8, 2].mean() < 96


def test_edges_do_not_see_the_margins_of_a_letterbox() -> None:
    image = np.full((64, 32), 2000, np.uint16)
    image[20:30, 10:20] = 100
    composed = prepared(png(image), resize="letterbox", channels="composed")
    margin = np.s_[:, :16]
    assert (composed[margin][..., 2] == 0).all()
    assert (composed[:, 16, 2] == 0).all()
    np.testing.assert_array_equal(
        composed[:, 16:48], compose(prepared(png(image), image_size=64, resize="letterbox")[:, 16:48])
    )


@pytest.mark.parametrize(("image_format", "error"), [("png", 0), ("png16", 0.1), ("jpeg", 4)])
def test_every_format_holds_a_composed_image(image_format: ImageFormat, error: float) -> None:
    exact = compose(prepared(dicom(smooth())))
    stored = prepared(dicom(smooth()), channels="composed", image_format=image_format)
    assert stored.shape == (64, 64, 3)
    assert np.abs(stored.astype(int) - exact).mean(axis=(0, 1)).max() <= error


def test_largest_image_of_the_competition_is_accepted() -> None:
    assert images_containers.MAX_PIXELS > 4 * 3408 * 3320
