import gzip
import json

import cv2
import numpy as np
import pytest

from vbd.data.sources import detect_kind, read_source
from vbd.errors import InputError
from vbd.labels import CLASS_NAMES

HEADER = "image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max"
NORMAL = [f"b,No finding,14,R{rad},,,," for rad in (1, 2, 3)]
ROWS = [
    "a,Cardiomegaly,3,R8,10,20,30.5,40",
    "a,Nodule/Mass,8,R09,1,2,3,4",
    "a,Cardiomegaly,3,R10,11,20,31,40",
    *NORMAL,
]


def png(height=60, width=50):
    return cv2.imencode(".png", np.zeros((height, width), np.uint8))[1].tobytes()


@pytest.fixture
def folder(tmp_path):
    """Writes a competition folder; returns its path."""

    def write(rows=ROWS, header=HEADER, train=("a", "b"), test=("t",), image=None, **files):
        for part, ids in (("train", train), ("test", test)):
            (tmp_path / part).mkdir()
            for image_id in ids:
                (tmp_path / part / f"{image_id}.png").write_bytes(image or png())
        (tmp_path / "train.csv").write_text("\n".join([header, *rows]) + "\n")
        for name, text in files.items():
            (tmp_path / f"{name}.csv").write_text(text)
        return tmp_path

    return write


def refused(source):
    return [(entry["file"].rsplit("/", 1)[-1], entry["row"], entry["reason"]) for entry in source.rejects]


def ids(source, split="train"):
    return sorted(source.images.loc[source.images["split"] == split, "image_id"])


def test_competition_folder(folder):
    source = read_source(str(folder()))
    assert source.kind == "competition"
    assert (ids(source), ids(source, "test")) == (["a", "b"], ["t"])
    assert source.readings.to_dict("list") == {
        "image_id": ["a", "a", "a"],
        "rad_id": ["R8", "R9", "R10"],
        "label": [3, 8, 3],
        "x_min": [10, 1, 11],
        "y_min": [20, 2, 20],
        "x_max": [30.5, 3, 31],
        "y_max": [40, 4, 40],
    }
    assert len(source.readers) == 6
    assert source.rejects == []
    assert source.truth is None
    assert source.sample_submission == ["t"]
    assert not source.synthetic
    assert source.images["height"].isna().all()
    assert len(source.fingerprint) == 64


def test_dialects_give_the_same(folder, tmp_path):
    plain = read_source(str(folder()))
    rows = [row.replace(",,,,", ",0,0,1,1") for row in ROWS]
    text = "\n".join(["\ufeff" + HEADER + ",extra", *(row + ",x" for row in rows)])
    (tmp_path / "train.csv").unlink()
    (tmp_path / "train.csv.gz").write_bytes(gzip.compress(text.encode()))
    other = read_source(str(tmp_path))
    assert other.rejects == []
    assert other.readings.equals(plain.readings)
    assert other.readers.equals(plain.readers)


@pytest.mark.parametrize("dropped", ["class_name", "class_id"])
def test_one_class_column_is_enough(folder, dropped):
    column = HEADER.split(",").index(dropped)

    def cut(line):
        return ",".join(cell for at, cell in enumerate(line.split(",")) if at != column)

    source = read_source(str(folder([cut(row) for row in ROWS], cut(HEADER))))
    assert source.readings["label"].tolist() == [3, 8, 3]
    assert source.rejects == []


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("a,Cardiomegaly,3,R8,30,20,10,40", "x_min 30 >= x_max 10"),
        ("a,Cardiomegaly,3,R8,10,40,30,40", "y_min 40 >= y_max 40"),
        ("a,Cardiomegaly,3,R8,,20,30,40", "not four finite numbers"),
        ("a,Cardiomegaly,3,R8,inf,20,30,40", "not four finite numbers"),
        ("a,Cardiomegaly,3,R8,ten,20,30,40", "coordinates ten 20 30 40"),
        ("a,Cardiomegaly,3,R8,-4,20,30,40", "negative coordinate"),
        ("a,Broken leg,3,R8,10,20,30,40", "disagree or are unknown: 3 Broken leg"),
        ("a,Broken leg,77,R8,10,20,30,40", "unknown class '77 Broken leg'"),
        ("a,Cardiomegaly,8,R8,10,20,30,40", "disagree"),
        ("a,Cardiomegaly,3,,10,20,30,40", "no rad_id"),
        ("a,Cardiomegaly,3,R8,10,20,30.5,40", "duplicate row"),
        ("a,No finding,14,R8,,,,", "No finding beside a finding"),
        ("a,No finding,14,R7,5,5,9,9", "No finding with a box 5 5 9 9"),
        ("../a,Cardiomegaly,3,R8,10,20,30,40", "image id '../a' cannot be a file name"),
        ("zz,Cardiomegaly,3,R8,10,20,30,40", "no usable image file for zz"),
    ],
)
def test_wrong_row_is_refused_with_its_line(folder, row, reason):
    source = read_source(str(folder([*ROWS, row])))
    assert [(file, line) for file, line, _ in refused(source)] == [("train.csv", 8)]
    assert reason in source.rejects[0]["reason"]
    assert len(source.readings) == 3
    assert ids(source) == ["a", "b"]


def test_line_numbers_count_blank_lines(folder):
    source = read_source(str(folder(["", *ROWS, "", "a,Cardiomegaly,3,R8,30,20,10,40"])))
    assert refused(source) == [("train.csv", 10, "x_min 30 >= x_max 10")]


def test_image_that_lost_all_its_findings_is_not_called_normal(folder):
    rows = [*NORMAL, "a,Cardiomegaly,3,R8,30,20,10,40", "a,No finding,14,R9,,,,", "a,No finding,14,R10,,,,"]
    source = read_source(str(folder(rows)))
    assert ids(source) == ["b"]
    assert set(source.readers["image_id"]) == {"b"}
    assert ("a.png", 0, "its findings were all refused, and it is not normal") in refused(source)


def test_no_finding_beside_a_refused_finding_of_the_same_reader_is_refused(folder):
    rows = [*NORMAL, "a,Cardiomegaly,3,R8,30,20,10,40", "a,No finding,14,R8,,,,", "a,Cardiomegaly,3,R9,10,20,30,40"]
    source = read_source(str(folder(rows)))
    assert len(source.rejects) == 2
    assert source.readers.values.tolist() == [["b", "R1"], ["b", "R2"], ["b", "R3"], ["a", "R9"]]


def test_image_without_a_row_is_refused(folder):
    source = read_source(str(folder(train=("a", "b", "c"))))
    assert refused(source) == [("c.png", 0, "train.csv has no row for this image")]
    assert ids(source) == ["a", "b"]


def test_ids_are_unique_over_both_parts(folder, tmp_path):
    folder(test=("t", "b"))
    (tmp_path / "train" / "a.jpg").write_bytes(b"x")
    source = read_source(str(tmp_path))
    assert ids(source) == ["a"]
    assert ids(source, "test") == ["b", "t"]
    assert [name for name, row, _ in refused(source) if not row] == ["a.png", "b.png"]


def test_mirror_with_meta_file_keeps_original_pixels(folder):
    rows = ["a,Cardiomegaly,3,R8,1000,900,2000,2500", "a,Nodule/Mass,8,R8,2400,10,2500,20", *NORMAL]
    meta = "image_id,dim0,dim1\na,2800,2300\nb,3000,2500\n"
    source = read_source(str(folder(rows, train_meta=meta, test_meta="image_id,dim0,dim1\nt,100,90\n")))
    sizes = source.images.set_index("image_id")[["height", "width"]]
    assert sizes.loc[["a", "b", "t"]].values.tolist() == [[2800, 2300], [3000, 2500], [100, 90]]
    assert source.readings[["x_min", "y_max"]].values.tolist() == [[1000, 2500]]
    assert refused(source) == [("train.csv", 3, "box 2400 10 2500 20 lies outside the image")]


def test_mirror_with_size_columns(folder):
    rows = [row + ",2300,2800" for row in ["a,Cardiomegaly,3,R8,1000,900,2000,2500", *NORMAL]]
    source = read_source(str(folder(rows, HEADER + ",width,height")))
    assert source.images[source.images["split"] == "train"][["height", "width"]].values.tolist() == [[2800, 2300]] * 2


def test_mirror_without_sizes_is_refused(folder):
    with pytest.raises(
        InputError, match=r"a\.png is 50x60 pixels, train\.csv has a box up to 2000,2500.*train_meta\.csv"
    ):
        read_source(str(folder(["a,Cardiomegaly,3,R8,1000,900,2000,2500", *NORMAL])))


def test_hidden_truth_and_sample_submission(folder):
    truth = f"image_id,class_name,class_id,x_min,y_min,x_max,y_max\nt,{CLASS_NAMES[5]},5,1,2,3,4\nu,No finding,14,,,,\n"
    listed = "image_id,PredictionString\nu,14 1 0 0 1 1\nt,14 1 0 0 1 1\nlost,14 1 0 0 1 1\n"
    source = read_source(str(folder(test=("t", "u"), test_truth=truth, sample_submission=listed)))
    assert source.truth.values.tolist() == [["t", 5, 1, 2, 3, 4]]
    assert source.sample_submission == ["u", "t", "lost"]
    assert refused(source) == [("sample_submission.csv", 4, "no usable image file for lost")]


def test_fingerprint_follows_labels_and_images(folder, tmp_path):
    first = read_source(str(folder())).fingerprint
    assert read_source(str(tmp_path)).fingerprint == first
    (tmp_path / "test" / "t.png").write_bytes(png(61))
    second = read_source(str(tmp_path)).fingerprint
    (tmp_path / "train.csv").write_text("\n".join([HEADER, *ROWS[1:]]))
    assert len({first, second, read_source(str(tmp_path)).fingerprint}) == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"train\.csv: empty file"),
        (HEADER.encode(), "no rows below the header"),
        (b"image_id,class_id,x_min,y_min,x_max,y_max\na,3,1,2,3,4", r"train\.csv:1: no column 'rad_id'"),
        (b"image_id,rad_id,x_min,y_min,x_max,y_max\na,R1,1,2,3,4", "no column 'class_id'"),
        (HEADER.encode() + b"\na,3\xff,", r"train\.csv:2: not UTF-8 text \(byte 0xff\)"),
        (HEADER.encode() + b"\n" + b"a," * 30, r"train\.csv:2: more cells than the 8 columns"),
        (HEADER.encode() + b"\n" + ROWS[0].encode() + b"\n" + b"a," * 30, "not a csv table .*line 3"),
    ],
)
def test_unusable_csv_is_one_line(folder, tmp_path, content, message):
    folder()
    (tmp_path / "train.csv").write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_source(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_wrong_truth_is_fatal(folder):
    truth = "image_id,class_id,x_min,y_min,x_max,y_max\nt,5,9,2,3,4\n"
    with pytest.raises(InputError, match=r"test_truth\.csv:2: x_min 9 >= x_max 3"):
        read_source(str(folder(test_truth=truth)))


def test_missing_folders(folder, tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        read_source(str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match=r"none of train\.csv"):
        read_source(str(tmp_path))
    with pytest.raises(InputError, match=r"train: no \.dicom"):
        read_source(str(folder(train=())))
    with pytest.raises(InputError, match="no kind of source"):
        read_source(str(tmp_path), "dicomdir")


def test_folder_without_a_test_part(folder):
    source = read_source(str(folder(test=(), sample_submission="image_id,PredictionString\n")))
    assert source.sample_submission == []
    assert source.rejects == []


@pytest.fixture
def yolo(tmp_path):
    for name in ("images/train/a.png", "images/train/b.png", "images/train/c.png", "images/test/t.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(png(100, 200))
    for name, text in {
        "train/a": "0 0.5 0.5 0.5 0.2\n1 0.25 0.5 0.1 0.1 0.9\n\n7 2 2 1 1\nx\n",
        "train/c": "1 nan 0 1 1\n",
        "test/t": "0 0.5 0.5 1 1",
    }.items():
        path = tmp_path / "labels" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "data.yaml").write_text("names: [Cardiomegaly, Pneumothorax]\n")
    return tmp_path


def test_yolo_folder(yolo):
    source = read_source(str(yolo))
    assert source.kind == "yolo"
    assert (ids(source), ids(source, "test")) == (["a", "b"], ["t"])
    boxes = source.readings[["label", "x_min", "y_min", "x_max", "y_max"]].to_numpy()
    np.testing.assert_allclose(boxes, [[3, 50, 40, 150, 60], [12, 40, 45, 60, 55]])
    assert source.truth.values.tolist() == [["t", 3, 0, 0, 200, 100]]
    assert [(file, row) for file, row, _ in refused(source)] == [("a.txt", 4), ("a.txt", 5), ("c.txt", 1), ("c.png", 0)]
    assert len(source.readers) == 2


def test_yolo_with_an_unknown_class_name(yolo):
    (yolo / "data.yaml").write_text("names: [Cat]\n")
    with pytest.raises(InputError, match=r"data\.yaml: unknown class 'Cat'"):
        read_source(str(yolo))


@pytest.fixture
def coco(tmp_path):
    (tmp_path / "images").mkdir()
    for image_id in ("a", "b", "c", "d"):
        (tmp_path / "images" / f"{image_id}.png").write_bytes(png())
    names = ("a.png", "b.png", "c.png", "lost.png")
    document = {
        "images": [{"id": k, "file_name": name, "height": 60, "width": 50} for k, name in enumerate(names, 1)],
        "categories": [{"id": 40, "name": "cardiomegaly"}, {"id": 7, "name": "ILD"}, {"id": 9, "name": "No finding"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 40, "bbox": [1, 2, 10, 20]},
            {"id": 2, "image_id": 2, "category_id": 9, "bbox": [0, 0, 1, 1]},
            {"id": 3, "image_id": 3, "category_id": 7, "bbox": [1, 2, 0, 20]},
            {"id": 4, "image_id": 99, "category_id": 7, "bbox": [1, 2, 3, 4]},
        ],
    }
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_all.json").write_text(json.dumps(document))
    test = document | {"images": [{"id": 1, "file_name": "images/d.png", "height": 60, "width": 50}], "annotations": []}
    (tmp_path / "annotations" / "image_info_test.json").write_text(json.dumps(test))
    return tmp_path


def test_coco_folder(coco):
    source = read_source(str(coco))
    assert source.kind == "coco"
    assert (ids(source), ids(source, "test")) == (["a", "b"], ["d"])
    assert source.readings.values.tolist() == [["a", "consensus", 3, 1, 2, 11, 22]]
    assert source.truth is None
    assert source.images["height"].tolist() == [60, 60, 60]
    assert sorted(row for file, row, _ in refused(source) if file.endswith(".json")) == [3, 4, 4]


def test_coco_that_is_none(coco):
    (coco / "annotations" / "instances_all.json").write_text("{}")
    with pytest.raises(InputError, match="no 'images'"):
        read_source(str(coco))
    (coco / "annotations" / "instances_all.json").write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        read_source(str(coco))


def test_kind_can_be_given(coco):
    assert detect_kind(str(coco)) == "coco"
    with pytest.raises(InputError, match=r"no train\.csv"):
        read_source(str(coco), "competition")


def test_truncated_gz_is_one_line(folder, tmp_path):
    (folder() / "train.csv").unlink()
    (tmp_path / "train.csv.gz").write_bytes(gzip.compress(HEADER.encode() * 100)[:-12])
    with pytest.raises(InputError, match=r"train\.csv\.gz"):
        read_source(str(tmp_path))
