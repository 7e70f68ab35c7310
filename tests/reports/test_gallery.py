import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tests.reports.conftest import CARDIOMEGALY, HW, NODULE
from vbd import storage
from vbd.boxes import as_boxes
from vbd.config import ImageFormat
from vbd.data.images.prepare import compose, encode_image
from vbd.data.prepared import PreparedDataset, open_dataset
from vbd.errors import InputError
from vbd.records import READING_COLUMNS, Truth
from vbd.reports.gallery import photogenic, read_image, reader_layers, readme_picture

RAMP = np.repeat(np.arange(0, 256, 4, dtype=np.uint8)[None], 64, axis=0)


def with_format(dataset: PreparedDataset, image_format: ImageFormat) -> PreparedDataset:
    return dataclasses.replace(dataset, options=dataclasses.replace(dataset.options, image_format=image_format))


@pytest.mark.parametrize(("image_format", "name"), [("png", "v.png"), ("png16", "v.png"), ("jpeg", "v.jpg")])
@pytest.mark.parametrize("channels", ["grey", "composed"])
def test_an_image_of_any_format_is_read_as_its_film(
    dataset: str, image_format: ImageFormat, name: str, channels: str
) -> None:
    picture = compose(RAMP) if channels == "composed" else RAMP
    storage.write_bytes(f"{dataset}/images/{name}", encode_image(picture, image_format))
    read = read_image(with_format(open_dataset(dataset), image_format), "v")
    assert (read.dtype, read.shape) == (np.uint8, RAMP.shape)
    # JPEG is not exact, and it mixes the channels; a film cut at 8 of its 16 bits would be off by far more.
    off = {"grey": 3, "composed": 40}[channels] if image_format == "jpeg" else 0
    assert np.abs(read.astype(int) - RAMP).max() <= off


def test_an_image_of_16_bits_keeps_its_lower_half(dataset: str) -> None:
    """Pixel libraries cut at 255 where they take 16 bits for 8: everything but black would be white."""
    storage.write_bytes(f"{dataset}/images/v.png", encode_image(RAMP.astype(np.uint16) * 257, "png16"))
    read = read_image(with_format(open_dataset(dataset), "png16"), "v")
    np.testing.assert_array_equal(read, RAMP)


@pytest.mark.parametrize("data", [b"", b"nothing", b"\x89PNG\r\n\x1a\n"])
def test_a_broken_image_is_named(dataset: str, data: bytes) -> None:
    storage.write_bytes(f"{dataset}/images/a.png", data)
    with pytest.raises(InputError, match=r"images/a\.png: .*prepare the dataset again"):
        read_image(open_dataset(dataset), "a")


def test_each_reader_has_a_layer_and_a_lesion_has_one_name(dataset: str) -> None:
    rows = [("a", "R1", CARDIOMEGALY, 40, 20, 200, 100), ("a", "R2", CARDIOMEGALY, 44, 20, 200, 100)]
    readings = pd.DataFrame([*rows, ("a", "R2", NODULE, 44, 20, 200, 100)], columns=list(READING_COLUMNS))
    layers = reader_layers(open_dataset(dataset), readings, readers=["R1", "R2", "R3"], original_hw=HW)
    assert [layer.texts for layer in layers] == [["Cardiomegaly"], ["", "Nodule/Mass"], []]
    names = ["reader R1 (1 box)", "reader R2 (2 boxes)", "reader R3 (0 boxes)"]
    assert [layer.caption for layer in layers] == names
    assert layers[0].boxes.tolist() == [[10, 10, 50, 50]]  # 256 x 128 pixels squeezed into 64 x 64
    assert len({(layer.colour, layer.style) for layer in layers}) == 3


def test_the_readme_picture_is_small_and_the_same_every_time(dataset: str, tmp_path: Path) -> None:
    first, second = str(tmp_path / "one.png"), str(tmp_path / "two.png")
    assert readme_picture(dataset, first) == "b"
    readme_picture(dataset, second)
    data = Path(first).read_bytes()
    assert data == Path(second).read_bytes()
    assert len(data) < 200_000
    assert Image.open(first).size[0] > 2 * 256


def test_the_photogenic_image_shows_classes_that_readers_agree_on() -> None:
    box = as_boxes([[0, 0, 9, 9]])

    def truth(name: str, labels: list[int], readers: list[int]) -> Truth:
        return Truth(name, np.repeat(box, len(labels), axis=0), np.array(labels), np.array(readers))

    alone, agreed = truth("a", [CARDIOMEGALY, NODULE, 2], [1, 1, 1]), truth("b", [CARDIOMEGALY, NODULE], [3, 2])
    assert photogenic([Truth("c"), alone, agreed]).image_id == "b"
    with pytest.raises(InputError, match="no image has a finding"):
        photogenic([Truth("c")])
