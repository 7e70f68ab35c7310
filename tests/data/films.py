"""Small files of every kind that `vbd.data.images.prepare` reads."""

import io
import struct
import zlib
from typing import Any

import cv2
import numpy as np
import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.uid import UID, ExplicitVRLittleEndian


def pattern(height: int = 80, width: int = 60, largest: int = 4095) -> np.ndarray:
    """Noise, so that no two pixels may be exchanged."""
    return np.random.default_rng(0).integers(0, largest + 1, (height, width)).astype(np.uint16)


def smooth(height: int = 80, width: int = 60) -> np.ndarray:
    """Eight bits that JPEG keeps within a few grey levels."""
    return cv2.GaussianBlur(pattern(height, width, 255).astype(np.uint8), (0, 0), 4)


def dicom_dataset(
    pixels: np.ndarray, *, bits: int = 0, syntax: UID = ExplicitVRLittleEndian, **tags: Any
) -> FileDataset:
    bits = bits or min(12, 8 * pixels.dtype.itemsize)
    dataset = FileDataset("", {}, file_meta=FileMetaDataset(), preamble=b"\0" * 128)
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian if syntax.is_compressed else syntax
    dataset.file_meta.MediaStorageSOPClassUID = pydicom.uid.DigitalXRayImageStorageForPresentation
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = "1.2.3"
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.PixelRepresentation = int(np.issubdtype(pixels.dtype, np.signedinteger))
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8 * pixels.dtype.itemsize, bits, bits - 1
    dataset.PixelData = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
    dataset["PixelData"].VR = "OW"
    for tag, value in tags.items():
        setattr(dataset, tag, value)
    if syntax.is_compressed:
        dataset.compress(syntax)
    return dataset


def saved(dataset: FileDataset) -> bytes:
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def dicom(pixels: np.ndarray, **options: Any) -> bytes:
    return saved(dicom_dataset(pixels, **options))


def frame_of(dataset: FileDataset) -> bytearray:
    """The compressed picture."""
    return bytearray(get_frame(dataset.PixelData, 0, number_of_frames=1))


def with_frame(dataset: FileDataset, *frames: bytes, syntax: UID | None = None) -> bytes:
    """The dataset with other compressed pixel data."""
    dataset.file_meta.TransferSyntaxUID = syntax or dataset.file_meta.TransferSyntaxUID
    dataset.PixelData = encapsulate([bytes(frame) for frame in frames])
    return saved(dataset)


def table(entries: list[int], *, first: int = 0, bits: int = 16) -> pydicom.Dataset:
    """A lookup table, as an item of a VOI or modality sequence."""
    item = pydicom.Dataset()
    item.add_new("LUTDescriptor", "US" if first >= 0 else "SS", [len(entries), first, bits])
    data = np.array(entries, "<u2" if bits > 8 else "u1").tobytes()
    item.add_new("LUTData", "OW", data + b"\0" * (len(data) % 2))
    return item


def png(image: np.ndarray) -> bytes:
    return cv2.imencode(".png", image)[1].tobytes()


def jpeg(image: np.ndarray, quality: int = 95) -> bytes:
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def chunk(kind: bytes, body: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_of(width: int, height: int, pixels: bytes, *, bits: int = 8, colour: int = 0, extra: bytes = b"") -> bytes:
    """A PNG whose chunks are whole, whatever its header claims and its compressed pixels hold."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def scanlines(image: np.ndarray) -> bytes:
    """What a PNG of the picture compresses: each line without a filter."""
    return zlib.compress(b"".join(b"\0" + line.tobytes() for line in image))


def claims(data: bytes, height: int, width: int) -> bytes:
    """A JPEG whose frame header tells another size."""
    at = data.index(b"\xff\xc0")
    return data[: at + 5] + struct.pack(">HH", height, width) + data[at + 9 :]
