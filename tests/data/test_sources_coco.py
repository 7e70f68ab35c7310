import json

import pytest

from tests.data.source_folders import ids, png, put, refused
from vbd.data.sources.read import detect_kind, read_source
from vbd.errors import InputError

CATEGORIES = [{"id": 40, "name": "cardiomegaly"}, {"id": 7, "name": "ILD"}, {"id": 0, "name": "No finding"}]
ALL = "annotations/instances_all.json"


def image(number, name, **rest):
    return {"id": number, "file_name": name, "height": 60, "width": 50} | rest


def box(number, category=40, bbox=(1, 2, 10, 20), **rest):
    return {"image_id": number, "category_id": category, "bbox": list(bbox)} | rest


def document(images, annotations=(), categories=CATEGORIES, **rest):
    return json.dumps({"images": images, "annotations": list(annotations), "categories": categories} | rest)


def folder(tmp_path, files, names=("a", "b"), where="images"):
    return put(tmp_path, **{f"{where}/{name}.png": png() for name in names}, **files)


def read(tmp_path, annotations, images=None, **rest):
    """A source of the images a and b, numbers 1 and 2."""
    images = images or [image(1, "a.png"), image(2, "b.png")]
    return read_source(folder(tmp_path, {ALL: document(images, annotations, **rest)}))


def test_coco_folder(tmp_path):
    images = [image(k, name) for k, name in enumerate(("a.png", "b.png", "c.png", "lost.png"), 1)]
    annotations = [box(1), box(2, 0, (0, 0, 1, 1)), box(3, 7, (1, 2, 0, 20)), box(99)]
    files = {
        ALL: document(images, annotations),
        "annotations/image_info_test.json": document([image(1, "images/d.png")]),
        "annotations/instances_fold0.json": document(images[:1], annotations[:1]),
    }
    source = read_source(folder(tmp_path, files, "abcd"))
    assert source.kind == "coco"
    assert (ids(source), ids(source, "test")) == (["a", "b"], ["d"])
    assert source.readings.to_numpy().tolist() == [["a", "consensus", 3, 1, 2, 11, 22]]
    assert source.truth is None
    assert source.images["height"].tolist() == [60, 60, 60]
    assert source.images["size"].tolist() == [len(png())] * 3
    assert (source.images["mtime_ns"] > 0).all()
    assert sorted(refused(source)) == [
        ("c.png", 0, "its findings were all refused, and it is not normal"),
        ("instances_all.json", 3, "bbox '[1, 2, 0, 20]' has no area"),
        ("instances_all.json", 4, "annotation of an unknown or refused image 99"),
        ("instances_all.json", 4, "no usable image file 'lost.png'"),
    ]


@pytest.mark.parametrize(
    ("annotation", "corners"),
    [
        (box(1, iscrowd=1, segmentation={"size": [60, 50], "counts": [0, 3000]}), [1, 2, 11, 22]),
        (
            {"image_id": 1, "category_id": 40, "segmentation": [[1, 2, 11, 2, 11, 22], [3, 3, 4, 3, 4, 30]]},
            [1, 2, 11, 30],
        ),
        (box(1, bbox=[], segmentation=[[1, 2, 11, 22]]), [1, 2, 11, 22]),
        (box(1, bbox=[-5, 2, 10, 100]), [-5, 2, 5, 102]),
        (box(1, bbox=["1", "2.0", 10.5, 20]), [1, 2, 11.5, 22]),
        (box(1, rad_ids=["R8", "R9"], readers=2), [1, 2, 11, 22]),
    ],
    ids=["crowd", "polygons", "polygon and an empty bbox", "partly outside", "numbers as text", "our own"],
)
def test_annotations_that_are_read(tmp_path, annotation, corners):
    source = read(tmp_path, [annotation])
    assert source.readings.iloc[:, 3:].to_numpy().tolist() == [corners]
    assert source.rejects == []
    assert ids(source) == ["a", "b"]


@pytest.mark.parametrize(
    ("annotation", "reason"),
    [
        (box(1, bbox=[1, 2, -10, 20]), "has no area"),
        (box(1, bbox=[1, 2, 10]), "holds no box of finite numbers"),
        (box(1, bbox=[1, 2, 10, float("nan")]), "holds no box of finite numbers"),
        (box(1, bbox=[1, 2, float("inf"), 5]), "holds no box of finite numbers"),
        (box(1, bbox=[1, 2, 10, "x"]), "holds no box of finite numbers"),
        (box(1, bbox=[50, 2, 10, 10]), "lies outside the image"),
        (box(1, bbox=[1, -20, 10, 10]), "lies outside the image"),
        (box(1, bbox=[], segmentation={"size": [60, 50], "counts": "x"}), "no bbox, and no polygon"),
        (box(1, bbox=[], segmentation=[]), "no bbox, and no polygon"),
        (box(1, bbox=[], segmentation=[[1, 2, 3]]), "holds no box"),
        (box(1, bbox=[], segmentation=[[1, 2, 1, 9]]), "has no area"),
        (box(1, category=8), "unknown category 8"),
        (box(1, category=None), "unknown category None"),
        (box(5), "annotation of an unknown or refused image 5"),
        (box([1]), "annotation of an unknown or refused image [1]"),
        ("text", "an annotation that is no object"),
        (box(1), "duplicate row"),
        (box(1, category=0), "No finding beside a finding"),
    ],
)
def test_wrong_annotation_is_refused(tmp_path, annotation, reason):
    source = read(tmp_path, [box(1), annotation])
    assert [row[:2] for row in refused(source)] == [("instances_all.json", 2)]
    assert reason in source.rejects[0]["reason"]
    assert len(source.readings) == 1


def test_category_we_do_not_know_costs_only_its_annotations(tmp_path):
    categories = [*CATEGORIES, {"id": 1, "name": "Cat"}, {"id": 2, "name": "chest"}]
    source = read(tmp_path, [box(1), box(1, 1), box(2, 1)], categories=categories)
    assert ids(source) == ["a"]
    assert len(source.readings) == 1
    assert [reason for _, row, reason in refused(source) if row] == ["unknown category 'Cat'"] * 2


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (image(3, "zz.png"), "no usable image file 'zz.png'"),
        (image(3, "empty.png"), "no usable image file 'empty.png'"),
        (image(3, ""), "without 'id' or 'file_name'"),
        ({"file_name": "a.png"}, "without 'id' or 'file_name'"),
        (image([3], "a.png"), "without 'id' or 'file_name'"),
        ("a.png", "without 'id' or 'file_name'"),
        (image(3, "b.png", height=-1), "are not two positive numbers"),
        (image(3, "b.png", width="x"), "are not two positive numbers"),
        (image(1, "a.png"), "image 'images/a.png' is listed twice"),
    ],
)
def test_wrong_image_is_refused(tmp_path, entry, reason):
    put(tmp_path, **{"images/empty.png": b""})
    source = read(tmp_path, [box(1)], [image(1, "a.png"), image(2, "b.png"), entry])
    assert ids(source) == ["a", "b"]
    told = [row for row in refused(source) if row[0] != "empty.png"]
    assert [row[:2] for row in told] == [("instances_all.json", 3)]
    assert reason in told[0][2]


def test_image_listed_under_two_numbers_keeps_the_boxes_of_both(tmp_path):
    source = read(tmp_path, [box(1), box(9, 7)], [image(1, "a.png"), image(9, "sub/a.png"), image(2, "b.png")])
    assert source.readings["label"].tolist() == [3, 5]
    assert [row[1] for row in refused(source)] == [2]


def test_number_of_two_images_is_of_none(tmp_path):
    put(tmp_path, **{"images/c.png": png()})
    source = read(tmp_path, [box(1), box(2)], [image(1, "a.png"), image(2, "c.png"), image(1, "b.png")])
    assert ids(source) == ["c"]
    assert source.readings["image_id"].tolist() == ["c"]
    assert [row[:2] for row in refused(source) if row[1]] == [("instances_all.json", row) for row in (1, 3, 1)]


def test_missing_size_is_left_to_the_decoder(tmp_path):
    source = read(tmp_path, [box(1)], [{"id": 1, "file_name": "a.png"}, image(2, "b.png", height=None)])
    assert source.images["height"].isna().tolist() == [True, True]
    assert source.rejects == []


def test_several_files_are_one_training_part_and_a_test_part(tmp_path):
    files = {
        "annotations/instances_train.json": document([image(1, "a.png"), image(2, "t.png")], [box(1), box(2)]),
        "annotations/instances_val.json": document([image(1, "b.png"), image(2, "a.png")], [box(1, 7), box(2, 7)]),
        "annotations/instances_test2017.json": document([image(1, "t.png")], [box(1)]),
        "annotations/latest_results.json": json.dumps([{"image_id": 1, "score": 0.5}]),
        "annotations/captions.json": json.dumps({"images": []}),
        "annotations/half.json": "{",
        "annotations/SYNTHETIC.json": "{}",
    }
    source = read_source(folder(tmp_path, files, ("a", "b", "t", "u")))
    assert (ids(source), ids(source, "test")) == (["a", "b"], ["t"])
    assert source.readings[["image_id", "label"]].to_numpy().tolist() == [["a", 3], ["a", 5], ["b", 5]]
    assert source.truth[["image_id", "label"]].to_numpy().tolist() == [["t", 3]]
    assert [(file, row, reason.split(";")[0].split("(")[0]) for file, row, reason in refused(source)] == [
        ("captions.json", 0, "no COCO file: no 'categories'"),
        ("half.json", 0, "not valid JSON "),
        ("latest_results.json", 0, "no COCO file: holds a list, want images, annotations and categories"),
        ("instances_train.json", 2, "the test part has an image with this id"),
        ("instances_train.json", 2, "annotation of an unknown or refused image 2"),
        ("instances_val.json", 2, "image 'images/a.png' is listed twice"),
        ("u.png", 0, "listed in no COCO file"),
    ]


def test_images_of_an_equal_name_in_two_folders_are_told(tmp_path):
    put(tmp_path, **{"x/a.png": png(), "y/a.png": png(61), ALL: document([image(1, "y/a.png"), image(2, "x/a.png")])})
    source = read_source(str(tmp_path))
    assert source.images["path"].tolist() == [f"{tmp_path}/y/a.png"]
    assert refused(source) == [
        ("instances_all.json", 2, "another file has the same image id: 'y/a.png'"),
        ("a.png", 0, "listed in no COCO file"),
    ]


def test_annotations_beside_the_images_of_each_part(tmp_path):
    for part, name in (("train", "a"), ("valid", "b"), ("test", "t")):
        files = {f"{part}/_annotations.coco.json": document([image(1, f"{name}.png")], [box(1)])}
        folder(tmp_path, files, [name], part)
    source = read_source(str(tmp_path))
    assert (ids(source), ids(source, "test")) == (["a", "b"], ["t"])
    assert len(source.truth) == 1
    assert source.rejects == []


@pytest.mark.parametrize("where", ["", "annotations/"])
def test_single_file_may_name_a_part_of_the_images(tmp_path, where):
    name = f"{where}some.json"
    folder(tmp_path, {name: document([image(1, "a.png")], [box(1)])})
    source = read_source(f"{tmp_path}/{name}")
    assert ids(source) == ["a"]
    assert source.rejects == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", r"instances_all\.json: no COCO file: no 'images'"),
        ("{", r"instances_all\.json: not valid JSON"),
        (b"\xff", r"instances_all\.json: not valid JSON"),
        ("[]", r"holds a list, want images"),
        (json.dumps({"images": [], "categories": CATEGORIES}), "no 'annotations'"),
        (document([], categories=[{"id": 1}]), "a category without 'id' or 'name'"),
        (document([], categories=[{"id": 1, "name": "Cat"}]), "unknown class 'Cat'"),
    ],
)
def test_unusable_document_is_one_line(tmp_path, content, message):
    folder(tmp_path, {ALL: content, "annotations/image_info_test.json": document([image(1, "b.png")])})
    with pytest.raises(InputError, match=message) as caught:
        read_source(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_mark_of_synthetic_data_is_kept(tmp_path):
    assert read_source(folder(tmp_path, {ALL: document([image(1, "a.png")], info={"synthetic": True})})).synthetic


def test_kind_can_be_given(tmp_path):
    folder(tmp_path, {ALL: document([])})
    assert detect_kind(str(tmp_path)) == "coco"
    with pytest.raises(InputError, match=r"no train\.csv"):
        read_source(str(tmp_path), "competition")
