"""A DICOM file to the film as a viewer would show it: rescale, VOI LUT or window, and MONOCHROME1 turned around.

pydicom reads, decodes and windows. What is ours: nothing is inflated or decoded before its size was checked, and the
steps from stored to shown values run over the 65,536 levels that 16 bits can hold, not over millions of pixels.
"""

import io
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vbd.data.images.headers import (
    J2K,
    JP2,
    JPEG,
    Header,
    ImageError,
    check_size,
    j2k_header,
    jpeg_header,
    run_lengths,
)

if TYPE_CHECKING:
    from pydicom import Dataset

_DEFLATED = "1.2.840.10008.1.2.1.99"
_RLE = "1.2.840.10008.1.2.5"
_NEEDED = (
    *("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation"),
    *("BitsAllocated", "BitsStored", "PixelRepresentation"),
)
_COLOURS = {"MONOCHROME1": 1, "MONOCHROME2": 1} | dict.fromkeys(
    ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"), 3
)


def is_dicom(data: bytes) -> bool:
    """Whether a file starts as DICOM files do (PS3.10, 7.1)."""
    return data[128:132] == b"DICM"


def read_dicom(data: bytes, *, name: str) -> NDArray[np.float32]:
    """The film as displayed: (H, W), bright is dense, in the window's units; raises ImageError."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tags that break the standard and do not matter here
        try:
            dataset = _parse(data, name)
            shown = _as_displayed(dataset, _stored(dataset, name))
        except (ImageError, MemoryError):  # the latter says nothing of the file
            raise
        except Exception as error:  # pydicom and its decoders raise anything, AttributeError and KeyError included
            raise ImageError(f"{name}: not a readable DICOM image ({_reason(error)})") from error
    if not (np.isfinite(shown.min()) and np.isfinite(shown.max())):
        raise ImageError(f"{name}: pixel values are not finite after rescale and window")
    return shown


def dicom_hw(head: bytes) -> tuple[int, int]:
    """Height and width that the first part of a DICOM file claims; raises what pydicom raises when it does not tell."""
    dataset = _parse(head, "", stop_before_pixels=True)
    return int(dataset.Rows), int(dataset.Columns)


def _parse(data: bytes, name: str, **options: Any) -> "Dataset":
    import pydicom  # 0.2 s: kept out of --help
    from pydicom.filereader import data_element_generator

    # As pydicom is about to read it: a deflated file's size cannot be known before all of it is inflated.
    stream = io.BytesIO(data)
    stream.seek(132)
    for element in data_element_generator(stream, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2):
        if element.tag == 0x00020010 and _DEFLATED.encode() in (element.value or b""):
            raise ImageError(f"{name}: deflated DICOM is not read; convert it to explicit VR little endian")
    return pydicom.dcmread(io.BytesIO(data), **options)


def _stored(dataset: "Dataset", name: str) -> NDArray:
    """The stored values, (H, W) or, as red, green and blue, (H, W, 3), in the machine's own byte order."""
    from pydicom.pixels import get_decoder

    syntax = dataset.file_meta.get("TransferSyntaxUID")
    if syntax is None or not syntax.is_transfer_syntax:
        raise ImageError(f"{name}: unknown transfer syntax {ascii(syntax)[:80]}")
    if not dataset.get("PixelData"):
        raise ImageError(f"{name}: DICOM without pixel data")
    _check_tags(dataset, name)
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise ImageError(f"{name}: pixel data as {syntax.name} are not read; convert the file") from None
    # One decoder for run-length data: pydicom's own is much slower.
    options = {"decoding_plugin": "pylibjpeg"} if syntax == _RLE else {}
    if syntax.is_encapsulated:
        _check_frame(dataset, name)
    pixels, _ = decoder.as_array(dataset, index=0, **options)
    return pixels.astype(pixels.dtype.newbyteorder("="), copy=False)


def _check_tags(dataset: "Dataset", name: str) -> None:
    missing = next((tag for tag in _NEEDED if dataset.get(tag) in (None, "")), None)
    if missing:
        raise ImageError(f"{name}: DICOM without {missing}")
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames != 1:
        raise ImageError(f"{name}: holds {frames} frames; want a single image")
    colour = dataset.PhotometricInterpretation
    if _COLOURS.get(colour) != dataset.SamplesPerPixel:
        raise ImageError(
            f"{name}: pixels are {ascii(colour)[:40]} of {dataset.SamplesPerPixel} samples; want MONOCHROME1 or 2, or RGB"
        )
    check_size((int(dataset.Rows), int(dataset.Columns)), name)


def _check_frame(dataset: "Dataset", name: str) -> None:
    """Compares the tags with the compressed picture's own header, which is what decoders go by."""
    from pydicom.encaps import get_frame

    # A single image needs no table of offsets, and a wrong one would lead the decoder to other bytes than are checked.
    for tag in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths"):
        if tag in dataset:
            del dataset[tag]
    frame = get_frame(dataset.PixelData, 0, number_of_frames=1)
    hw = int(dataset.Rows), int(dataset.Columns)
    if dataset.file_meta.TransferSyntaxUID == _RLE:
        lengths, wanted = run_lengths(frame), dataset.SamplesPerPixel * dataset.BitsAllocated // 8
        if lengths != [hw[0] * hw[1]] * wanted:
            raise ImageError(
                f"{name}: header says {hw[1]}x{hw[0]} pixels of {wanted} bytes, run-length data hold {str(lengths)[:60]}"
            )
        return
    inner = _frame_header(frame, name)
    if inner.hw != hw:
        raise ImageError(f"{name}: header says {hw[1]}x{hw[0]}, pixel data {inner.hw[1]}x{inner.hw[0]}")
    if inner.channels != dataset.SamplesPerPixel:
        raise ImageError(f"{name}: header says {dataset.SamplesPerPixel} channels, pixel data {inner.channels}")


def _frame_header(frame: bytes, name: str) -> Header:
    if frame.startswith(JPEG):
        return jpeg_header(frame, name)
    if frame.startswith((J2K, JP2)):
        return j2k_header(frame, name)
    raise ImageError(f"{name}: pixel data are neither JPEG nor JPEG 2000 (they start with {frame[:4]!r})")


def _as_displayed(dataset: "Dataset", stored: NDArray) -> NDArray[np.float32]:
    if stored.ndim == 3:
        return colour_to_gray(stored[..., ::-1])
    if stored.dtype.itemsize > 2:
        shown = _displayed_levels(dataset, stored)
    else:
        unsigned = np.dtype(f"u{stored.dtype.itemsize}")
        levels = np.arange(np.iinfo(unsigned).max + 1, dtype=unsigned)
        table = _displayed_levels(dataset, levels.view(stored.dtype))
        is_same = np.array_equal(table, levels.view(stored.dtype))
        shown = stored.astype(np.float32) if is_same else table[stored.view(unsigned)]
    return shown.max() - shown if dataset.PhotometricInterpretation == "MONOCHROME1" else shown


def _displayed_levels(dataset: "Dataset", stored: NDArray) -> NDArray[np.float32]:
    """Stored values to shown ones, of any shape (PS3.3, C.11.1 and C.11.2): both as they are in MONOCHROME2."""
    from pydicom.pixels import apply_modality_lut, apply_windowing

    # A slope without an intercept, or the other way round, means the other one's neutral value.
    if "RescaleSlope" in dataset or "RescaleIntercept" in dataset:
        dataset.RescaleSlope = 1 if dataset.get("RescaleSlope") is None else dataset.RescaleSlope
        dataset.RescaleIntercept = dataset.get("RescaleIntercept") or 0
    modality, voi = _table(dataset, "ModalityLUTSequence"), _table(dataset, "VOILUTSequence")
    values = apply_modality_lut(stored, dataset) if modality is None else _looked_up(stored, modality, dataset)
    if voi is not None:
        values = _looked_up(values, voi, dataset)
    elif _has_window(dataset):
        values = apply_windowing(values, dataset)
    return values.astype(np.float32)


def _table(dataset: "Dataset", sequence: str) -> "Dataset | None":
    """The first table of a sequence, unless it is empty."""
    item = next(iter(dataset.get(sequence) or ()), None)
    return item if item is not None and item.get("LUTDescriptor") and item.get("LUTData") else None


def _looked_up(values: NDArray, item: "Dataset", dataset: "Dataset") -> NDArray:
    """Values through a table (PS3.3, C.11.1.1): its first entry stands for all lower values, its last for all higher.

    pydicom's own functions overflow where a table has more entries than its bits can count.
    """
    entries, first, _ = (int(number) for number in item.LUTDescriptor)
    data: Any = item.LUTData
    if isinstance(data, bytes):
        wide = len(data) >= 2 * (entries or 1 << 16)  # some store 8 bits in 16
        order = "<" if dataset.file_meta.TransferSyntaxUID.is_little_endian else ">"
        data = np.frombuffer(data, f"{order}u2" if wide else "u1")
    table = np.asarray(data)[: entries or 1 << 16]
    return table[np.clip(np.round(values).astype(np.int64) - first, 0, len(table) - 1)]


def _has_window(dataset: "Dataset") -> bool:
    """Whether the first window can be used: some files carry an empty one, or one without any width."""
    widths, centres = dataset.get("WindowWidth"), dataset.get("WindowCenter")
    if widths in (None, "") or centres in (None, ""):
        return False
    dataset.VOILUTFunction = dataset.get("VOILUTFunction") or "LINEAR"
    first = float(widths if dataset["WindowWidth"].VM == 1 else widths[0])
    return first >= 1 or (first > 0 and dataset.VOILUTFunction != "LINEAR")


def colour_to_gray(image: NDArray) -> NDArray[np.float32]:
    """Blue, green, red (H, W, 3) to grey; equal channels come out exactly as they are."""
    blue, green, red = (image[..., k].astype(np.float32) for k in range(3))
    return green + np.float32(0.114) * (blue - green) + np.float32(0.299) * (red - green)


def _reason(error: BaseException) -> str:
    """One line of an error; where that announces a list of causes, the first of these."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[1 if lines[0].endswith(":") and len(lines) > 1 else 0][:200]
