import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.ensemble.checkpoints import write_random
from vbd import storage
from vbd.boxes import EMPTY
from vbd.config import PrepareConfig, RunOptions, TrainConfig
from vbd.data.batches.make import collate, training_batches
from vbd.data.images.prepare import decode_image, encode_image
from vbd.data.prepare.dataset import prepare
from vbd.data.prepared import open_dataset
from vbd.errors import InputError
from vbd.predict.images import images_in_folder, images_of_part
from vbd.predict.request import Request, predict, write_predictions
from vbd.records import Detections, Row, detections_from_table
from vbd.training.checkpoint import read_info

CPU = RunOptions(device="cpu")


@pytest.fixture(scope="module")
def checkpoint(prepared: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_random(tmp_path_factory.mktemp("checkpoint") / "c", prepared, "yolox", image_size=128)


@pytest.fixture(scope="module")
def composed(phantom: Path, ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The phantom prepared as letterboxed JPEG of three channels."""
    folder = str(tmp_path_factory.mktemp("composed") / "data")
    options = PrepareConfig(image_size=96, resize="letterbox", image_format="jpeg", channels="composed", num_folds=3)
    prepare(str(phantom), folder, options)
    return folder


def _assert_same(one: list[Detections], other: list[Detections], *, pixels: float = 0.0) -> None:
    assert [item.image_id for item in one] == [item.image_id for item in other]
    assert sum(len(item.boxes) for item in one) > 0
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a.boxes, b.boxes, atol=pixels)
        np.testing.assert_allclose(a.scores, b.scores, atol=pixels)
        np.testing.assert_array_equal(a.labels, b.labels)


def test_the_result_does_not_depend_on_the_number_of_workers(checkpoint: str, prepared: str, ray_session: None) -> None:
    items = images_of_part(open_dataset(prepared), "train")
    one = predict([checkpoint], items, options=CPU, workers=1)
    two = predict([checkpoint], items[::-1], options=CPU, workers=2)
    _assert_same(one.by_checkpoint[checkpoint], two.by_checkpoint[checkpoint])
    assert not one.rejects


def test_a_raw_film_gives_what_its_prepared_image_gives(
    checkpoint: str, prepared: str, phantom: Path, ray_session: None
) -> None:
    raw = predict([checkpoint], images_in_folder(str(phantom / "test")), options=CPU)
    ready = predict([checkpoint], images_of_part(open_dataset(prepared), "test"), options=CPU)
    _assert_same(raw.by_checkpoint[checkpoint], ready.by_checkpoint[checkpoint])


def test_a_raw_film_is_composed_and_encoded_as_its_prepared_image_was(
    composed: str, phantom: Path, tmp_path: Path, ray_session: None
) -> None:
    # At another size than the dataset's, so that it matters whether it was made at that size first.
    checkpoint = write_random(tmp_path / "c", composed, "yolox", image_size=64)
    raw = predict([checkpoint], images_in_folder(str(phantom / "test")), options=CPU)
    ready = predict([checkpoint], images_of_part(open_dataset(composed), "test"), options=CPU)
    assert not raw.rejects
    _assert_same(raw.by_checkpoint[checkpoint], ready.by_checkpoint[checkpoint])


def test_the_channels_of_a_composed_dataset_reach_the_detector(composed: str) -> None:
    config = TrainConfig(image_size=96, policy="E", batch_size=4, steps=2)
    batches = list(training_batches(open_dataset(composed), config, first_step=0, loader_workers=0))
    for batch in batches:
        assert batch.images.shape == (4, 3, 96, 96)
        film, equalised, edges = batch.images.unbind(1)
        assert film.std() > 0.1
        assert (film - equalised).abs().mean() > 0.01
        assert (film - edges).abs().mean() > 0.1
    row = Row(
        image_id="a",
        fold=0,
        image=decode_image(Path(images_of_part(open_dataset(composed), "test")[0]["path"]).read_bytes()),
        original_hw=np.array([96, 96]),
        boxes=EMPTY,
        labels=np.zeros(0, np.int64),
        readers=np.zeros(0, np.int64),
    )
    (pixels,) = collate([row]).images
    np.testing.assert_array_equal(np.rint(pixels.numpy() * 255), row["image"].transpose(2, 0, 1))


def test_a_checkpoint_tells_how_its_images_were_prepared(checkpoint: str, composed: str, tmp_path: Path) -> None:
    info = read_info(write_random(tmp_path / "c", composed, "yolox", image_size=64))
    assert (info.channels, info.resize, info.image_format, info.prepared_size) == ("composed", "letterbox", "jpeg", 96)
    file = Path(checkpoint, "config.json")
    content = json.loads(file.read_text())
    older = {name: content[name] for name in content if name not in ("channels", "image_format", "prepared_size")}
    (tmp_path / "older").mkdir()
    (tmp_path / "older" / "config.json").write_text(json.dumps(older))
    assert read_info(str(tmp_path / "older")) == replace(read_info(checkpoint), prepared_size=0)


def test_a_checkpoint_and_a_dataset_of_other_images_do_not_go_together(
    checkpoint: str, prepared: str, composed: str, tmp_path: Path, ray_session: None
) -> None:
    other = write_random(tmp_path / "c", composed, "yolox", image_size=64)
    for folder, dataset, wanted, found in (
        (other, prepared, "composed", "grey"),
        (checkpoint, composed, "grey", "composed"),
    ):
        with pytest.raises(InputError, match=f"--channels {wanted}, but .* --channels {found}") as caught:
            write_predictions(Request({"detections": folder}, dataset, str(tmp_path / "out")), options=CPU)
        assert len(str(caught.value).splitlines()) == 1
    items = [item | {"resize": "letterbox"} for item in images_of_part(open_dataset(prepared), "test")]
    with pytest.raises(InputError, match="--resize stretch, but"):
        predict([checkpoint], items, options=CPU)


def test_boxes_lie_inside_the_original_image(checkpoint: str, prepared: str, ray_session: None) -> None:
    items = images_of_part(open_dataset(prepared), "test")
    sizes = {item["image_id"]: (item["height"], item["width"]) for item in items}
    for found in predict([checkpoint], items, options=CPU, augmentation="flip").by_checkpoint[checkpoint]:
        height, width = sizes[found.image_id]
        assert (found.boxes >= 0).all()
        assert (found.boxes <= [width, height, width, height]).all()


def test_the_mirror_image_of_a_picture_gives_the_mirrored_boxes(
    checkpoint: str, prepared: str, tmp_path: Path, ray_session: None
) -> None:
    name = images_of_part(open_dataset(prepared), "test")[0]["path"]
    image = decode_image(Path(name).read_bytes())
    (tmp_path / "plain.png").write_bytes(encode_image(image, "png"))
    (tmp_path / "mirror.png").write_bytes(encode_image(np.ascontiguousarray(image[:, ::-1]), "png"))
    items = images_in_folder(str(tmp_path))
    mirror, plain = predict([checkpoint], items, options=CPU, augmentation="flip").by_checkpoint[checkpoint]
    flipped = np.stack([128 - mirror.boxes[:, 2], mirror.boxes[:, 1], 128 - mirror.boxes[:, 0], mirror.boxes[:, 3]], 1)
    order, other = np.lexsort(np.round(flipped, 1).T), np.lexsort(np.round(plain.boxes, 1).T)
    np.testing.assert_allclose(np.sort(mirror.scores), np.sort(plain.scores), atol=1e-4)
    assert len(order) == len(other) > 0


def test_a_file_that_does_not_decode_is_a_row_of_rejects(
    checkpoint: str, phantom: Path, tmp_path: Path, ray_session: None
) -> None:
    folder = tmp_path / "films"
    folder.mkdir()
    good = next((phantom / "test").iterdir())
    (folder / good.name).write_bytes(good.read_bytes())
    (folder / "broken.dicom").write_bytes(good.read_bytes()[:3000])
    found = write_predictions(Request({"detections": checkpoint}, str(folder), str(tmp_path / "out")), options=CPU)
    assert found == (1, 1)
    assert "broken.dicom" in (tmp_path / "out" / "rejects.csv").read_text()
    (only,) = detections_from_table(storage.read_table(str(tmp_path / "out" / "detections.parquet")))
    assert only.image_id == good.stem


def test_a_folder_without_images_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no images here"):
        images_in_folder(str(tmp_path))
