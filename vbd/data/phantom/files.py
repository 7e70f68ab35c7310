"""How the synthetic films are stored: 8-bit PNG, or DICOM with the oddities of real archives."""

import hashlib
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from pydicom import Dataset

ImageFormat = Literal["dicom", "png"]


@dataclass(frozen=True)
class _Quirks:
    """How one DICOM file differs from the next."""

    bits: int
    inverted: bool  # MONOCHROME1: the largest value is black
    slope: float
    intercept: float
    windows: int  # how many the file offers; the first is the good one
    modality: str
    syntax: str  # name of a UID of pydicom


def encode_film(rng: np.random.Generator, film: NDArray[np.float32], image_format: ImageFormat, *, name: str) -> bytes:
    """A film (H, W) of 0..1 as the bytes of a file; the same generator state gives the same bytes."""
    if image_format == "png":
        pixels = np.round(film * 255).astype(np.uint8)
        # Level 1: noise hardly compresses, and higher levels cost ten times the time.
        _, data = cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, 1])
        return data.tobytes()
    return _dicom(rng, film, _draw_quirks(rng), name=name)


def _draw_quirks(rng: np.random.Generator) -> _Quirks:
    slope, intercept = ((1.0, 0.0), (1.0, -1024.0), (0.5, 0.0))[rng.choice(3, p=[0.7, 0.2, 0.1])]
    return _Quirks(
        bits=int(rng.choice([12, 14, 16], p=[0.6, 0.25, 0.15])),
        inverted=bool(rng.random() < 0.15),
        slope=slope,
        intercept=intercept,
        windows=int(rng.choice([0, 1, 3], p=[0.25, 0.6, 0.15])),
        modality="CR" if rng.random() < 0.4 else "DX",
        syntax=str(rng.choice(["ExplicitVRLittleEndian", "ImplicitVRLittleEndian", "RLELossless"], p=[0.6, 0.3, 0.1])),
    )


def _dicom(rng: np.random.Generator, film: NDArray[np.float32], quirks: _Quirks, *, name: str) -> bytes:
    import pydicom.uid
    from pydicom.dataset import FileDataset, FileMetaDataset

    syntax = getattr(pydicom.uid, quirks.syntax)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = pydicom.uid.DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = _uid(name, "image")
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian if syntax.is_compressed else syntax
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    _describe(dataset, quirks, name)
    _set_pixels(rng, dataset, film, quirks)
    if syntax.is_compressed:
        dataset.compress(syntax, generate_instance_uid=False)
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _describe(dataset: "Dataset", quirks: _Quirks, name: str) -> None:
    """Tags of the patient and the study: obviously made up, and without any time."""
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = _uid(name, "study"), _uid(name, "series")
    dataset.PatientName, dataset.PatientID = "SYNTHETIC^PHANTOM", f"SYNTHETIC-{name[:8]}"
    dataset.PatientBirthDate = dataset.StudyDate = dataset.StudyTime = ""
    dataset.PatientSex = dataset.AccessionNumber = dataset.ReferringPhysicianName = dataset.StudyID = ""
    dataset.InstanceNumber, dataset.Modality = 1, quirks.modality
    dataset.Manufacturer, dataset.SeriesDescription = "vbd phantom", "SYNTHETIC, NOT A PATIENT"
    dataset.BodyPartExamined, dataset.ViewPosition = "CHEST", "PA"


def _set_pixels(rng: np.random.Generator, dataset: "Dataset", film: NDArray[np.float32], quirks: _Quirks) -> None:
    largest = 2**quirks.bits - 1
    low, high = largest * rng.uniform(0.02, 0.1), largest * rng.uniform(0.8, 0.99)
    stored = np.round(low + film * np.float32(high - low))
    if quirks.inverted:
        stored, low, high = largest - stored, largest - high, largest - low
    dataset.Rows, dataset.Columns = film.shape
    dataset.SamplesPerPixel, dataset.PixelRepresentation = 1, 0
    dataset.PhotometricInterpretation = "MONOCHROME1" if quirks.inverted else "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, quirks.bits, quirks.bits - 1
    dataset.PixelSpacing = [0.14, 0.14]
    if (quirks.slope, quirks.intercept) != (1.0, 0.0) or rng.random() < 0.5:
        dataset.RescaleSlope, dataset.RescaleIntercept = quirks.slope, quirks.intercept
        dataset.RescaleType = "US"
    if quirks.windows:
        centre = round((low + high) / 2 * quirks.slope + quirks.intercept)
        width = round((high - low) * quirks.slope * rng.uniform(0.96, 1.1))
        centres = [centre, centre + width // 8, centre - width // 8][: quirks.windows]
        widths = [width, width // 2, width * 2][: quirks.windows]
        dataset.WindowCenter = centres if quirks.windows > 1 else centre
        dataset.WindowWidth = widths if quirks.windows > 1 else width
    dataset.PixelData = np.ascontiguousarray(stored, "<u2").tobytes()
    dataset["PixelData"].VR = "OW"


def _uid(name: str, part: str) -> str:
    digest = hashlib.blake2b(f"vbd phantom {part} {name}".encode(), digest_size=16).digest()
    return f"2.25.{int.from_bytes(digest, 'big')}"
