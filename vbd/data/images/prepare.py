"""From the bytes of an X-ray file to the bytes of its prepared image, and back to pixels.

A raw file is DICOM, PNG or JPEG. It is resized in floating point and quantised once, at the end. A film of more than 8
bits, and every DICOM, is stretched between its darkest and its brightest value; a picture of 8 bits keeps its grey values,
because someone chose them, and so that preparing what was prepared changes nothing. Whatever is wrong with a file becomes
an `ImageError` of one line, and its own claims are checked before anything is decoded (`images_containers.py`).
"""

from dataclasses import dataclass
from typing import assert_never

import cv2
import numpy as np
from numpy.typing import NDArray

from vbd.augment.intensity import clahe
from vbd.boxes import resize_transform
from vbd.config import ImageFormat, PrepareConfig
from vbd.config.fields import ResizeMode
from vbd.data.images.dicom import colour_to_gray, dicom_hw, is_dicom, read_dicom
from vbd.data.images.duplicates import perceptual_hash
from vbd.data.images.headers import JPEG, PNG, Header, ImageError, first_hw, jpeg_header, png_header

# Enough for the tags before the pixels, or for a JPEG's thumbnail and colour profile.
_HEAD_BYTES = 1 << 18
_PNG_HEAD_BYTES = 64

# Without the second bit, cv2 would turn pictures whose EXIF tag says so, and boxes would not follow.
_AS_STORED = cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION

# PNG takes none: with a level given, cv2 leaves its quick strategy, for twice the time and no smaller films.
# Without subsampling: the channels of a composed image are no colours.
_JPEG_OPTIONS = (
    *(cv2.IMWRITE_JPEG_QUALITY, 95),
    *(cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444),
)

# Edges are looked for at this scale, pixels of the prepared image: below it there is the film's grain.
_EDGE_SIGMA = 1.0
# The edge that is shown white: only one pixel in 200 has a stronger one, so that a metal marker does not set the scale.
_EDGE_QUANTILE = 0.995
# Below one grey level for each pixel there are no edges to stretch, only noise.
_FAINTEST_EDGE = 1.0


@dataclass(frozen=True)
class PreparedImage:
    """One image of a prepared dataset."""

    data: bytes  # the encoded file, as it lies in images/ and in the shards
    original_hw: tuple[int, int]  # of the raw file
    perceptual_hash: bytes | None  # of the square film, `duplicates.perceptual_hash`; None when not asked for


def prepare_image(data: bytes, *, name: str, config: PrepareConfig, with_hash: bool = True) -> PreparedImage:
    """A raw file's bytes to its prepared image's; `name` is for messages. Raises ImageError.

    A file that is the prepared image already is handed on as it is: decoded for the perceptual hash alone.
    """
    header = _header(data, name)
    is_prepared = header is not None and _is_prepared(header, data, config)
    if header is not None and is_prepared and not with_hash:
        return PreparedImage(data, header.hw, None)
    image, is_8bit = _read(data, header, name)
    hw = image.shape[0], image.shape[1]
    if is_prepared:
        return PreparedImage(data, hw, perceptual_hash(image.astype(np.uint8)))
    fitted = _fit(image, config.image_size, config.resize)
    film = _quantise(fitted, is_8bit=is_8bit, top=255).astype(np.uint8)
    picture: NDArray = compose(film) if config.channels == "composed" else film
    if config.image_format == "png16":
        fine = _quantise(fitted * 257 if is_8bit else fitted, is_8bit=is_8bit, top=65535)
        picture = _with_film(_widen(picture), fine)
    square, shown = (_on_square(each, hw, config.image_size, config.resize) for each in (picture, film))
    return PreparedImage(encode_image(square, config.image_format), hw, perceptual_hash(shown) if with_hash else None)


def decode_image(data: bytes) -> NDArray[np.uint8]:
    """The pixels of a prepared image: (H, W) grey, or (H, W, 3) whose first channel is the film. 16 bits become 8."""
    image = _decoded(data)
    if image is None or (image.ndim == 3 and image.shape[2] != 3):
        raise ImageError("not a readable prepared image")
    if image.dtype == np.uint16:
        image = ((image.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB) if image.ndim == 3 else image


def encode_image(image: NDArray, image_format: ImageFormat) -> bytes:
    """uint8 (H, W) or (H, W, 3) to a file's bytes; `png16` takes uint16 too. The first channel is the file's red one."""
    if image.dtype != np.uint8 and (image_format, image.dtype) != ("png16", np.uint16):
        raise ValueError(f"cannot encode an image of type {image.dtype} as {image_format}")
    ordered = cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if image.ndim == 3 else image
    match image_format:
        case "png":
            data = cv2.imencode(".png", ordered)[1]
        case "png16":
            data = cv2.imencode(".png", ordered if image.dtype == np.uint16 else _widen(ordered))[1]
        case "jpeg":
            data = cv2.imencode(".jpg", ordered, _JPEG_OPTIONS)[1]
        case _:
            assert_never(image_format)
    return data.tobytes()


def suffix_of(image_format: ImageFormat) -> str:
    """How the names of prepared images end."""
    return ".jpg" if image_format == "jpeg" else ".png"


def compose(film: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A film (H, W) as three channels (H, W, 3): itself, its CLAHE as in augmentation, and its edges.

    An edge is the length of the Scharr gradient after a blur of one pixel; the strongest are white.
    """
    blurred = cv2.GaussianBlur(film.astype(np.float32), (0, 0), _EDGE_SIGMA)
    # The kernel's weights add up to 16 on either side, two pixels apart: 1/32 makes it grey levels for each pixel.
    across, down = (cv2.Scharr(blurred, cv2.CV_32F, dx, 1 - dx, scale=1 / 32) for dx in (1, 0))
    lengths = cv2.magnitude(across, down)
    white = max(float(np.quantile(lengths, _EDGE_QUANTILE)), _FAINTEST_EDGE)
    edges = np.round(np.minimum(lengths * np.float32(255 / white), 255)).astype(np.uint8)
    return np.stack([film, clahe(film, strength=1), edges], axis=2)


def read_gray(data: bytes, *, name: str) -> NDArray[np.float32]:
    """The picture in a file: (H, W), bright is dense, in the file's own range of values.

    DICOM: modality rescale, then VOI LUT or the first window, then MONOCHROME1 turned around. `name` is for messages.
    """
    return _read(data, _header(data, name), name)[0]


def resize_square(image: NDArray[np.uint8], image_size: int) -> NDArray[np.uint8]:
    """A prepared image at another size: (S, S) or (S, S, 3) to the same of `image_size`."""
    if len(image) == image_size:
        return image
    interpolation = cv2.INTER_AREA if image_size < len(image) else cv2.INTER_LINEAR
    return cv2.resize(image, (image_size, image_size), interpolation=interpolation)


def read_size(path: str) -> tuple[int, int] | None:
    """Height and width that a file's header claims, from its first part only; None when it does not tell."""
    from vbd import storage

    files, place = storage.filesystem(path)
    with files.open_input_stream(place) as stream:
        head = stream.read(_PNG_HEAD_BYTES)
        if not head.startswith(PNG):  # whose size stands right at its beginning
            head += stream.read(_HEAD_BYTES - len(head))
    try:
        return dicom_hw(head) if is_dicom(head) else first_hw(head)
    except Exception:  # whoever decodes the file will tell what is wrong with it
        return None


def _header(data: bytes, name: str) -> Header | None:
    """The checked header of a PNG or JPEG; None for a DICOM, which is checked while it is read."""
    if not data:
        raise ImageError(f"{name}: empty file (0 bytes)")
    if is_dicom(data):
        return None
    if data.startswith(PNG):
        return png_header(data, name)
    if not data.startswith(JPEG):
        raise ImageError(f"{name}: neither DICOM, PNG nor JPEG (starts with {data[:4]!r})")
    header = jpeg_header(data, name)
    if header.channels not in (1, 3):  # CMYK, and nothing tells for sure whether black is 0 or 255
        raise ImageError(f"{name}: JPEG of {header.channels} channels; want grey or colour")
    return header


def _is_prepared(header: Header, data: bytes, config: PrepareConfig) -> bool:
    """Whether a file is what preparing it would give: not a pixel has to change."""
    wanted = {"png": PNG, "jpeg": JPEG}.get(config.image_format)
    is_film = (header.channels, header.bits, config.channels) == (1, 8, "grey")
    fits = header.hw == (config.image_size, config.image_size)
    return wanted is not None and data.startswith(wanted) and is_film and fits and header.is_plain


def _read(data: bytes, header: Header | None, name: str) -> tuple[NDArray[np.float32], bool]:
    """The grey picture (H, W) in the file's own range of values, and whether its grey values are those of a screen."""
    if header is None:
        return read_dicom(data, name=name), False
    image = _decoded(data)
    if image is None:
        raise ImageError(f"{name}: corrupt {'PNG' if data.startswith(PNG) else 'JPEG'}; it cannot be decoded")
    is_8bit = image.dtype == np.uint8
    if image.ndim == 3:  # what is transparent counts as if it were not
        return colour_to_gray(image[..., :3]), is_8bit
    return image.astype(np.float32), is_8bit


def _decoded(data: bytes) -> NDArray | None:
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), _AS_STORED)
    except cv2.error:
        return None


def _fit(image: NDArray[np.float32], image_size: int, mode: ResizeMode) -> NDArray[np.float32]:
    """A picture at the size that it takes in the square, by the geometry of `boxes.resize_transform`."""
    height, width = image.shape
    scale, _ = resize_transform((height, width), image_size, mode)
    new_width, new_height = (max(1, round(side)) for side in (width * scale[0], height * scale[1]))
    shrinks = new_width <= width and new_height <= height
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(image, (new_width, new_height), interpolation=interpolation)


def _on_square(image: NDArray, original_hw: tuple[int, int], image_size: int, mode: ResizeMode) -> NDArray:
    """A fitted picture (h, w) or (h, w, 3) on its square; letterbox margins take each channel's darkest value."""
    if image.shape[:2] == (image_size, image_size):
        return image
    square = np.empty((image_size, image_size, *image.shape[2:]), image.dtype)
    square[:] = image.min(axis=(0, 1))
    left, top = resize_transform(original_hw, image_size, mode)[1].astype(int)
    square[top : top + image.shape[0], left : left + image.shape[1]] = image
    return square


def _quantise(image: NDArray[np.float32], *, is_8bit: bool, top: int) -> NDArray[np.float32]:
    """Whole numbers 0..top: grey values as they are, others from the darkest to the brightest; one value is black."""
    if is_8bit:
        return np.round(image)
    low, high = float(image.min()), float(image.max())
    return np.round((image - low) * (top / (high - low))) if high > low else np.zeros_like(image)


def _widen(image: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """8 bits to 16, black to black and white to white; `decode_image` gives the same 8 bits back."""
    return image.astype(np.uint16) * 257


def _with_film(picture: NDArray[np.uint16], film: NDArray[np.float32]) -> NDArray[np.uint16]:
    """A grey or composed picture with another film in its place."""
    return film.astype(np.uint16) if picture.ndim == 2 else np.dstack([film.astype(np.uint16), picture[..., 1:]])
