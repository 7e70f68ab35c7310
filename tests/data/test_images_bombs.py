"""Files that ask for much more memory than they are worth, and headers that lie, are refused before any of it is taken.

A process of its own reads them, which tells how far its memory rose at each; a limit keeps a failure from hurting anybody.
"""

import functools
import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEG2000Lossless, JPEGBaseline8Bit, RLELossless

from tests.data.films import (
    chunk,
    claims,
    dicom,
    dicom_dataset,
    frame_of,
    jpeg,
    pattern,
    png_of,
    saved,
    smooth,
    with_frame,
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")

ROOT = Path(__file__).parents[2]
# Megabytes: more than any honest file here needs, a fiftieth of what the dishonest ones ask for.
LARGEST_RISE = 64
ZEROS = 200_000_000

READER = """
import json, resource, sys
from pathlib import Path
from vbd.data.images.prepare import read_gray, read_size

def kilobytes(field):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(field))

for name in ("honest", "honest_rle"):  # so that every library is loaded
    read_gray(Path(sys.argv[1], name).read_bytes(), name=name)
resource.setrlimit(resource.RLIMIT_AS, (kilobytes("VmSize") * 1024 + 4_000_000_000,) * 2)
found = {}
for path in sorted(Path(sys.argv[1]).iterdir()):
    data = path.read_bytes()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from here
    before = kilobytes("VmRSS")
    try:
        message = f"{read_gray(data, name='').shape}"
    except Exception as error:
        message = f"{type(error).__name__}{error}"
    read_size(str(path))
    found[path.name] = message, (kilobytes("VmHWM") - before) / 1024
print(json.dumps(found))
"""


def j2k_of(dataset_hw: int, **fields: bytes) -> bytes:
    """A DICOM of a JPEG 2000 picture with other bytes at some places of its codestream, named a8 for byte 8."""
    dataset = dicom_dataset(smooth(), syntax=JPEG2000Lossless)
    frame = frame_of(dataset)
    for place, content in fields.items():
        frame[int(place[1:]) : int(place[1:]) + len(content)] = content
    if dataset_hw:
        dataset.Rows = dataset.Columns = dataset_hw
    return with_frame(dataset, frame)


def j2k_of_small_parts(*, tiles: int = 0, precincts: int = 0, layers: int = 0) -> bytes:
    """8 million pixels that are cut into the smallest parts which the standard allows, padded to a plausible length."""
    side = 2880
    size = struct.pack(">8I", side, side, 0, 0, *([tiles] * 2 if tiles else [side] * 2), 0, 0)
    siz = b"\xff\x51\0\x29\0\0" + size + b"\0\1\7\1\1"
    sizes = bytes([precincts * 0x11] * 6) if precincts else b""
    style = bytes([bool(sizes), 0]) + struct.pack(">H", layers or 1) + b"\0\5\4\4\0\1" + sizes
    code = b"\xff\x4f" + siz + b"\xff\x52" + struct.pack(">H", 2 + len(style)) + style + b"\xff\x5c\0\x13\x40"
    code += bytes(range(0x48, 0x48 + 16)) + b"\xff\x90\0\x0a\0\0\0\0\0\0\0\1\xff\x93" + bytes(100_000) + b"\xff\xd9"
    dataset = dicom_dataset(smooth(), syntax=JPEG2000Lossless)
    dataset.Rows = dataset.Columns = side
    return with_frame(dataset, code)


def run_lengths_that_grow() -> bytes:
    dataset = dicom_dataset(pattern(), syntax=RLELossless)
    runs = b"\x81\0" * 1_500_000  # 128 bytes of each pair
    return with_frame(dataset, struct.pack("<16I", 2, 64, 64 + len(runs), *[0] * 13) + runs + runs)


def deflated(*, is_hidden: bool) -> bytes:
    dataset = dicom_dataset(pattern())
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    if is_hidden:  # behind a private part of the meta header
        dataset.file_meta.PrivateInformationCreatorUID = "1.2.3"
        dataset.file_meta.ImplementationVersionName = "x"
        dataset.file_meta.FileMetaInformationVersion = bytes(20_000)
    dataset.PixelData = bytes(ZEROS)
    return saved(dataset)


def jpeg_with(at: bytes, extra: bytes) -> bytes:
    data = jpeg(smooth())
    return data.replace(at, extra + at, 1)


def second_picture() -> bytes:
    dataset = dicom_dataset(smooth(), syntax=JPEG2000Lossless)
    bomb = frame_of(dataset)
    bomb[8:16] = bomb[24:32] = struct.pack(">II", 60_000, 60_000)
    return with_frame(dataset, frame_of(dataset), bomb)


@functools.cache
def files() -> dict[str, tuple[bytes, str]]:
    """Name, bytes, and what must be said of each."""
    zeros = zlib.compress(bytes(ZEROS), 9)
    huge, large = struct.pack(">II", 60_000, 60_000), struct.pack(">II", 8_000, 8_000)
    hierarchical = b"\xff\xde\0\x0b\x08" + struct.pack(">HH", 60_000, 60_000) + b"\1\1\x11\0"
    whole = zlib.compress(bytes(60 * 81), 9)
    dhp = with_frame(dicom_dataset(smooth()), jpeg_with(b"\xff\xc0", hierarchical), syntax=JPEGBaseline8Bit)
    lossless = pydicom.dcmread(Path(pydicom.__file__).parent / "data" / "test_files" / "MR_small_jpeg_ls_lossless.dcm")
    return {
        "honest": (dicom(pattern()), "(80, 60)"),
        "honest_rle": (dicom(pattern(), syntax=RLELossless), "(80, 60)"),
        "png": (png_of(60_000, 60_000, whole), "header says 60000x60000"),
        "png_of_little": (png_of(8_000, 8_000, whole), "cannot be decoded"),
        "png_of_more": (png_of(60, 80, zeros), "(80, 60)"),
        "png_profile": (png_of(80, 60, whole, extra=chunk(b"iCCP", b"a\0\0" + zeros)), "(60, 80)"),
        "png_text": (png_of(80, 60, whole, extra=chunk(b"zTXt", b"a\0\0" + zeros)), "(60, 80)"),
        "png_chunk": (png_of(80, 60, whole)[:-12] + b"\xff\xff\xff\xf0IDAT", "truncated or corrupt"),
        "jpeg": (claims(jpeg(smooth()), 65_500, 65_500), "header says 65500x65500"),
        "jpeg_of_little": (claims(jpeg(smooth()), 8_000, 8_000), "cannot hold them"),
        "jpeg_twice": (jpeg_with(b"\xff\xc0", b"\xff\xc2\0\x0b\x08\0\x50\0\x3c\1\1\x11\0"), "several pictures"),
        "dicom": (dicom(pattern(), Rows=60_000, Columns=60_000), "header says 60000x60000"),
        "dicom_of_little": (dicom(pattern(), Rows=8_000, Columns=8_000), "less than expected"),
        "dicom_samples": (dicom(pattern(), SamplesPerPixel=60_000), "60000 samples"),
        "dicom_frames": (dicom(pattern(), NumberOfFrames=2_000_000_000), "2000000000 frames"),
        "deflated": (deflated(is_hidden=False), "deflated"),
        "deflated_hidden": (deflated(is_hidden=True), "deflated"),
        "dicom_jpeg": (
            with_frame(dicom_dataset(smooth()), claims(jpeg(smooth()), 65_500, 65_500), syntax=JPEGBaseline8Bit),
            "header says 65500x65500",
        ),
        "dicom_jpeg_hierarchical": (dhp, "several pictures"),
        "dicom_jpegls": (
            with_frame(lossless, frame_of(lossless).replace(b"\0\x40\0\x40", b"\x60\0\x60\0", 1)),
            "header says 24576x24576",
        ),
        "j2k": (j2k_of(0, a8=huge), "header says 60000x60000"),
        "j2k_of_little": (j2k_of(8_000, a8=large, a24=large), "cannot hold them"),
        "j2k_channels": (j2k_of(0, a40=b"\x40\0"), "parts; want"),
        "j2k_tiles": (j2k_of_small_parts(tiles=4), "parts; want"),
        "j2k_precincts": (j2k_of_small_parts(precincts=1), "parts; want"),
        "j2k_layers": (j2k_of_small_parts(precincts=4, layers=65_535), "parts; want"),
        "j2k_second": (second_picture(), "(80, 60)"),
        "rle": (run_lengths_that_grow(), "run-length data hold [192000000, 192000000]"),
    }


@pytest.fixture(scope="module")
def readings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, float]]:
    folder = tmp_path_factory.mktemp("bombs")
    for name, (data, _) in files().items():
        (folder / name).write_bytes(data)
    done = subprocess.run(
        [sys.executable, "-c", READER, str(folder)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_every_lie_is_told_apart(readings: dict[str, tuple[str, float]]) -> None:
    for name, (_, wanted) in files().items():
        message, _ = readings[name]
        assert wanted in message, f"{name}: {message}"
        assert message.startswith(("ImageError: ", "(")), f"{name}: {message}"


def test_none_of_them_takes_memory(readings: dict[str, tuple[str, float]]) -> None:
    # A file's own bytes are in memory several times while it is read.
    own = {name: 6 * len(data) / 2**20 for name, (data, _) in files().items()}
    rises = {name: round(rise) for name, (_, rise) in readings.items() if rise > LARGEST_RISE + own[name]}
    assert not rises


def test_an_honest_picture_of_many_tiles_is_read() -> None:
    import io

    from PIL import Image

    from vbd.data.images.prepare import read_gray

    film = np.tile(smooth(80, 60), (8, 8))
    for options in ({"tile_size": (64, 64)}, {"precinct_size": (64, 64), "codeblock_size": (16, 16)}):
        buffer = io.BytesIO()
        Image.fromarray(film).save(buffer, "JPEG2000", no_jp2=True, **options)
        dataset = dicom_dataset(film, syntax=JPEG2000Lossless)
        np.testing.assert_array_equal(read_gray(with_frame(dataset, buffer.getvalue()), name="a"), film)
