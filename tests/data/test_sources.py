import json

import pytest

from tests.data.source_folders import HEADER, ROWS, png, put, refused
from vbd import storage
from vbd.data.sources.read import describe, detect_kind, read_source
from vbd.data.sources.tables import IMAGE_COLUMNS, PathIndex, list_folder
from vbd.errors import InputError

COCO = json.dumps(
    {"images": [{"id": 1, "file_name": "a.png"}], "annotations": [], "categories": [{"id": 1, "name": "ILD"}]}
)


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["train.csv", "labels/a.txt", "annotations/a.json"], "competition"),
        (["train.csv.gz"], "competition"),
        (["annotations/instances_all.json", "labels/a.txt"], "coco"),
        (["some.json", "images/a.png"], "coco"),
        (["train/_annotations.coco.json", "train/a.png"], "coco"),
        (["labels/a.txt", "some.json"], "yolo"),
        (["images/a.png", "train.txt"], "yolo"),
        (["images/a.png", "val.txt"], "yolo"),
        (["images/a.png", "data.yml"], "yolo"),
        (["a.png", "classes.txt"], "yolo"),
        (["train/images/a.png", "train/labels/a.txt"], "yolo"),
    ],
)
def test_layout_is_detected(tmp_path, names, kind):
    assert detect_kind(put(tmp_path, **dict.fromkeys(names, "x"))) == kind


def test_single_json_file_is_coco(tmp_path):
    assert detect_kind(f"{tmp_path}/some.json") == "coco"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["images/a.png", "SYNTHETIC.json"], r"none of train\.csv .* is in it; give the folder"),
        (["train.csv.zip"], r"unpack train\.csv\.zip first"),
    ],
)
def test_unknown_layout_is_told(tmp_path, names, message):
    with pytest.raises(InputError, match=message):
        detect_kind(put(tmp_path, **dict.fromkeys(names, "x")))


def test_places_that_are_no_source_are_one_line(tmp_path):
    put(tmp_path, **{"train.csv": "x", "train/a.png": png()})
    with pytest.raises(InputError, match="no such folder"):
        read_source(str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="not a folder"):
        read_source(str(tmp_path / "train.csv"))
    with pytest.raises(InputError, match="'dicomdir' is no kind of source"):
        read_source(str(tmp_path), "dicomdir")


CSV = {"train.csv": "\n".join([HEADER, *ROWS]), "train/a.png": png(), "train/b.png": png()}
TRUTH = "image_id,class_id,x_min,y_min,x_max,y_max\nt,5,1,2,3,4\n"


@pytest.mark.parametrize(
    ("files", "told"),
    [
        (
            CSV | {"test/t.jpg": b"x"},
            "competition layout, 2 train and 1 test images (.jpg, .png), 3 boxes on 1 image by 6 readers",
        ),
        (
            CSV | {"test/t.DCM": b"x", "test/u.png": b"", "test_truth.csv": TRUTH, "SYNTHETIC.json": "{}"},
            "competition layout, 2 train and 1 test images (.dcm, .png), 3 boxes on 1 image by 6 readers, "
            "1 box known of the test part, 1 file or row refused, SYNTHETIC",
        ),
        (
            {"images/a.png": png(), "labels/a.txt": "3 .5 .5 .5 .5"},
            "yolo layout, 1 train and 0 test images (.png), 1 box on 1 image by readers not told apart",
        ),
        (
            {"a.png": png(), "annotations/all.json": COCO},
            "coco layout, 1 train and 0 test images (.png), 0 boxes on 0 images by readers not told apart",
        ),
    ],
)
def test_source_is_told_in_one_line(tmp_path, files, told):
    assert describe(read_source(put(tmp_path, **files))) == told


LAYOUTS = {
    "competition": CSV | {"test/t.png": png()},
    "yolo": {"images/a.png": png(), "labels/a.txt": "3 .5 .5 .5 .5", "labels/b.txt": "", "test/t.png": png()},
    "coco": {"a.png": png(), "annotations/all.json": COCO, "annotations/other.json": "[]"},
}


@pytest.mark.parametrize("kind", LAYOUTS)
def test_tables_of_all_layouts_are_alike(tmp_path, kind):
    source = read_source(put(tmp_path, **LAYOUTS[kind]))
    assert source.kind == kind
    assert tuple(source.images.columns) == IMAGE_COLUMNS
    types = {"height": "float64", "width": "float64", "size": "int64", "mtime_ns": "int64"}
    assert source.images.dtypes.astype(str).to_dict() == dict.fromkeys(IMAGE_COLUMNS, "object") | types
    assert source.readings.dtypes.astype(str).tolist() == ["object", "object", "int64", *["float64"] * 4]
    assert source.readers.dtypes.astype(str).tolist() == ["object", "object"]


@pytest.mark.parametrize("kind", LAYOUTS)
def test_source_in_an_object_store_is_read_as_on_disk(tmp_path, s3_bucket, kind):
    place = f"{s3_bucket}/sources-{kind}"
    storage.copy_folder(put(tmp_path, **LAYOUTS[kind]), place)
    on_disk, in_store = read_source(str(tmp_path)), read_source(place)
    assert in_store.fingerprint == on_disk.fingerprint
    assert in_store.images["path"].tolist() == [
        f"{place}{path[len(str(tmp_path)) :]}" for path in on_disk.images["path"]
    ]
    assert in_store.images["size"].tolist() == on_disk.images["size"].tolist()
    assert in_store.readings.equals(on_disk.readings)
    assert refused(in_store) == refused(on_disk)


def test_listing_tells_sizes_and_times_of_files_at_any_depth(tmp_path):
    put(tmp_path, **{"b/c.PNG": b"abc", "a.dcm": b"x", "b/d.txt": b"yy"})
    listing = list_folder(str(tmp_path), recursive=True)
    assert listing.images[["image_id", "name", "size"]].to_numpy().tolist() == [["a", "a.dcm", 1], ["c", "b/c.PNG", 3]]
    assert listing.images["mtime_ns"].tolist() == [
        (tmp_path / name).stat().st_mtime_ns for name in ("a.dcm", "b/c.PNG")
    ]
    assert listing.others == {"b/d.txt": 2}
    assert list_folder(str(tmp_path / "none")).images.empty
    assert list_folder(str(tmp_path)).images["name"].tolist() == ["a.dcm"]


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("x/1.png", "x/1.png"),
        ("/a/b/y/1.png", "y/1.png"),
        ("..\\y\\1.png", "y/1.png"),
        ("1.png", "x/1.png"),
        ("z/1.png", "x/1.png"),
        ("2.png", None),
        ("", None),
    ],
)
def test_path_of_another_machine_is_found_by_its_end(path, found):
    assert PathIndex(["y/1.png", "x/1.png"]).find(path) == found
