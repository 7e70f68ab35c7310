"""Bytes of an X-ray file to grey pixels: DICOM as a viewer would show it, PNG and JPEG of 8 or 16 bit.

Whatever is wrong with a file becomes an `ImageError` of one line. The size that a header claims is checked against
`MAX_PIXELS`, and against the compressed pixel data's own header, before anything is decoded.
"""

import io
import warnings
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

from vbd.boxes import ResizeMode, resize_transform
from vbd.errors import InputError

if TYPE_CHECKING:
    from pydicom import Dataset

# Five times the largest film of the competition (3408 x 3320).
MAX_PIXELS = 64_000_000

# Enough for the tags before the pixels, or for a JPEG's thumbnail and colour profile.
_HEAD_BYTES = 1 << 18

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_J2K = b"\xff\x4f\xff\x51"  # a JPEG 2000 codestream: start, then the size segment
_JP2 = b"\x00\x00\x00\x0cjP  "
_DEFLATED = b"1.2.840.10008.1.2.1.99"


class ImageError(InputError):
    """A file that is no readable X-ray image; the message starts with its name."""


def read_gray(data: bytes, *, name: str) -> NDArray[np.float32]:
    """The picture in a file: (H, W), bright is dense, in the file's own range of values.

    DICOM: modality rescale, then VOI LUT or the first window, then MONOCHROME1 turned around. `name` is for messages.
    """
    if not data:
        raise ImageError(f"{name}: empty file (0 bytes)")
    if data[128:132] == b"DICM":
        return _read_dicom(data, name)
    if data.startswith((_PNG, _JPEG)):
        return _read_picture(data, name)
    raise ImageError(f"{name}: neither DICOM, PNG nor JPEG (starts with {data[:4]!r})")


def prepare_pixels(
    data: bytes, *, name: str, image_size: int, mode: ResizeMode
) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """A file's picture as the square of a prepared dataset, (S, S), and its original (height, width)."""
    image = read_gray(data, name=name)
    return to_uint8(resize(image, image_size, mode)), (image.shape[0], image.shape[1])


def resize(image: NDArray[np.float32], image_size: int, mode: ResizeMode) -> NDArray[np.float32]:
    """(H, W) to (S, S), with the geometry of `boxes.resize_transform`; letterbox margins take the darkest value."""
    height, width = image.shape
    scale, offset = resize_transform((height, width), image_size, mode)
    new_width, new_height = (max(1, round(side)) for side in (width * scale[0], height * scale[1]))
    shrinks = new_width <= width and new_height <= height
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    resized = cv2.resize(image, (new_width, new_height), interpolation=interpolation)
    if mode == "stretch":
        return resized
    square = np.full((image_size, image_size), resized.min(), np.float32)
    left, top = offset.astype(int)
    square[top : top + new_height, left : left + new_width] = resized
    return square


def resize_square(image: NDArray[np.uint8], image_size: int) -> NDArray[np.uint8]:
    """A prepared image at another size: (S, S) to (image_size, image_size)."""
    if len(image) == image_size:
        return image
    interpolation = cv2.INTER_AREA if image_size < len(image) else cv2.INTER_LINEAR
    return cv2.resize(image, (image_size, image_size), interpolation=interpolation)


def to_uint8(image: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Stretches the values between minimum and maximum to 0..255; a picture of one value becomes black."""
    low, high = float(image.min()), float(image.max())
    if high <= low:
        return np.zeros(image.shape, np.uint8)
    return np.round((image - low) * (255 / (high - low))).astype(np.uint8)


def read_size(path: str) -> tuple[int, int] | None:
    """Height and width that a file's header claims, from its first part only; None when it does not tell."""
    from vbd import storage

    files, place = storage.filesystem(path)
    with files.open_input_stream(place) as stream:
        head = stream.read(_HEAD_BYTES)
    try:
        if head[128:132] == b"DICM":
            import pydicom

            dataset = pydicom.dcmread(io.BytesIO(head), stop_before_pixels=True)
            return int(dataset.Rows), int(dataset.Columns)
        return _header_hw(head, path)
    except Exception:  # whoever decodes the file will tell what is wrong with it
        return None


def encode_png(image: NDArray[np.uint8]) -> bytes:
    """(H, W) uint8 to the bytes of a PNG file."""
    # Level 1: noise hardly compresses, and higher levels cost several times the time.
    done, data = cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    if not done:
        raise ValueError(f"cannot encode an image of shape {image.shape} and type {image.dtype}")
    return data.tobytes()


def decode_png(data: bytes) -> NDArray[np.uint8]:
    """The bytes of a PNG file to (H, W) uint8."""
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
    if image is None:
        raise ImageError("not a readable PNG")
    return image


def _read_picture(data: bytes, name: str) -> NDArray[np.float32]:
    _check_size(_header_hw(data, name), name)
    # Without this bit, cv2 would turn pictures whose EXIF tag says so, and boxes would not follow.
    flags = cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise ImageError(f"{name}: cannot be decoded ({_first_line(error)})") from error
    # Decoders fill what is missing of a cut file with grey: only the end marker tells.
    is_whole = b"IEND" in data[-32:] if data.startswith(_PNG) else b"\xff\xd9" in data[-4096:]
    if image is None or not is_whole:
        raise ImageError(f"{name}: truncated or corrupt {'PNG' if data.startswith(_PNG) else 'JPEG'}")
    if image.ndim == 3:
        image = image[..., 0] if image.shape[2] == 2 else _colour_to_gray(image[..., :3])
    return image.astype(np.float32)


def _colour_to_gray(image: NDArray) -> NDArray[np.float32]:
    """Blue, green, red (H, W, 3) to grey; equal channels come out exactly as they are."""
    blue, green, red = (image[..., k].astype(np.float32) for k in range(3))
    return green + np.float32(0.114) * (blue - green) + np.float32(0.299) * (red - green)


def _read_dicom(data: bytes, name: str) -> NDArray[np.float32]:
    import pydicom  # 0.2 s: kept out of --help

    if _DEFLATED in data[:4096]:
        # Its size cannot be known before all of it is inflated.
        raise ImageError(f"{name}: deflated DICOM is not read; convert it to explicit VR little endian")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tags that break the standard and do not matter here
        try:
            dataset = pydicom.dcmread(io.BytesIO(data))
            _check_dicom(dataset, name)
            shown = _as_displayed(dataset)
        except ImageError:
            raise
        except Exception as error:  # pydicom and its decoders raise anything, AttributeError and KeyError included
            raise ImageError(f"{name}: not a readable DICOM image ({_first_line(error)})") from error
    if not np.isfinite(shown).all():
        raise ImageError(f"{name}: pixel values are not finite after rescale and window")
    return shown


def _check_dicom(dataset: "Dataset", name: str) -> None:
    """Refuses what cannot be decoded, or would need too much memory, before decoding."""
    from pydicom.encaps import generate_frames

    syntax = dataset.file_meta.get("TransferSyntaxUID")
    if syntax is None or not syntax.is_transfer_syntax:
        raise ImageError(f"{name}: unknown transfer syntax {syntax}")
    if "PixelData" not in dataset:
        raise ImageError(f"{name}: DICOM without pixel data")
    missing = [tag for tag in ("Rows", "Columns", "BitsAllocated") if not dataset.get(tag)]
    if missing:
        raise ImageError(f"{name}: DICOM without {missing[0]}")
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames != 1:
        raise ImageError(f"{name}: holds {frames} frames; want a single image")
    hw = int(dataset.Rows), int(dataset.Columns)
    _check_size(hw, name)
    if not dataset.PixelData:
        raise ImageError(f"{name}: DICOM without pixel data")
    if syntax.is_encapsulated:
        frame = next(generate_frames(dataset.PixelData, number_of_frames=1), b"")
        if frame.startswith((_JPEG, _J2K, _JP2)):
            inner_hw = _header_hw(frame, name)
            if inner_hw != hw:
                raise ImageError(f"{name}: header says {hw[1]}x{hw[0]}, pixel data {inner_hw[1]}x{inner_hw[0]}")


def _as_displayed(dataset: "Dataset") -> NDArray[np.float32]:
    from pydicom.pixels import apply_modality_lut, apply_voi, apply_windowing

    stored = dataset.pixel_array
    if stored.ndim == 3:  # pydicom gives red, green, blue
        return _colour_to_gray(stored[..., ::-1])
    values = apply_modality_lut(stored, dataset)
    if dataset.get("VOILUTSequence"):
        values = apply_voi(np.round(values).astype(np.int64), dataset)
    elif _has_window(dataset):
        values = apply_windowing(values, dataset)
    shown = values.astype(np.float32)
    return shown.max() - shown if dataset.get("PhotometricInterpretation") == "MONOCHROME1" else shown


def _has_window(dataset: "Dataset") -> bool:
    """Whether the first window can be used: some files carry an empty one, or one without any width."""
    widths, centres = dataset.get("WindowWidth"), dataset.get("WindowCenter")
    if widths in (None, "") or centres in (None, ""):
        return False
    first = widths if dataset["WindowWidth"].VM == 1 else widths[0]
    return float(first) >= 1


def _check_size(hw: tuple[int, int], name: str) -> None:
    if min(hw) < 1 or hw[0] * hw[1] > MAX_PIXELS:
        raise ImageError(f"{name}: header says {hw[1]}x{hw[0]} pixels; want 1 to {MAX_PIXELS / 1e6:.0f} million")


def _header_hw(data: bytes, name: str) -> tuple[int, int]:
    """Height and width that a PNG, JPEG or JPEG 2000 stream claims; raises ImageError when it ends before that."""
    if data.startswith(_PNG):
        width, height = data[16:20], data[20:24]
    elif data.startswith(_JPEG):
        height, width = _jpeg_sides(data)
    else:
        start = data.find(_J2K)
        if start < 0:
            raise ImageError(f"{name}: no size in its header")
        sides = data[start + 8 : start + 24]
        x_end, y_end, x_start, y_start = (int.from_bytes(sides[k : k + 4], "big") for k in (0, 4, 8, 12))
        return y_end - y_start, x_end - x_start
    if not height or not width:
        raise ImageError(f"{name}: truncated before its size")
    return int.from_bytes(height, "big"), int.from_bytes(width, "big")


def _jpeg_sides(data: bytes) -> tuple[bytes, bytes]:
    """Height and width of a JPEG's start-of-frame segment (ITU T.81, B.2.2); empty when there is none."""
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # padding
            at += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return data[at + 5 : at + 7], data[at + 7 : at + 9]
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return b"", b""


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
