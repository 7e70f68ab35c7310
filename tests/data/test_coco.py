import json
from pathlib import Path

import numpy as np
import pytest

from vbd.boxes import as_boxes, to_prepared
from vbd.data.coco import LabelledImage, from_coco, select_folds, to_coco
from vbd.errors import InputError
from vbd.labels import CLASS_NAMES

ORIGINAL = as_boxes([[100, 200, 500.5, 1000], [0, 0, 1000, 2000]])
ABNORMAL = LabelledImage(
    image_id="b",
    fold=1,
    original_hw=(2000, 1000),
    boxes=to_prepared(ORIGINAL, (2000, 1000), 512, "stretch"),
    boxes_original=ORIGINAL,
    labels=np.array([3, 13]),
    readers=np.array([2, 1]),
    rad_ids=[("R10", "R9"), ("R8",)],
)
NORMAL = LabelledImage(image_id="a", fold=0, original_hw=(3000, 2500))


def document() -> dict:
    return to_coco([ABNORMAL, NORMAL], image_size=512, synthetic=True)


def test_pycocotools_loads_it(tmp_path: Path) -> None:
    from pycocotools.coco import COCO

    path = tmp_path / "instances.json"
    path.write_text(json.dumps(document()))
    coco = COCO(str(path))
    assert [entry["name"] for entry in coco.loadCats(coco.getCatIds())] == list(CLASS_NAMES)
    assert coco.getCatIds() == list(range(1, 15))
    assert [image["file_name"] for image in coco.loadImgs(coco.getImgIds())] == ["a.png", "b.png"]
    assert coco.getAnnIds(imgIds=[1]) == []
    first = coco.loadAnns(coco.getAnnIds(imgIds=[2], catIds=[4]))[0]
    np.testing.assert_allclose(first["bbox"], [51.2, 51.2, 205.056, 204.8], atol=1e-3)
    assert first["area"] == pytest.approx(205.056 * 204.8, abs=0.01)
    assert coco.loadRes([{"image_id": 2, "category_id": 4, "bbox": first["bbox"], "score": 0.5}]).getAnnIds() == [1]


def test_entries_keep_the_readers_and_the_original_pixels() -> None:
    first, second = document()["annotations"]
    assert first["readers"] == 2
    assert first["rad_ids"] == ["R10", "R9"]
    assert first["bbox_original"] == [100, 200, 500.5, 1000]
    assert (first["id"], second["id"], first["iscrowd"]) == (1, 2, 0)
    assert document()["info"]["synthetic"] is True
    assert document()["images"][1] == {
        "id": 2,
        "file_name": "b.png",
        "width": 512,
        "height": 512,
        "image_id": "b",
        "original_width": 1000,
        "original_height": 2000,
        "fold": 1,
    }


def test_order_of_the_images_does_not_matter() -> None:
    assert to_coco([NORMAL, ABNORMAL], image_size=512, synthetic=True) == document()


def test_truth_comes_back_in_original_pixels() -> None:
    normal, abnormal = from_coco(json.loads(json.dumps(document())))
    assert (normal.image_id, abnormal.image_id) == ("a", "b")
    assert normal.boxes.shape == (0, 4)
    assert normal.labels.shape == normal.readers.shape == (0,)
    np.testing.assert_array_equal(abnormal.boxes, ORIGINAL)
    assert abnormal.boxes.dtype == np.float32
    assert abnormal.labels.tolist() == [3, 13]
    assert abnormal.labels.dtype == np.int64
    assert abnormal.readers.tolist() == [2, 1]


def test_a_fold_keeps_the_ids_of_the_whole() -> None:
    whole = document()
    part = select_folds(whole, {1})
    assert [image["id"] for image in part["images"]] == [2]
    assert part["annotations"] == whole["annotations"]
    assert select_folds(whole, {0})["annotations"] == []
    assert whole == document()


def test_unknown_truth_is_not_a_normal_image() -> None:
    blind = to_coco([NORMAL], image_size=512, synthetic=False, has_truth=False)
    assert "annotations" not in blind
    assert "annotations" not in select_folds(blind, {0})
    with pytest.raises(InputError, match=r"test\.json: holds no annotations"):
        from_coco(blind, where="test.json")


def test_no_images_at_all() -> None:
    assert from_coco(to_coco([], image_size=64, synthetic=False)) == []


def test_another_programs_file_is_told() -> None:
    foreign = document()
    del foreign["annotations"][0]["bbox_original"]
    with pytest.raises(InputError, match=r"x\.json: no 'bbox_original'"):
        from_coco(foreign, where="x.json")


def test_uneven_labels_are_refused() -> None:
    with pytest.raises(ValueError, match="labels of c"):
        LabelledImage(image_id="c", fold=0, original_hw=(9, 9), boxes=ORIGINAL, boxes_original=ORIGINAL)
