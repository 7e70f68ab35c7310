from pathlib import Path

import numpy as np
import pytest
import torch

from vbd import storage
from vbd.config import RunOptions, TrainConfig
from vbd.data.prepared import open_dataset
from vbd.ensemble.predict import images_in_folder, images_of_part, predict, write_predictions
from vbd.errors import InputError
from vbd.models import build_detector
from vbd.records import Detections, detections_from_table
from vbd.training.checkpoint import write_checkpoint

CPU = RunOptions(device="cpu")


@pytest.fixture(scope="module")
def checkpoint(prepared: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A detector with random weights that is sure of something in every image."""
    torch.manual_seed(0)
    config = TrainConfig(image_size=128)
    detector = build_detector("yolox", variant="nano", image_size=128).eval()
    with torch.no_grad():
        for head in (*detector.network.head.obj_preds, *detector.network.head.cls_preds):
            head.bias.fill_(-2.0)
    folder = tmp_path_factory.mktemp("checkpoint") / "c"
    write_checkpoint(
        folder,
        config=config,
        dataset=open_dataset(prepared),
        weights=detector.state_dict(),
        state={},
        step=1,
        metrics={},
    )
    return str(folder)


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
    _assert_same(raw.by_checkpoint[checkpoint], ready.by_checkpoint[checkpoint], pixels=1e-3)


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
    from vbd.data.images import decode_image, encode_image

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
    found = write_predictions(checkpoint, str(folder), str(tmp_path / "out"), part="test", options=CPU)
    assert found == (1, 1)
    assert "broken.dicom" in (tmp_path / "out" / "rejects.csv").read_text()
    (only,) = detections_from_table(storage.read_table(str(tmp_path / "out" / "detections.parquet")))
    assert only.image_id == good.stem


def test_a_folder_without_images_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no images here"):
        images_in_folder(str(tmp_path))
