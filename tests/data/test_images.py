import io
import struct
import zlib

import cv2
import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    RLELossless,
)

from vbd import boxes
from vbd.data import images
from vbd.data.images import ImageError, decode_png, encode_png, prepare_pixels, read_gray, resize, to_uint8
from vbd.errors import InputError


def pattern(height=80, width=60, largest=4095):
    rng = np.random.default_rng(0)
    return rng.integers(0, largest + 1, (height, width)).astype(np.uint16)


def dicom(pixels, *, bits=12, syntax=ExplicitVRLittleEndian, save=True, **tags):
    dataset = FileDataset("", {}, file_meta=FileMetaDataset(), preamble=b"\0" * 128)
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian if syntax.is_compressed else syntax
    dataset.file_meta.MediaStorageSOPClassUID = pydicom.uid.DigitalXRayImageStorageForPresentation
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = "1.2.3"
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.PixelRepresentation = int(np.issubdtype(pixels.dtype, np.signedinteger))
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, bits, bits - 1
    dataset.PixelData = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
    dataset["PixelData"].VR = "OW"
    for tag, value in tags.items():
        setattr(dataset, tag, value)
    if syntax.is_compressed:
        dataset.compress(syntax)
    return saved(dataset) if save else dataset


def saved(dataset):
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def png(image):
    return cv2.imencode(".png", image)[1].tobytes()


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless, JPEG2000Lossless])
def test_dicom_pixels_survive_every_transfer_syntax(syntax):
    image = read_gray(dicom(pattern(), syntax=syntax), name="a.dicom")
    assert image.dtype == np.float32
    np.testing.assert_array_equal(image, pattern())


def test_jpeg_inside_dicom_is_decoded():
    smooth = cv2.GaussianBlur(pattern(largest=255).astype(np.uint8), (0, 0), 4)
    dataset = dicom(smooth, bits=8, save=False, BitsAllocated=8)
    dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    dataset.PixelData = encapsulate([cv2.imencode(".jpg", smooth, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()])
    np.testing.assert_allclose(read_gray(saved(dataset), name="a"), smooth, atol=4)


def test_signed_pixels_are_rescaled():
    stored = pattern(largest=2000).astype(np.int16) - 1000
    image = read_gray(dicom(stored, bits=16, RescaleSlope=2.0, RescaleIntercept=-10.0), name="a")
    np.testing.assert_array_equal(image, stored * 2.0 - 10)


def test_monochrome1_is_turned_around():
    image = read_gray(dicom(pattern(), PhotometricInterpretation="MONOCHROME1"), name="a")
    np.testing.assert_array_equal(image, pattern().max() - pattern().astype(np.float32))


def test_first_of_several_windows_is_applied():
    image = read_gray(dicom(pattern(), WindowCenter=[2000, 1], WindowWidth=[1001, 2]), name="a")
    inside = (pattern() > 1500) & (pattern() < 2500)
    assert image.min() == 0
    assert image.max() == 4095
    expected = (pattern()[inside] - 1999.5) / 1000 * 4095 + 4095 / 2
    np.testing.assert_allclose(image[inside], expected, rtol=1e-5)


def test_window_in_rescaled_units():
    plain = read_gray(dicom(pattern(), WindowCenter=2000, WindowWidth=3000), name="a")
    moved = dicom(pattern(), WindowCenter=976, WindowWidth=3000, RescaleSlope=1.0, RescaleIntercept=-1024.0)
    np.testing.assert_allclose(read_gray(moved, name="a"), plain - 1024, atol=1e-3)


@pytest.mark.parametrize("tags", [{"WindowCenter": 100, "WindowWidth": 0}, {"WindowCenter": "", "WindowWidth": ""}])
def test_useless_window_is_ignored(tags):
    np.testing.assert_array_equal(read_gray(dicom(pattern(), **tags), name="a"), pattern())


def test_voi_lut_is_preferred_to_a_window():
    dataset = dicom(pattern(), save=False, WindowCenter=1, WindowWidth=1)
    item = pydicom.Dataset()
    item.LUTDescriptor, item.LUTData = [4096, 0, 16], (np.arange(4096, dtype="<u2") * 3).tobytes()
    item["LUTDescriptor"].VR, item["LUTData"].VR = "US", "OW"
    dataset.VOILUTSequence = [item]
    np.testing.assert_array_equal(read_gray(saved(dataset), name="a"), pattern() * 3.0)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_png_keeps_its_values(dtype):
    image = pattern(largest=255).astype(dtype) * (1 if dtype == np.uint8 else 257)
    np.testing.assert_array_equal(read_gray(png(image), name="a.png"), image)


def test_colour_png_of_equal_channels_is_its_grey():
    image = pattern(largest=255).astype(np.uint8)
    for channels in (3, 4):
        colour = np.repeat(image[..., None], channels, axis=2)
        np.testing.assert_array_equal(read_gray(png(colour), name="a.png"), image)


def test_jpeg_is_read():
    smooth = cv2.GaussianBlur(pattern(64, 48, 255).astype(np.uint8), (0, 0), 4)
    data = cv2.imencode(".jpg", smooth, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
    np.testing.assert_allclose(read_gray(data, name="a.jpg"), smooth, atol=4)


def without(tag):
    dataset = dicom(pattern(), save=False)
    delattr(dataset, tag)
    return saved(dataset)


def bomb_png():
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    chunk = b"IHDR" + header
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)) + b"IEND"


def lying_dicom():
    dataset = dicom(pattern(), syntax=JPEG2000Lossless, save=False)
    dataset.Rows = 20
    return saved(dataset)


def unknown_syntax():
    return dicom(pattern()).replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.9.9\0")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"hello, I am text", "neither DICOM, PNG nor JPEG"),
        (dicom(pattern())[:-500], "not a readable DICOM image"),
        (dicom(pattern())[:300], "DICOM"),
        (without("PixelData"), "without pixel data"),
        (without("Rows"), "without Rows"),
        (unknown_syntax(), "unknown transfer syntax"),
        (dicom(pattern(), syntax=DeflatedExplicitVRLittleEndian), "deflated"),
        (dicom(pattern(), Rows=20_000, Columns=20_000), "20000x20000"),
        (dicom(pattern(), NumberOfFrames=7), "7 frames"),
        (lying_dicom(), "header says 60x20, pixel data 60x80"),
        (bomb_png(), "60000x60000"),
        (png(pattern())[:-60], "truncated or corrupt PNG"),
        (png(pattern())[:18], "truncated"),
        (cv2.imencode(".jpg", pattern(200, 200, 255))[1].tobytes()[:-300], "truncated or corrupt JPEG"),
        (b"\xff\xd8\xff\xe0", "truncated"),
    ],
)
def test_bad_file_is_one_line_with_its_name(data, reason):
    with pytest.raises(ImageError) as caught:
        read_gray(data, name="train/x.dicom")
    assert str(caught.value).startswith("train/x.dicom: ")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, InputError)


@pytest.mark.parametrize("mode", ["stretch", "letterbox"])
@pytest.mark.parametrize("hw", [(200, 160), (90, 200), (20, 30), (64, 64), (301, 40)])
def test_a_painted_box_lands_where_the_boxes_go(mode, hw):
    height, width = hw
    box = boxes.as_boxes([width * 0.25, height * 0.5, width * 0.75, height * 0.9])
    image = np.zeros(hw, np.float32)
    x_min, y_min, x_max, y_max = np.round(box[0]).astype(int)
    image[y_min:y_max, x_min:x_max] = 1000
    prepared = resize(image, 64, mode)
    assert prepared.shape == (64, 64)
    rows, columns = np.nonzero(prepared > 500)
    found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    exact = boxes.to_prepared(boxes.as_boxes([x_min, y_min, x_max, y_max]), hw, 64, mode)[0]
    np.testing.assert_allclose(found, exact, atol=1.01)


def test_letterbox_margins_are_the_darkest_value():
    image = np.full((40, 20), 500, np.float32)
    image[0, 0] = 300
    prepared = resize(image, 40, "letterbox")
    assert (prepared[:, :10] == 300).all()
    assert (prepared[:, 30:] == 300).all()


def test_resizing_averages_before_quantising():
    image = np.tile(np.array([[0, 3]], np.float32), (8, 4))
    np.testing.assert_allclose(resize(image, 4, "stretch"), 1.5)


def test_to_uint8_stretches_and_a_flat_picture_is_black():
    assert to_uint8(np.array([[-5.0, 0.0, 5.0]], np.float32)).tolist() == [[0, 128, 255]]
    assert to_uint8(np.full((2, 2), 7, np.float32)).tolist() == [[0, 0], [0, 0]]


def test_prepare_pixels_tells_the_original_size():
    pixels, original_hw = prepare_pixels(dicom(pattern()), name="a", image_size=16, mode="stretch")
    assert original_hw == (80, 60)
    assert (pixels.shape, pixels.dtype, pixels.min(), pixels.max()) == ((16, 16), np.uint8, 0, 255)


def test_png_round_trip_and_a_bad_one():
    image = pattern(largest=255).astype(np.uint8)
    np.testing.assert_array_equal(decode_png(encode_png(image)), image)
    with pytest.raises(ImageError):
        decode_png(b"nothing")


def test_largest_image_of_the_competition_is_accepted():
    assert images.MAX_PIXELS > 4 * 3408 * 3320
