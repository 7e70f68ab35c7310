import numpy as np
import pytest

from tests.data.source_folders import ids, png, put, refused
from vbd.data.sources.read import read_source
from vbd.errors import InputError

PICTURE = png(100, 200)
# Ten lines that stand for ten to the tenth names.
BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n"
    for before, name in zip("abcdefghi", "bcdefghij", strict=True)
)
BOMB += "names: *j\n"
YAML = "names: [Cardiomegaly, Pneumothorax]\n"
BOX = "0 0.5 0.5 0.5 0.2\n"


@pytest.fixture
def yolo(tmp_path):
    images = ("images/train/a.png", "images/train/b.png", "images/train/c.png", "images/test/t.png")
    put(tmp_path, **dict.fromkeys(images, PICTURE))
    labels = {
        "labels/train/a.txt": f"{BOX}1 0.25 0.5 0.1 0.1 0.9\n\n7 2 2 1 1\nx\n",
        "labels/train/c.txt": "1 nan 0 1 1\n",
        "labels/test/t.txt": "0 0.5 0.5 1 1",
    }
    put(tmp_path, **labels, **{"data.yaml": YAML})
    return tmp_path


def boxes(source):
    return source.readings[["label", "x_min", "y_min", "x_max", "y_max"]].to_numpy()


def test_yolo_folder(yolo):
    source = read_source(str(yolo))
    assert source.kind == "yolo"
    assert (ids(source), ids(source, "test")) == (["a", "b"], ["t"])
    np.testing.assert_allclose(boxes(source), [[3, 50, 40, 150, 60], [12, 40, 45, 60, 55]])
    assert source.truth.to_numpy().tolist() == [["t", 3, 0, 0, 200, 100]]
    assert [(file, row) for file, row, _ in refused(source)] == [("a.txt", 4), ("a.txt", 5), ("c.txt", 1), ("c.png", 0)]
    assert source.readers.to_numpy().tolist() == [["a", "consensus"], ["b", "consensus"]]
    assert source.images[["height", "width"]].to_numpy().tolist() == [[100, 200]] * 3
    assert source.images["size"].tolist() == [len(PICTURE)] * 3
    assert (source.images["mtime_ns"] > 0).all()


@pytest.mark.parametrize(
    ("image", "labels"),
    [
        ("a.png", "a.txt"),
        ("a.png", "labels/a.txt"),
        ("images/a.png", "images/a.txt"),
        ("images/a.png", "labels/a.txt"),
        ("images/train/a.png", "labels/train/a.txt"),
        ("images/train/a.png", "labels/a.txt"),
        ("train/images/a.png", "train/labels/a.txt"),
        ("set/images/x/a.png", "set/labels/x/a.txt"),
        ("IMG/a.PNG", "labels/IMG/a.txt"),
    ],
)
def test_places_of_labels(tmp_path, image, labels):
    source = read_source(put(tmp_path, **{image: PICTURE, labels: "3 0.5 0.5 0.5 0.2"}), "yolo")
    assert boxes(source).tolist() == [[3, 50, 40, 150, 60]]
    assert source.rejects == []


@pytest.mark.parametrize(
    "names",
    [
        {"classes.txt": "Cardiomegaly\nPneumothorax\n"},
        {"labels/classes.txt": "Cardiomegaly\r\nPneumothorax\r\n\r\n"},
        {"dataset.yml": "nc: 2\nnames:\n  0: cardiomegaly\n  1: Pneumothorax\n"},
        {"data.yaml": YAML, "aaa.yaml": "lr0: 0.01\n"},
    ],
    ids=["classes.txt", "classes.txt beside labels", "yaml with numbers", "yaml beside another"],
)
def test_ways_to_name_classes(tmp_path, names):
    files = {"images/a.png": PICTURE, "labels/a.txt": "1 0.5 0.5 0.5 0.2"}
    source = read_source(put(tmp_path, **files, **names))
    assert source.readings["label"].tolist() == [12]
    assert source.rejects == []


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"data.yaml": "names: [Cat]\n"}, r"data\.yaml: unknown class 'Cat'"),
        ({"data.yaml": "names: 3\n"}, "no list called 'names'"),
        ({"data.yaml": "names: {x: Cardiomegaly}\n"}, "'names' has a key that is no number"),
        ({"data.yaml": "train: images\n"}, "no list called 'names'"),
        ({"data.yaml": "names: ["}, r"data\.yaml: not valid YAML"),
        ({"data.yaml": "names: " + "[" * 5_000}, r"data\.yaml: not valid YAML"),
        ({"data.yaml": "names: [[Cardiomegaly]]\n"}, r"'names' has \['Cardiomegaly'\] for 0; want 0: name, 1: name"),
        ({"data.yaml": BOMB}, r"data\.yaml:2: the alias \*a; write the values out instead of naming them"),
        (
            {"data.yaml": "names: [Cardiomegaly]\n" + "#" * 1_000_000},
            r"data\.yaml: 1,000,022 bytes, want at most 1,000,000",
        ),
        ({"classes.txt": "\n"}, r"classes\.txt: holds no class names"),
        ({"classes.txt": b"Cardiomegaly\nP\xff"}, r"classes\.txt:2: not UTF-8"),
        ({"images/a.png": b""}, r"none of its images can be used; most often \(1x\): .*a\.png: empty file"),
    ],
)
def test_unusable_folder_is_one_line(tmp_path, files, message):
    with pytest.raises(InputError, match=message) as caught:
        read_source(put(tmp_path, **{"images/a.png": PICTURE, "data.yaml": YAML} | files))
    assert "\n" not in str(caught.value)


def test_class_we_do_not_know_costs_only_its_boxes(tmp_path):
    names = {"classes.txt": "Cat\nCardiomegaly\nNo finding\n"}
    files = {"images/a.png": PICTURE, "labels/a.txt": "1 0.5 0.5 0.5 0.2\n0 0.5 0.5 0.1 0.1\n"}
    source = read_source(put(tmp_path, **files, **names))
    assert source.readings["label"].tolist() == [3]
    assert refused(source) == [("a.txt", 2, "unknown class '0 Cat'")]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("0 0.5 0.5 0.2", "4 columns"),
        ("0 0.5 0.5 0.2 0.2 0.9 1 1", "8 columns"),
        ("0 0.5 0.5 0.2 x", "want numbers"),
        ("0 nan 0.5 0.2 0.2", "not finite"),
        ("0 inf 0.5 0.2 0.2", "not finite"),
        ("0 0.5 0.5 0 0.2", "no area"),
        ("0 0.5 0.5 0.2 -0.2", "no area"),
        ("0 100 50 20 20", "sticks out of the image"),
        ("0 0.95 0.5 0.2 0.2", "sticks out of the image"),
        ("0 0.05 0.5 0.2 0.2", "sticks out of the image"),
        ("9 0.5 0.5 0.2 0.2", "unknown class '9'"),
        ("0.5 0.5 0.5 0.2 0.2", "unknown class '0.5'"),
        ("-1 0.5 0.5 0.2 0.2", "unknown class '-1'"),
        (BOX, "duplicate row"),
        ("2 0.5 0.5 1 1", "No finding beside a finding"),
    ],
)
def test_wrong_line_is_refused(tmp_path, line, reason):
    names = {"classes.txt": "Cardiomegaly\nPneumothorax\nNo finding\n"}
    source = read_source(put(tmp_path, **{"images/a.png": PICTURE, "labels/a.txt": f"{BOX}{line}\n"}, **names))
    assert [row[:2] for row in refused(source)] == [("a.txt", 2)]
    assert reason in source.rejects[0]["reason"]
    assert len(source.readings) == 1


@pytest.mark.parametrize(
    ("line", "corners"),
    [
        ("0 0.5 0.5 0.5 0.2 0.77", [50, 40, 150, 60]),
        ("0.0 0.5 0.5 0.5 0.2", [50, 40, 150, 60]),
        ("0 0.25 0.4 0.75 0.4 0.5 0.6", [50, 40, 150, 60]),
        ("0 0.25 0.4 0.75 0.4 0.75 0.6 0.25 0.6", [50, 40, 150, 60]),
        ("0 0.5 0.5 1.01 1.01", [-1, -0.5, 201, 100.5]),
    ],
    ids=["confidence", "float class", "triangle", "four corners", "rounding beyond the border"],
)
def test_lines_that_are_read(tmp_path, line, corners):
    source = read_source(put(tmp_path, **{"images/a.png": PICTURE, "labels/a.txt": line, "data.yaml": YAML}))
    np.testing.assert_allclose(boxes(source), [[3, *corners]])
    assert source.rejects == []


@pytest.mark.parametrize(
    "labels", [{}, {"labels/b.txt": b""}, {"labels/b.txt": b"\n"}, {"labels/b.txt": "14 .5 .5 1 1"}]
)
def test_background_image_is_normal(tmp_path, labels):
    files = {"images/a.png": PICTURE, "images/b.png": PICTURE, "labels/a.txt": BOX}
    source = read_source(put(tmp_path, **files, **labels))
    assert ids(source) == ["a", "b"]
    assert source.readings["image_id"].tolist() == ["a"]
    assert source.rejects == []


def test_broken_files_are_refused(yolo):
    files = {
        "images/train/d.png": b"",
        "labels/train/d.txt": BOX,
        "images/train/e.png": b"no image",
        "labels/train/e.txt": BOX,
        "images/train/f.png": PICTURE,
        "labels/train/f.txt": b"0 0.5 0.5 0.5 0.2\n\xff",
        "labels/train/g.txt": BOX,
        "images/x/a.png": PICTURE,
        "images/.cache/h.png": PICTURE,
    }
    clean = {"labels/train/a.txt": BOX, "labels/train/c.txt": BOX}
    source = read_source(put(yolo, **files, **clean))
    assert ids(source) == ["a", "b", "c"]
    assert sorted(refused(source)) == [
        ("a.png", 0, "another file has the same image id"),
        ("d.png", 0, "empty file (0 bytes)"),
        ("d.txt", 0, "no usable image file for these labels"),
        ("e.png", 0, "not a readable image: its header tells no size"),
        ("e.txt", 0, "no usable image file for these labels"),
        ("f.png", 0, "its findings were all refused, and it is not normal"),
        ("f.txt", 2, "not UTF-8 text (byte 0xff)"),
        ("g.txt", 0, "no usable image file for these labels"),
        ("h.png", 0, "hidden file, or in a hidden folder"),
    ]


# ----------------------------------------------------------------------------------------------------------------- parts

FOUR = {f"images/{part}/{name}.png": PICTURE for part, name in (("p", "a"), ("p", "b"), ("q", "c"), ("q", "d"))}


@pytest.mark.parametrize(
    "lists",
    [
        {"train.txt": "images/p/a.png\nimages/p/b.png\n", "val.txt": "images/q/c.png", "test.txt": "images/q/d.png"},
        {"train.txt": "./images/p/a.png\r\n./images/p/b.png\r\n\r\n", "val.txt": "./images/q/c.png", "test.txt": "d.png"},
        {"train.txt": "/data/x/images/p/a.png\nC:\\data\\p\\b.png\n../q/c.png", "test.txt": "/kaggle/input/d.png"},
        {"data.yaml": f"{YAML}path: ../sets\ntrain: images/p\nval: lists/v.txt\ntest: t.txt", "lists/v.txt": "q/c.png",
         "t.txt": "d.png"},
        {"data.yaml": f"{YAML}train: [/other/images/p, v.txt]\ntest: ./t.txt", "v.txt": "q/c.png", "t.txt": "q/d.png"},
        {"data.yaml": f"{YAML}train: .\ntest: t.txt", "t.txt": "d.png", "train.txt": "b.png"},
        {"data.yaml": f"{YAML}path: .\ntrain: images\nval: ../images/q\ntest: t.txt", "t.txt": "d.png"},
    ],
    ids=["lists", "dots and line ends", "other machines", "yaml", "yaml with a list", "whole folder", "nested folders"],
)  # fmt: skip
def test_ways_to_tell_parts(tmp_path, lists):
    source = read_source(put(tmp_path, **FOUR, **lists))
    assert (ids(source), ids(source, "test")) == (["a", "b", "c"], ["d"])
    assert source.rejects == []


def test_image_in_no_list_is_refused_and_wrong_lines_are_told(tmp_path):
    lists = {
        "train.txt": "images/p/a.png\nimages/q/c.png\nimages/p/a.png\nimages/p/zz.png\n",
        "test.txt": "images/q/c.png\nimages/q/d.png\n",
    }
    source = read_source(put(tmp_path, **FOUR, **lists))
    assert (ids(source), ids(source, "test")) == (["a"], ["c", "d"])
    assert sorted(refused(source)) == [
        ("b.png", 0, "listed in none of train.txt, test.txt"),
        ("train.txt", 2, "the test part has an image with this id"),
        ("train.txt", 3, "'images/p/a.png' is listed twice"),
        ("train.txt", 4, "no usable image file 'images/p/zz.png'"),
    ]


def test_folder_called_test_is_the_test_part_where_no_list_tells_another(yolo):
    put(yolo, **{"train.txt": "images/train/a.png\nimages/train/b.png\nimages/train/c.png"})
    assert ids(read_source(str(yolo)), "test") == ["t"]


def test_list_takes_the_path_with_the_most_parts_in_common(tmp_path):
    files = {"x/1.png": PICTURE, "y/1.png": png(50, 60), "train.txt": "/set/y/1.png"}
    source = read_source(put(tmp_path, **files))
    assert source.images["path"].tolist() == [f"{tmp_path}/y/1.png"]
    assert refused(source) == [("1.png", 0, "listed in none of train.txt")]


def test_yaml_that_names_foreign_folders_is_told_and_passed_over(tmp_path):
    source = read_source(put(tmp_path, **FOUR, **{"data.yaml": f"{YAML}train: ../elsewhere\nval: x.txt\n"}))
    assert ids(source) == ["a", "b", "c", "d"]
    assert refused(source) == [
        ("data.yaml", 0, "train: neither a folder with images nor a list: '../elsewhere'"),
        ("data.yaml", 0, "val: neither a folder with images nor a list: 'x.txt'"),
    ]


def test_fingerprint_follows_lists_and_labels(tmp_path):
    prints = [read_source(put(tmp_path, **FOUR, **{"labels/a.txt": BOX, "data.yaml": YAML})).fingerprint]
    for change in ({"train.txt": "a.png\nb.png"}, {"labels/a.txt": "1 0.5 0.5 0.5 0.2"}, {"labels/b.txt": b""}):
        prints.append(read_source(put(tmp_path, **change)).fingerprint)
    assert len(set(prints)) == 4
