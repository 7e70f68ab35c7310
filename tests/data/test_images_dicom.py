"""Films as viewers show them: every transfer syntax, rescale, tables, windows; made-up files, and real ones."""

import importlib.util
import os
import warnings
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pydicom
import pytest
from pydicom.pixels import apply_modality_lut, apply_voi_lut
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    RLELossless,
)

from tests.data.films import (
    dicom,
    dicom_dataset,
    frame_of,
    jpeg,
    pattern,
    saved,
    smooth,
    table,
    with_frame,
)
from vbd.config import PrepareConfig
from vbd.data.images.headers import ImageError
from vbd.data.images.prepare import decode_image, prepare_image, read_gray

SYNTAXES = [ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless, JPEG2000Lossless]
BUNDLED = Path(pydicom.__file__).parent / "data" / "test_files"


def external(name: str) -> Path:
    """A file of the package pydicom-data, which is never fetched from here."""
    spec = importlib.util.find_spec("data_store")
    path = Path(spec.origin).parent / "data" / name if spec and spec.origin else Path(name)
    if not path.exists():
        if os.environ.get("CI"):
            pytest.fail("pydicom-data is not installed: pip install -e .[dev]")
        pytest.skip(f"{name} is not here: it comes with the package pydicom-data")
    return path


# ----------------------------------------------------------------------------------------------------- stored pixel data


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_pixels_survive_every_transfer_syntax(syntax: UID, bits: int) -> None:
    stored = pattern(largest=2**bits - 1).astype(np.uint8 if bits == 8 else np.uint16)
    image = read_gray(dicom(stored, bits=bits, syntax=syntax), name="a.dicom")
    assert image.dtype == np.float32
    np.testing.assert_array_equal(image, stored)


@pytest.mark.parametrize("packed", ["_expb", "_implicit", "_RLE", "_jp2klossless", "_jpeg_ls_lossless"])
def test_a_real_picture_is_the_same_in_every_transfer_syntax(packed: str) -> None:
    plain, other = (BUNDLED / f"MR_small{name}.dcm" for name in ("", packed))
    np.testing.assert_array_equal(read_gray(other.read_bytes(), name="a"), read_gray(plain.read_bytes(), name="a"))


def test_jpeg_inside_dicom_is_decoded() -> None:
    data = with_frame(dicom_dataset(smooth()), jpeg(smooth()), syntax=JPEGBaseline8Bit)
    np.testing.assert_allclose(read_gray(data, name="a"), smooth(), atol=4)


def test_bits_that_are_not_stored_do_not_show() -> None:
    with_overlay = pattern() | (np.arange(60, dtype=np.uint16) % 2 << 15)
    np.testing.assert_array_equal(read_gray(dicom(with_overlay), name="a"), pattern())


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_signed_pixels_are_rescaled(syntax: UID) -> None:
    stored = pattern(largest=2000).astype(np.int16) - 1000
    data = dicom(stored, bits=16, syntax=syntax, RescaleSlope=2.0, RescaleIntercept=-10.0)
    np.testing.assert_array_equal(read_gray(data, name="a"), stored * 2.0 - 10)


@pytest.mark.parametrize(
    ("tags", "slope", "intercept"),
    [({"RescaleSlope": 0.5}, 0.5, 0), ({"RescaleIntercept": -100}, 1, -100), ({"RescaleSlope": None}, 1, 0)],
)
def test_half_a_rescale_is_completed_by_the_neutral_value(tags: dict[str, Any], slope: float, intercept: int) -> None:
    np.testing.assert_array_equal(
        read_gray(dicom(pattern(), **tags), name="a"), pattern().astype(float) * slope + intercept
    )


def test_monochrome1_is_turned_around() -> None:
    image = read_gray(dicom(pattern(), PhotometricInterpretation="MONOCHROME1"), name="a")
    np.testing.assert_array_equal(image, pattern().max() - pattern().astype(np.float32))


def test_thirty_two_bits_are_rescaled_pixel_by_pixel() -> None:
    stored = pattern().astype(np.uint32) * 1000
    image = read_gray(dicom(stored, bits=32, RescaleSlope=0.001, RescaleIntercept=1), name="a")
    np.testing.assert_allclose(image, pattern() + 1.0, rtol=1e-6)


def test_one_bit_is_black_and_white() -> None:
    dataset = dicom_dataset(np.zeros((16, 8), np.uint8), bits=1)
    dataset.BitsAllocated, dataset.PixelData = 1, bytes([0b00001111]) * 16
    np.testing.assert_array_equal(read_gray(saved(dataset), name="a"), [[1, 1, 1, 1, 0, 0, 0, 0]] * 16)


def test_a_colour_dicom_is_its_grey() -> None:
    stored = np.repeat(smooth()[..., None], 3, axis=2)
    colour = {"PhotometricInterpretation": "RGB", "SamplesPerPixel": 3, "PlanarConfiguration": 0}
    np.testing.assert_array_equal(read_gray(dicom(stored, bits=8, **colour), name="a"), smooth())
    ybr = BUNDLED / "SC_ybr_full_422_uncompressed.dcm"
    rgb = pydicom.dcmread(BUNDLED / "SC_rgb_dcmtk_+eb+cr.dcm").pixel_array.astype(float)
    np.testing.assert_allclose(read_gray(ybr.read_bytes(), name="a"), rgb @ [0.299, 0.587, 0.114], atol=3)


# ------------------------------------------------------------------------------------------------------ tables and windows


def test_first_of_several_windows_is_applied() -> None:
    image = read_gray(dicom(pattern(), WindowCenter=[2000, 1], WindowWidth=[1001, 2]), name="a")
    inside = (pattern() > 1500) & (pattern() < 2500)
    assert (image.min(), image.max()) == (0, 4095)
    np.testing.assert_allclose(image[inside], (pattern()[inside] - 1999.5) / 1000 * 4095 + 4095 / 2, rtol=1e-5)


def test_window_in_rescaled_units() -> None:
    plain = read_gray(dicom(pattern(), WindowCenter=2000, WindowWidth=3000), name="a")
    moved = dicom(pattern(), WindowCenter=976, WindowWidth=3000, RescaleSlope=1.0, RescaleIntercept=-1024.0)
    np.testing.assert_allclose(read_gray(moved, name="a"), plain - 1024, atol=1e-3)


@pytest.mark.parametrize(
    "tags",
    [
        {"WindowCenter": 100, "WindowWidth": 0},
        {"WindowCenter": 100, "WindowWidth": 0.5},
        {"WindowCenter": 100, "WindowWidth": -4, "VOILUTFunction": "SIGMOID"},
        {"WindowCenter": "", "WindowWidth": ""},
        {"WindowCenter": 100},
        {"VOILUTSequence": []},
        {"VOILUTSequence": [pydicom.Dataset()]},
    ],
)
def test_a_useless_window_or_table_is_ignored(tags: dict[str, Any]) -> None:
    np.testing.assert_array_equal(read_gray(dicom(pattern(), **tags), name="a"), pattern())


def test_a_narrow_window_is_used_where_its_function_allows_it() -> None:
    tags = {"RescaleSlope": 1 / 4096, "RescaleIntercept": 0, "WindowCenter": 0.5, "WindowWidth": 0.5}
    image = read_gray(dicom(pattern(), VOILUTFunction="LINEAR_EXACT", **tags), name="a")
    np.testing.assert_array_equal(image == image.min(), pattern() <= 1024)
    np.testing.assert_array_equal(image == image.max(), pattern() > 3071)


def test_an_empty_function_is_linear() -> None:
    window = {"WindowCenter": 2000, "WindowWidth": 1001}
    expected = read_gray(dicom(pattern(), **window), name="a")
    np.testing.assert_array_equal(read_gray(dicom(pattern(), VOILUTFunction="", **window), name="a"), expected)


def test_voi_lut_is_preferred_to_a_window() -> None:
    dataset = dicom(pattern(), WindowCenter=1, WindowWidth=1, VOILUTSequence=[table([3 * k for k in range(4096)])])
    np.testing.assert_array_equal(read_gray(dataset, name="a"), pattern() * 3.0)


def test_a_table_holds_its_first_and_last_entry_beyond_its_ends() -> None:
    for sequence in ("VOILUTSequence", "ModalityLUTSequence"):
        image = read_gray(dicom(pattern(), **{sequence: [table([5, 7, 9], first=1000)]}), name="a")
        np.testing.assert_array_equal(image, np.clip(2 * (pattern().astype(int) - 1000) + 5, 5, 9))


def test_a_table_may_start_below_zero() -> None:
    stored = pattern(largest=200).astype(np.int16) - 100
    data = dicom(stored, bits=16, VOILUTSequence=[table(list(range(201)), first=-100)])
    np.testing.assert_array_equal(read_gray(data, name="a"), pattern(largest=200))


def test_a_table_of_eight_bits_may_have_more_entries_than_they_can_count() -> None:
    halves = table([k // 16 for k in range(4096)], bits=8)
    np.testing.assert_array_equal(read_gray(dicom(pattern(), VOILUTSequence=[halves]), name="a"), pattern() // 16)
    widened = table([k // 16 for k in range(4096)])
    widened.LUTDescriptor = [4096, 0, 8]
    np.testing.assert_array_equal(read_gray(dicom(pattern(), VOILUTSequence=[widened]), name="a"), pattern() // 16)


def by_pydicom(dataset: pydicom.Dataset) -> np.ndarray:
    """pydicom's own functions over the pixels, as its documentation has it."""
    values = apply_modality_lut(dataset.pixel_array, dataset)
    if dataset.get("VOILUTSequence"):
        values = np.round(values).astype(np.int64)
    shown = apply_voi_lut(values, dataset).astype(np.float64)
    return shown.max() - shown if dataset.PhotometricInterpretation == "MONOCHROME1" else shown


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("is_signed", [False, True])
def test_windows_are_pydicoms(function: str, photometric: str, is_signed: bool) -> None:
    stored = pattern().astype(np.int16) - 2048 if is_signed else pattern()
    tags = {"WindowCenter": -300.5, "WindowWidth": 1500, "RescaleSlope": 1.5, "RescaleIntercept": -1024}
    data = dicom(stored, bits=16, VOILUTFunction=function, PhotometricInterpretation=photometric, **tags)
    expected = by_pydicom(pydicom.dcmread(pydicom.filebase.DicomBytesIO(data)))
    np.testing.assert_allclose(read_gray(data, name="a"), expected, rtol=1e-6, atol=1e-2)


@pytest.mark.parametrize(
    "name",
    [
        *("MR_small.dcm", "CT_small.dcm", "693_J2KI.dcm", "J2K_pixelrep_mismatch.dcm", "examples_overlay.dcm"),
        *("MR_small_jpeg_ls_lossless.dcm", "JPGExtended.dcm", "MR_small_RLE.dcm", "JPEG2000.dcm"),
        *("mlut_18.dcm", "vlut_04.dcm", "MR2_UNCI.dcm", "RG1_UNCI.dcm", "RG1_UNCR.dcm", "RG3_UNCR.dcm"),
        *("JPEG-LL.dcm", "JPGLosslessP14SV1_1s_1f_8b.dcm", "bad_sequence.dcm"),
    ],
)
def test_real_files_are_shown_as_pydicom_shows_them(name: str) -> None:
    path = BUNDLED / name if (BUNDLED / name).exists() else external(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = by_pydicom(pydicom.dcmread(path))
    image = read_gray(path.read_bytes(), name=name)
    grey_level = (expected.max() - expected.min()) / 255
    np.testing.assert_allclose(image, expected, atol=grey_level / 100)


@pytest.mark.parametrize("film", ["RG1", "RG3", "MR2", "693"])
@pytest.mark.parametrize("kind", ["R", "I"])
def test_real_films_are_the_same_in_jpeg2000_and_uncompressed(film: str, kind: str) -> None:
    # I are the pixels after an irreversible compression, so that both of its files hold them exactly, as do those of R.
    plain, packed = external(f"{film}_UNC{kind}.dcm"), BUNDLED / f"{film}_J2K{kind}.dcm"
    packed = packed if packed.exists() else external(packed.name)
    config = PrepareConfig(image_size=256)
    first, second = (prepare_image(path.read_bytes(), name="a", config=config) for path in (plain, packed))
    assert first == second
    assert decode_image(first.data).std() > 20


def test_a_real_monochrome1_chest_film_has_bright_bones_on_a_dark_ground() -> None:
    data = external("RG1_UNCR.dcm").read_bytes()
    made = prepare_image(data, name="a", config=PrepareConfig(image_size=256))
    assert made.original_hw == (1955, 1841)
    image = decode_image(made.data)
    corner, middle = image[:20, :20].mean(), image[100:220, 118:138].mean()
    assert corner < 64 < middle


# --------------------------------------------------------------------------------------------------------------- refused


def without(tag: str) -> bytes:
    dataset = dicom_dataset(pattern())
    delattr(dataset, tag)
    return saved(dataset)


def lying(tag: str, value: Any, syntax: UID = JPEG2000Lossless) -> bytes:
    dataset = dicom_dataset(pattern(), syntax=syntax)
    setattr(dataset, tag, value)
    return saved(dataset)


def jpeg_ls(**tags: Any) -> bytes:
    """A real file, since nothing here writes JPEG-LS."""
    dataset = pydicom.dcmread(BUNDLED / "MR_small_jpeg_ls_lossless.dcm")
    for tag, value in tags.items():
        setattr(dataset, tag, value)
    return saved(dataset)


def of_syntax(uid: str) -> bytes:
    return dicom(pattern()).replace(b"1.2.840.10008.1.2.1\0", uid.encode())


def short_run_lengths() -> bytes:
    dataset = dicom_dataset(pattern(), syntax=RLELossless)
    return with_frame(dataset, frame_of(dataset)[:-100])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (dicom(pattern())[:-500], "less than expected"),
        (dicom(pattern())[:300], "DICOM"),
        (dicom(pattern())[:132], "unknown transfer syntax None"),
        (without("PixelData"), "without pixel data"),
        (dicom(pattern(), PixelData=b""), "without pixel data"),
        *((without(tag), f"without {tag}") for tag in ("Rows", "BitsStored", "PixelRepresentation")),
        (of_syntax("1.2.840.10008.1.9.9\0"), "unknown transfer syntax '1.2.840.10008.1.9.9'"),
        (of_syntax("1.2.840.10008.1.2.1x"), "unknown transfer syntax"),
        (of_syntax("1.2.840.10008.5.1\n\n"), "unknown transfer syntax"),
        (dicom(pattern(), syntax=DeflatedExplicitVRLittleEndian), "deflated"),
        (dicom(pattern(), Rows=20_000, Columns=20_000), "20000x20000"),
        (dicom(pattern(), Rows=0), "60x0"),
        (dicom(pattern(), NumberOfFrames=7), "7 frames"),
        ((BUNDLED / "examples_palette.dcm").read_bytes(), "PALETTE COLOR"),
        (dicom(pattern(), PhotometricInterpretation="RGB"), "'RGB' of 1 samples"),
        (lying("Rows", 20), "header says 60x20, pixel data 60x80"),
        (jpeg_ls(Rows=20), "header says 64x20, pixel data 64x64"),
        (lying("Rows", 20, RLELossless), "header says 60x20 pixels of 2 bytes, run-length data hold [4800, 4800]"),
        (lying("Rows", 90, RLELossless), "run-length data hold [4800, 4800]"),
        (lying("BitsAllocated", 8, RLELossless), "60x80 pixels of 1 bytes"),
        (short_run_lengths(), "run-length data hold [4800, "),
        (with_frame(dicom_dataset(pattern(), syntax=RLELossless), b"nothing"), "run-length data hold []"),
        (with_frame(dicom_dataset(smooth(), syntax=JPEG2000Lossless), b"nothing at all"), "neither JPEG nor JPEG 2000"),
        (with_frame(dicom_dataset(smooth()), jpeg(smooth())[:-2], syntax=JPEGBaseline8Bit), "no end marker"),
        (dicom(pattern(), RescaleSlope="1e308", RescaleIntercept="1e308"), "not finite"),
        (dicom(pattern(), WindowCenter=1, WindowWidth=9, VOILUTFunction="CUBIC"), "VOI LUT Function"),
        ((BUNDLED / "JPEG-lossy.dcm").read_bytes(), "misplaced marker"),
        ((BUNDLED / "MR_truncated.dcm").read_bytes(), "less than expected"),
        ((BUNDLED / "test-SR.dcm").read_bytes(), "without pixel data"),
    ],
)
def test_bad_file_is_one_line_with_its_name(data: bytes, reason: str) -> None:
    with pytest.raises(ImageError) as caught:
        read_gray(data, name="train/x.dicom")
    assert str(caught.value).startswith("train/x.dicom: ")
    assert reason in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_a_file_that_is_cut_anywhere_is_refused(syntax: UID) -> None:
    data = dicom(pattern(40, 34), syntax=syntax)
    # The last four bytes are the length, nought, of what ends the pixel data.
    for length in range(0, len(data) - 4, 5):
        with pytest.raises(ImageError):
            read_gray(data[:length], name="a")


def test_a_uid_in_another_place_does_not_make_a_file_deflated() -> None:
    data = dicom(pattern(), ImageComments=str(DeflatedExplicitVRLittleEndian))
    np.testing.assert_array_equal(read_gray(data, name="a"), pattern())


def test_only_the_first_of_several_pictures_is_decoded() -> None:
    dataset = dicom_dataset(smooth(), syntax=JPEG2000Lossless)
    first = frame_of(dataset)
    data = with_frame(dataset, first, b"\xff\x4f\xff\x51 this is no picture and would not decode")
    np.testing.assert_array_equal(read_gray(data, name="a"), smooth())


def test_a_table_of_offsets_cannot_lead_to_other_bytes() -> None:
    dataset = dicom_dataset(smooth(), syntax=JPEG2000Lossless)
    dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths = b"\4" + bytes(7), b"\4" + bytes(7)
    np.testing.assert_array_equal(read_gray(saved(dataset), name="a"), smooth())


def test_films_of_many_kinds_prepare_alike() -> None:
    film = cv2.GaussianBlur(pattern(200, 160), (0, 0), 8)
    inverted = dicom(4095 - film, PhotometricInterpretation="MONOCHROME1")
    moved = dicom(film, RescaleSlope=1, RescaleIntercept=-1024)
    made = [
        decode_image(prepare_image(data, name="a", config=PrepareConfig(image_size=64)).data)
        for data in (dicom(film), inverted, moved, dicom(film, syntax=RLELossless), dicom(film, bits=16))
    ]
    for other in made[1:]:
        assert np.abs(other.astype(int) - made[0]).max() <= 1
