"""What a PNG, JPEG or JPEG 2000 stream says of itself, read before anything is decoded.

A decoder sets memory aside as the stream's own header tells it to, so that is what is checked here: the size and the
channels, and for JPEG 2000 into how many parts the picture is cut.
"""

import functools
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vbd.caches import compiled
from vbd.errors import InputError

# Five times the largest film of the competition (3408 x 3320).
MAX_PIXELS = 64_000_000
# Tiles, precincts and code-blocks of a JPEG 2000 picture: decoders need about 500 bytes for each. A film of MAX_PIXELS
# with the smallest blocks in use, 16 x 16, has a quarter of this.
MAX_J2K_PARTS = 1_000_000

# Pixels that a byte can hold. A JPEG spends at least one bit on each block of 8 x 8; JPEG 2000 knows no bound, but only
# an empty picture is packed more tightly than this.
_JPEG_PIXELS_PER_BYTE, _J2K_PIXELS_PER_BYTE = 512, 4096

PNG = b"\x89PNG\r\n\x1a\n"
JPEG = b"\xff\xd8\xff"
J2K = b"\xff\x4f\xff\x51"  # a JPEG 2000 codestream: start, then the size segment
JP2 = b"\x00\x00\x00\x0cjP  "

# Chunks and segments that tell of nothing but the pixels: without a text, which may name the patient, without a place
# for the camera's orientation, and without transparency.
_PLAIN_CHUNKS = {b"IHDR", b"IDAT", b"IEND", b"gAMA", b"cHRM", b"sRGB", b"sBIT", b"pHYs", b"bKGD", b"tIME"}
_PLAIN_SEGMENTS = {0xC0, 0xC1, 0xC2, 0xC4, 0xD9, 0xDA, 0xDB, 0xDD, 0xE0}

# A JPEG marker with neither a stuffed byte nor a restart marker, which stand within the compressed data.
_JPEG_MARKER = re.compile(rb"\xff[\xc0-\xcf\xd8-\xfe]")
# Start of a frame (ITU T.81 and, F7, JPEG-LS T.87): C4, C8 and CC are tables.
_JPEG_FRAMES = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
_LOSSLESS_FRAMES = {0xC3, 0xC7, 0xCB, 0xCF, 0xF7}
# Segments of JPEG 2000's main and tile-part headers (ITU T.800, A.2; CAP and CPF of T.814), and the end.
_J2K_SEGMENTS = {*range(0x50, 0x54), 0x55, *range(0x57, 0x5A), *range(0x5C, 0x62), 0x63, 0x64, 0x90, 0x93, 0xD9}


class ImageError(InputError):
    """A file that is no readable X-ray image; the message starts with its name."""


@dataclass(frozen=True)
class Header:
    """A stream's own claims."""

    hw: tuple[int, int]
    channels: int  # samples of a pixel; 3 for a palette
    bits: int  # of a sample
    is_plain: bool  # nothing but the pixels is in it, so that it may be kept as it is


def check_size(hw: tuple[int, int], name: str) -> None:
    """Raises ImageError for a size that no film has and that would take too much memory to decode."""
    if min(hw) < 1 or hw[0] * hw[1] > MAX_PIXELS:
        raise ImageError(f"{name}: header says {hw[1]}x{hw[0]} pixels; want 1 to {MAX_PIXELS / 1e6:.0f} million")


def _check_length(hw: tuple[int, int], length: int, pixels_per_byte: int, name: str) -> None:
    if hw[0] * hw[1] > pixels_per_byte * length:
        raise ImageError(f"{name}: header says {hw[1]}x{hw[0]} pixels, but {length} bytes cannot hold them")


def first_hw(head: bytes) -> tuple[int, int] | None:
    """Height and width that a PNG or JPEG claims, from its first part only; None when that does not hold them."""
    if head.startswith(PNG):
        return (_number(head[20:24]), _number(head[16:20])) if len(head) >= 24 else None
    frame = next((body for marker, body in _jpeg_segments(head) if marker in _JPEG_FRAMES), b"")
    return (_number(frame[1:3]), _number(frame[3:5])) if len(frame) >= 6 else None


def png_header(data: bytes, name: str) -> Header:
    """The header of a PNG (ISO 15948) whose every chunk was found whole by its checksum; raises ImageError otherwise."""
    hw = first_hw(data)
    if hw is None:
        raise ImageError(f"{name}: truncated before its size")
    check_size(hw, name)
    kinds: list[bytes] = []
    view, at = memoryview(data), len(PNG)
    while kinds[-1:] != [b"IEND"]:
        end = at + 8 + _number(view[at : at + 4])
        if end + 4 > len(data) or zlib.crc32(view[at + 4 : end]) != _number(view[end : end + 4]):
            raise ImageError(f"{name}: truncated or corrupt PNG (chunk {len(kinds) + 1}, byte {at})")
        kinds.append(bytes(view[at + 4 : at + 8]))
        at = end + 4
    if data[8:16] != b"\0\0\0\x0dIHDR" or kinds.count(b"IHDR") != 1 or b"IDAT" not in kinds:
        raise ImageError(f"{name}: corrupt PNG (want one IHDR chunk, first of all, and IDAT)")
    if b"acTL" in kinds:
        raise ImageError(f"{name}: animated PNG; want a single image")
    bits, colour, interlaced = data[24], data[25], data[28]
    is_plain = set(kinds) <= _PLAIN_CHUNKS and at == len(data) and not interlaced
    return Header(hw, {0: 1, 2: 3, 3: 3, 4: 2}.get(colour, 4), bits, is_plain)


def jpeg_header(data: bytes, name: str) -> Header:
    """The header of a JPEG or JPEG-LS that holds one picture, whole to its end marker; raises ImageError otherwise."""
    hw = first_hw(data)
    if hw is None:
        raise ImageError(f"{name}: truncated before its size")
    check_size(hw, name)
    segments = list(_jpeg_segments(data))
    markers = [marker for marker, _ in segments]
    if markers[-1] != 0xD9:
        raise ImageError(f"{name}: truncated or corrupt JPEG (no end marker)")
    frames = [body for marker, body in segments if marker in _JPEG_FRAMES]
    if not _LOSSLESS_FRAMES & set(markers):
        _check_length(hw, len(data), _JPEG_PIXELS_PER_BYTE, name)
    if len(frames) != 1 or 0xDE in markers:  # DE: a hierarchical JPEG, whose size is another one than its frames'
        raise ImageError(f"{name}: JPEG of several pictures; want a single one")
    return Header(hw, frames[0][5], frames[0][0], set(markers) <= _PLAIN_SEGMENTS and data.endswith(b"\xff\xd9"))


def j2k_header(data: bytes, name: str) -> Header:
    """The header of a JPEG 2000 codestream (ITU T.800), bare or in a JP2 file; raises ImageError when it is out of reason.

    Its pixels may be cut short without an error: where they are kept must tell how long they are.
    """
    code = _codestream(data) if data.startswith(JP2) else data
    if not code.startswith(J2K) or len(code) < 45:
        raise ImageError(f"{name}: no JPEG 2000 codestream in its pixel data")
    x_end, y_end, x_start, y_start, tile_width, tile_height = (_number(code[k : k + 4]) for k in range(8, 32, 4))
    hw = y_end - y_start, x_end - x_start
    check_size(hw, name)
    _check_length(hw, len(data), _J2K_PIXELS_PER_BYTE, name)
    channels, bits = _number(code[40:42]), (code[42] & 127) + 1
    parts = 0
    if tile_width and tile_height:
        tiles = -(-x_end // tile_width) * -(-y_end // tile_height)
        tile_hw = min(tile_height, hw[0]), min(tile_width, hw[1])
        parts = tiles * max((_parts_of_tile(*style, tile_hw) for style in _coding_styles(code, name)), default=0)
    if not 0 < parts * channels <= MAX_J2K_PARTS:
        raise ImageError(f"{name}: JPEG 2000 of {parts * channels} parts; want 1 to {MAX_J2K_PARTS}")
    return Header(hw, channels, bits, is_plain=False)


def run_lengths(frame: bytes) -> list[int]:
    """Bytes that each segment of DICOM's run-length data unpacks to (PS3.5, annex G); empty when it has no header."""
    if len(frame) < 64:
        return []
    count, *starts = struct.unpack("<16I", frame[:64])
    ends = [*starts[1:count], len(frame)]
    return [
        _unpacked()(np.frombuffer(frame[start:end], np.uint8)) for start, end in zip(starts[:count], ends, strict=False)
    ]


@functools.cache
def _unpacked() -> Callable[[NDArray[np.uint8]], int]:
    return compiled(_unpacked_length, error_model="python")


def _unpacked_length(packed: NDArray[np.uint8]) -> int:
    """Compiled: how many bytes a segment unpacks to; -1 when it ends within a run."""
    at = length = 0
    # A byte that is left over fills the segment up to an even length.
    while at < len(packed) - 1:
        head = int(packed[at])
        if head != 128:  # which does nothing
            length += head + 1 if head < 128 else 257 - head
        at += 1 + (head + 1 if head < 128 else int(head > 128))
    return length if at <= len(packed) else -1


def _number(data: bytes | memoryview) -> int:
    return int.from_bytes(data, "big")


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Marker and content of each segment (ITU T.81, B.1), the compressed data skipped; ends where the data do."""
    found = _JPEG_MARKER.search(data, 2)
    while found:
        at, marker = found.start(), data[found.start() + 1]
        if marker == 0xD9:
            yield marker, b""
            return
        length = _number(data[at + 2 : at + 4])
        if length < 2 or at + 2 + length > len(data):
            return
        yield marker, data[at + 4 : at + 2 + length]
        found = _JPEG_MARKER.search(data, at + 2 + length)


def _codestream(data: bytes) -> bytes:
    """What lies in the codestream box of a JP2 file (ITU T.800, I.4); empty when there is none."""
    at = 0
    while at + 8 <= len(data):
        length, kind, head = _number(data[at : at + 4]), data[at + 4 : at + 8], 8
        if length == 1:
            length, head = _number(data[at + 8 : at + 16]), 16
        if kind == b"jp2c":
            return data[at + head :]
        if length < head:
            break
        at += length
    return b""


def _coding_styles(code: bytes, name: str) -> Iterator[tuple[int, bytes]]:
    """Of each COD and COC segment, in the main and all tile-part headers: the layers, and what follows from the levels on.

    A decoder that meets a segment it does not know looks for the next one byte by byte, so such a stream is refused.
    """
    at, tile_at, tile_length, layers = 2, 0, 0, 1
    while at + 4 <= len(code):
        marker, length = code[at + 1], _number(code[at + 2 : at + 4])
        body = code[at + 4 : at + 2 + length]
        if code[at] != 0xFF or marker not in _J2K_SEGMENTS:
            raise ImageError(f"{name}: corrupt JPEG 2000 header (byte {at} of its codestream)")
        match marker:
            case 0xD9:  # the end
                return
            case 0x90:  # of a tile-part; length 0 means to the end
                tile_at, tile_length = at, _number(body[2:6])
            case 0x93:  # its compressed data
                if tile_at + tile_length <= at:
                    return
                at = tile_at + tile_length
                continue
            case 0x52:  # the coding style, and without its first bit there are no sizes of precincts
                layers = _number(body[2:4])
                yield layers, body[5:] if body[:1] and body[0] & 1 else body[5:10]
            case 0x53:  # of one channel
                yield layers, body[2:] if body[1:2] and body[1] & 1 else body[2:7]
        at += 2 + length


def _parts_of_tile(layers: int, style: bytes, tile_hw: tuple[int, int]) -> int:
    """Precincts and code-blocks of one channel of a tile, at most (ITU T.800, A.6.1, B.6 and B.7)."""
    if len(style) < 5:
        return 0
    levels = min(style[0], 32)
    parts = most_precincts = 0
    for resolution in range(levels + 1):
        sizes = style[5 + resolution] if 5 + resolution < len(style) else 0xFF
        height, width = (-(-side >> (levels - resolution)) for side in tile_hw)
        precincts = ((width >> (sizes & 15)) + 2) * ((height >> (sizes >> 4)) + 2)
        # Above the lowest resolution there are three bands of half its size; a block ends where its precinct does.
        half = min(resolution, 1)
        wide = max(min((style[1] & 15) + 2, (sizes & 15) - half), 0) + half
        high = max(min((style[2] & 15) + 2, (sizes >> 4) - half), 0) + half
        parts += precincts + (1 + 2 * half) * ((width >> wide) + 2) * ((height >> high) + 2)
        most_precincts = max(most_precincts, precincts)
    # Two bytes for each layer of each precinct, against the 500 of a part.
    return parts + layers * most_precincts * (levels + 1) // 250
