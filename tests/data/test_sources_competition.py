import gzip
import random

import numpy as np
import pytest

from tests.data.source_folders import HEADER, NORMAL, ROWS, ids, png, put, refused
from vbd.data.sources.read import read_source
from vbd.errors import InputError
from vbd.labels import CLASS_NAMES

COLUMNS = HEADER.split(",")


@pytest.fixture
def folder(tmp_path):
    """Writes a competition folder; returns its path."""

    def write(rows=ROWS, header=HEADER, train=("a", "b"), tests=("t",), **files):
        for part, names in (("train", train), ("test", tests)):
            (tmp_path / part).mkdir(exist_ok=True)
            put(tmp_path / part, **{f"{image_id}.png": png() for image_id in names})
        put(tmp_path, **{"train.csv": "\n".join([header, *rows]) + "\n"})
        return put(tmp_path, **{f"{name}.csv": text for name, text in files.items()})

    return write


def test_competition_folder(folder):
    source = read_source(folder())
    assert source.kind == "competition"
    assert (ids(source), ids(source, "test")) == (["a", "b"], ["t"])
    assert source.readings.to_dict("list") == {
        "image_id": ["a", "a", "a"],
        "rad_id": ["R10", "R8", "R9"],
        "label": [3, 3, 8],
        "x_min": [11, 10, 1],
        "y_min": [20, 20, 2],
        "x_max": [31, 30.5, 3],
        "y_max": [40, 40, 4],
    }
    assert source.readers["rad_id"].tolist() == ["R10", "R8", "R9", "R1", "R2", "R3"]
    assert source.rejects == []
    assert source.truth is None
    assert source.sample_submission == ["t"]
    assert not source.synthetic
    assert source.images["height"].isna().all()
    assert len(source.fingerprint) == 64


def test_order_of_rows_does_not_matter(folder, tmp_path):
    rows = [*ROWS, "a,Cardiomegaly,3,R8,30,20,10,40", "a,Cardiomegaly,3,R8,10.0,20,30.5,40"]
    first = read_source(folder(rows))
    random.Random(0).shuffle(rows)
    second = read_source(folder(rows))
    assert second.readings.equals(first.readings)
    assert second.readers.equals(first.readers)
    assert second.images.drop(columns="mtime_ns").equals(first.images.drop(columns="mtime_ns"))
    assert sorted(reason for *_, reason in refused(second)) == sorted(reason for *_, reason in refused(first))


def _without(*names):
    """Takes columns out of a line."""

    def cut(line):
        return ",".join(cell for name, cell in zip(COLUMNS, line.split(","), strict=True) if name not in names)

    return cut


DIALECTS = {
    "no finding as 0 0 1 1": lambda line: line.replace(",,,,", ",0,0,1,1"),
    "no finding as floats": lambda line: line.replace(",,,,", ",0.0,0.0,1.0,1.0"),
    "no finding as NaN": lambda line: line.replace(",,,,", ",NaN,nan,NaN,"),
    "an extra column": lambda line: f"{line},x",
    "class ids as floats": lambda line: line.replace(",3,R", ",3.0,R").replace(",14,R", ",14.0,R"),
    "class ids only": _without("class_name"),
    "class names only": _without("class_id"),
    "columns in another order": lambda line: ",".join(reversed(line.split(","))),
    "quoted cells": lambda line: ",".join(f'"{cell}"' for cell in line.split(",")),
    "spaces around cells": lambda line: line.replace(",", " , "),
    "class names in small letters": lambda line: line.replace("Cardiomegaly", "cardiomegaly"),
    "readers with two digits": lambda line: line.replace(",R8,", ",R08,"),
    "readers in small letters": lambda line: line.replace(",R8,", ",r8,"),
    "floats": lambda line: line.replace("30.5", "30.50").replace(",20,", ",20.0,"),
}


@pytest.mark.parametrize("change", DIALECTS.values(), ids=DIALECTS)
def test_dialects_of_a_line_give_the_same(folder, change):
    plain = read_source(folder())
    other = read_source(folder([change(row) for row in ROWS], change(HEADER)))
    assert other.rejects == []
    assert other.readings.equals(plain.readings)
    assert other.readers.equals(plain.readers)


@pytest.mark.parametrize(
    "write",
    [
        lambda text: text.replace("\n", "\r\n").encode(),
        lambda text: ("\ufeff" + text).encode(),
        lambda text: text.rstrip("\n").encode(),
        lambda text: text.replace("\n", "\n\n").encode(),
    ],
    ids=["windows line ends", "byte order mark", "no line end at the end", "blank lines"],
)
@pytest.mark.parametrize("packed", [False, True], ids=["csv", "csv.gz"])
def test_dialects_of_the_file_give_the_same(folder, tmp_path, write, packed):
    plain = read_source(folder())
    data = write((tmp_path / "train.csv").read_text())
    (tmp_path / "train.csv").unlink()
    put(tmp_path, **({"train.csv.gz": gzip.compress(data)} if packed else {"train.csv": data}))
    other = read_source(str(tmp_path))
    assert other.rejects == []
    assert other.readings.equals(plain.readings)


def test_fused_csv_without_readers_is_one_consensus(folder):
    cut = _without("rad_id")
    rows = [cut(row) for row in ("a,Cardiomegaly,3,R8,10,20,30,40", "b,No finding,14,R1,,,,")]
    source = read_source(folder(rows, cut(HEADER)))
    assert source.readers.to_numpy().tolist() == [["a", "consensus"], ["b", "consensus"]]
    assert source.readings["rad_id"].tolist() == ["consensus"]
    assert source.rejects == []


@pytest.mark.parametrize("image_id", ["007", "123", "1e5", "1.10"])
def test_ids_stay_text(folder, image_id):
    rows = [*NORMAL, f"{image_id},Cardiomegaly,3,R8,10,20,30,40"]
    source = read_source(folder(rows, train=("b", image_id), train_meta=f"image_id,dim0,dim1\n{image_id},60,50\n"))
    assert ids(source) == sorted(["b", image_id])
    assert source.readings["image_id"].tolist() == [image_id]
    assert source.images.set_index("image_id").loc[image_id, "height"] == 60


def test_images_carry_size_and_time_of_their_file(folder, tmp_path):
    images = read_source(folder()).images
    for path, size, mtime_ns in images[["path", "size", "mtime_ns"]].itertuples(index=False):
        facts = (tmp_path / path).stat()
        assert (size, mtime_ns) == (facts.st_size, facts.st_mtime_ns)
    assert (images["size"].dtype, images["mtime_ns"].dtype) == (np.int64, np.int64)


@pytest.mark.parametrize("name", ["a.PNG", "a.Jpg", "a.JPEG", "a.DICOM", "a.DCM"])
def test_suffixes_of_any_case_are_images(folder, tmp_path, name):
    put(tmp_path / "train", **{name: png()})
    assert ids(read_source(folder(train=("b",)))) == ["a", "b"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("a,Cardiomegaly,3,R8,30,20,10,40", "x_min 30 >= x_max 10"),
        ("a,Cardiomegaly,3,R8,10,40,30,40", "y_min 40 >= y_max 40"),
        ("a,Cardiomegaly,3,R8,,20,30,40", "not four finite numbers"),
        ("a,Cardiomegaly,3,R8,,,,", "not four finite numbers"),
        ("a,Cardiomegaly,3,R8,nan,20,30,40", "not four finite numbers"),
        ("a,Cardiomegaly,3,R8,inf,20,30,40", "not four finite numbers"),
        ("a,Cardiomegaly,3,R8,ten,20,30,40", "coordinates 'ten 20 30 40'"),
        ("a,Cardiomegaly,3,R8,-4,20,30,40", "negative coordinate"),
        ("a,Broken leg,3,R8,10,20,30,40", "disagree or are unknown: '3 Broken leg'"),
        ("a,Broken leg,77,R8,10,20,30,40", "unknown class '77 Broken leg'"),
        ("a,Cardiomegaly,3.5,R8,10,20,30,40", "disagree or are unknown: '3.5 Cardiomegaly'"),
        ("a,Cardiomegaly,,R8,10,20,30,40", "disagree or are unknown"),
        ("a,Cardiomegaly,8,R8,10,20,30,40", "disagree"),
        ("a,Cardiomegaly,3,,10,20,30,40", "no rad_id"),
        ("a,Cardiomegaly,3,R8,10,20,30.5,40", "duplicate row"),
        ("a,Cardiomegaly,3,R08,10.0,20.00,30.50,40", "duplicate row"),
        ("b,No finding,14,R1,0,0,1,1", "duplicate row"),
        ("a,No finding,14,R8,,,,", "No finding beside a finding"),
        ("a,No finding,14,R7,5,5,9,9", "No finding with a box '5 5 9 9'"),
        ("../a,Cardiomegaly,3,R8,10,20,30,40", "image id '../a' cannot be a file name"),
        ("zz,Cardiomegaly,3,R8,10,20,30,40", "no usable image file for 'zz'"),
        (HEADER, "no usable image file for 'image_id'"),
        ("a,Cardiomegaly,3,R8,10,20,30", "7 cells, but 8 columns in the header"),
        ("a,Cardiomegaly,3,R8,10,20,30,40,50", "9 cells, but 8 columns in the header"),
    ],
)
def test_wrong_row_is_refused_with_its_line(folder, row, reason):
    source = read_source(folder([*ROWS, row]))
    assert [(file, line) for file, line, _ in refused(source)] == [("train.csv", 8)]
    assert reason in source.rejects[0]["reason"]
    assert len(source.readings) == 3
    assert ids(source) == ["a", "b"]


def test_badly_encoded_row_is_refused_and_the_others_stay(folder, tmp_path):
    folder()
    data = (tmp_path / "train.csv").read_bytes() + b"a,Cardiomegaly,3,R\xff,10,20,30,40\n"
    source = read_source(put(tmp_path, **{"train.csv": data}))
    assert refused(source) == [("train.csv", 8, "not UTF-8 text")]
    assert len(source.readings) == 3


def test_badly_encoded_cell_of_an_unused_column_does_not_matter(folder, tmp_path):
    folder([f"{row},Nguyen" for row in ROWS], f"{HEADER},name")
    data = (tmp_path / "train.csv").read_bytes().replace(b"Nguyen", "Nguyễn".encode("utf-16-le"))
    assert read_source(put(tmp_path, **{"train.csv": data.replace(b"\n\0", b"")})).rejects == []


def test_line_numbers_count_blank_lines(folder):
    source = read_source(folder(["", *ROWS, "", "a,Cardiomegaly,3,R8,30,20,10,40"]))
    assert refused(source) == [("train.csv", 10, "x_min 30 >= x_max 10")]


def test_image_that_lost_all_its_findings_is_not_called_normal(folder):
    rows = [*NORMAL, "a,Cardiomegaly,3,R8,30,20,10,40", "a,No finding,14,R9,,,,", "a,No finding,14,R10,,,,"]
    source = read_source(folder(rows))
    assert ids(source) == ["b"]
    assert set(source.readers["image_id"]) == {"b"}
    assert ("a.png", 0, "its findings were all refused, and it is not normal") in refused(source)


@pytest.mark.parametrize("row", ["a,Cardiomegaly,3,R8,10,20,30", "a,Cardiomegaly,3,R8,1,2,3,4,5", "a"])
def test_image_of_an_unreadable_row_is_not_called_normal(folder, row):
    source = read_source(folder([*NORMAL, row, "a,No finding,14,R9,,,,"]))
    assert ids(source) == ["b"]
    assert ("a.png", 0, "its findings were all refused, and it is not normal") in refused(source)


def test_no_finding_beside_a_refused_finding_of_the_same_reader_is_refused(folder):
    rows = [*NORMAL, "a,Cardiomegaly,3,R8,30,20,10,40", "a,No finding,14,R8,,,,", "a,Cardiomegaly,3,R9,10,20,30,40"]
    source = read_source(folder(rows))
    assert len(source.rejects) == 2
    assert source.readers.to_numpy().tolist() == [["a", "R9"], ["b", "R1"], ["b", "R2"], ["b", "R3"]]


def test_image_without_a_row_is_refused(folder):
    source = read_source(folder(train=("a", "b", "c")))
    assert refused(source) == [("c.png", 0, "train.csv has no row for this image")]
    assert ids(source) == ["a", "b"]


def test_ids_are_unique_over_both_parts(folder, tmp_path):
    folder(tests=("t", "b"))
    put(tmp_path / "train", **{"a.jpg": b"x"})
    source = read_source(str(tmp_path))
    assert ids(source) == ["a"]
    assert ids(source, "test") == ["b", "t"]
    assert sorted(name for name, row, _ in refused(source) if not row) == ["a.png", "b.png"]


def test_empty_file_is_no_image(folder, tmp_path):
    folder()
    put(tmp_path, **{"train/a.png": b"", "test/t.png": b""})
    source = read_source(str(tmp_path))
    assert ids(source) == ["b"]
    assert ids(source, "test") == []
    assert [row for row in refused(source) if row[1] == 0] == [
        ("t.png", 0, "empty file (0 bytes)"),
        ("a.png", 0, "empty file (0 bytes)"),
    ]
    assert [row for row in refused(source) if row[1]] == [
        ("train.csv", line, "no usable image file for 'a'") for line in (2, 3, 4)
    ]


def test_empty_file_does_not_hide_a_whole_one_of_the_same_id(folder, tmp_path):
    put(tmp_path / "train", **{"a.jpg": b""})
    source = read_source(folder())
    assert ids(source) == ["a", "b"]
    assert refused(source) == [("a.jpg", 0, "empty file (0 bytes)")]


@pytest.mark.parametrize(
    ("name", "reason"), [("._a.png", "hidden file"), ("a b.png", "not a safe image id"), ("é.png", "not a safe")]
)
def test_file_that_cannot_be_an_image_id_is_refused(folder, tmp_path, name, reason):
    put(tmp_path / "train", **{name: png()})
    source = read_source(folder())
    assert ids(source) == ["a", "b"]
    assert [file for file, _, _ in refused(source)] == [name]
    assert reason in source.rejects[0]["reason"]


# --------------------------------------------------------------------------------------------------------------- mirrors

MIRROR_ROWS = ["a,Cardiomegaly,3,R8,1000,900,2000,2500", *NORMAL]
META = {"train_meta": "image_id,dim0,dim1\na,2800,2300\nb,3000,2500\n", "test_meta": "image_id,dim0,dim1\nt,100,90\n"}


def _sizes(source):
    return {i: (h, w) for i, h, w in source.images[["image_id", "height", "width"]].itertuples(index=False)}


def test_mirror_with_meta_file_keeps_original_pixels(folder):
    source = read_source(folder([*MIRROR_ROWS, "a,Nodule/Mass,8,R8,2400,10,2500,20"], **META))
    assert _sizes(source) == {"a": (2800, 2300), "b": (3000, 2500), "t": (100, 90)}
    assert source.readings[["x_min", "y_max"]].to_numpy().tolist() == [[1000, 2500]]
    assert refused(source) == [("train.csv", 6, "box '2400 10 2500 20' lies outside the image")]


@pytest.mark.parametrize(
    "files",
    [
        {"train_meta": "image_id,height,width\na,2800,2300\nb,3000,2500\n", "test_meta": META["test_meta"]},
        {
            "train_meta": "width,image_id,height\n2300,a,2800\n2500,b,3000\n",
            "test": "image_id,width,height\nt,90,100\n",
        },
        {"train_meta": META["train_meta"] + "t,100,90\nunused,1,1\n"},
    ],
    ids=["height and width", "test.csv", "one file for both parts"],
)
def test_ways_to_tell_original_sizes(folder, files):
    source = read_source(folder(MIRROR_ROWS, **files))
    assert _sizes(source) == {"a": (2800, 2300), "b": (3000, 2500), "t": (100, 90)}
    assert source.rejects == []


def test_mirror_with_size_columns(folder):
    rows = [row + ",2300,2800" for row in MIRROR_ROWS]
    source = read_source(folder(rows, HEADER + ",width,height", tests=()))
    assert _sizes(source) == {"a": (2800, 2300), "b": (2800, 2300)}


def test_mirror_without_sizes_is_told_how_to_get_them(folder):
    message = r"a\.png is 50x60 pixels, train\.csv has a box up to 2000,2500.*train_meta\.csv"
    with pytest.raises(InputError, match=message):
        read_source(folder(MIRROR_ROWS))


def test_mirror_without_sizes_of_its_test_part_is_told_how_to_get_them(folder):
    with pytest.raises(InputError, match=r"images of test/ are resized.*test_meta\.csv"):
        read_source(folder(MIRROR_ROWS, train_meta=META["train_meta"]))


def test_folder_of_whole_size_pictures_needs_no_sizes(folder):
    source = read_source(folder(train_meta="image_id,dim0,dim1\na,60,50\n"))
    assert source.rejects == []
    assert source.images["height"].isna().tolist() == [False, True, True]


def test_one_box_beyond_its_picture_does_not_make_a_mirror(folder):
    rows = [*ROWS, *(f"{i},ILD,5,R8,1,1,{9000 if i == 'c' else 9},9" for i in "cdef")]
    assert len(read_source(folder(rows, train=tuple("abcdef"))).readings) == 7


def test_mirror_image_without_a_size_is_refused(folder):
    files = META | {"train_meta": "image_id,dim0,dim1\na,2800,2300\n"}
    source = read_source(folder(MIRROR_ROWS, **files))
    assert ids(source) == ["a"]
    assert refused(source)[-1] == ("b.png", 0, "resized, and nothing tells its original size")
    assert [reason for _, row, reason in refused(source) if row] == ["no usable image file for 'b'"] * 3


@pytest.mark.parametrize("flip", [False, True])
def test_image_with_two_sizes_is_refused_whichever_comes_first(folder, flip):
    lines = ["a,2800,2300", "a,2800,2300", "a,280,230"]
    meta = "\n".join(["image_id,dim0,dim1", *(reversed(lines) if flip else lines), "b,3000,2500"])
    source = read_source(folder(MIRROR_ROWS, **META | {"train_meta": meta}))
    assert ids(source) == ["b"]
    told = "230x280 and 2300x2800"
    assert [row for row in refused(source) if row[0] != "train.csv"] == [
        *(("train_meta.csv", line, f"the sizes of 'a' differ: {told}") for line in (2, 3, 4)),
        ("a.png", 0, f"its original sizes differ: {told}"),
    ]


@pytest.mark.parametrize("size", ["0,90", "nan,90", "-5,90", "x,90", ",", "inf,90"])
def test_wrong_size_is_refused_with_its_line(folder, size):
    source = read_source(folder(MIRROR_ROWS, **META | {"train_meta": META["train_meta"] + f"c,{size}\n"}))
    assert [row[:2] for row in refused(source)] == [("train_meta.csv", 4)]
    assert "is not two positive numbers" in source.rejects[0]["reason"]


def test_size_table_without_sizes_is_one_line(folder):
    with pytest.raises(InputError, match=r"train_meta\.csv:1: no column 'dim0' or 'height'"):
        read_source(folder(MIRROR_ROWS, train_meta="image_id,x\na,1\n"))


# ------------------------------------------------------------------------------------------------- test part, whole files


def test_hidden_truth_and_sample_submission(folder):
    truth = f"image_id,class_name,class_id,x_min,y_min,x_max,y_max\nt,{CLASS_NAMES[5]},5,1,2,3,4\nu,No finding,14,,,,\n"
    listed = "image_id,PredictionString\nu,14 1 0 0 1 1\nt,14 1 0 0 1 1\nlost,14 1 0 0 1 1\nt,14 1 0 0 1 1\n"
    source = read_source(folder(tests=("t", "u"), test_truth=truth, sample_submission=listed))
    assert source.truth.to_numpy().tolist() == [["t", 5, 1, 2, 3, 4]]
    assert source.sample_submission == ["u", "t", "lost"]
    assert refused(source) == [
        ("sample_submission.csv", 4, "no usable image file for 'lost'"),
        ("sample_submission.csv", 5, "duplicate image id"),
    ]


def test_wrong_truth_is_fatal(folder):
    truth = "image_id,class_id,x_min,y_min,x_max,y_max\nt,5,9,2,3,4\n"
    with pytest.raises(InputError, match=r"test_truth\.csv:2: x_min 9 >= x_max 3"):
        read_source(folder(test_truth=truth))


def test_folder_without_a_test_part(folder):
    source = read_source(folder(tests=(), sample_submission="image_id,PredictionString\n"))
    assert source.sample_submission == []
    assert source.rejects == []


def test_fingerprint_follows_labels_and_images_but_not_their_place(folder, tmp_path):
    first = read_source(folder()).fingerprint
    assert read_source(str(tmp_path)).fingerprint == first
    put(tmp_path, **{"test/t.png": png(61)})
    second = read_source(str(tmp_path)).fingerprint
    put(tmp_path, **{"train.csv": "\n".join([HEADER, *ROWS[1:]])})
    third = read_source(str(tmp_path)).fingerprint
    assert len({first, second, third}) == 3
    tmp_path.rename(tmp_path.with_name("elsewhere"))
    assert read_source(str(tmp_path.with_name("elsewhere"))).fingerprint == third


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"train\.csv: empty file"),
        (b" \n\n", r"train\.csv: empty file"),
        (HEADER.encode(), "no rows below the header"),
        (
            b"image_id,class_id,rad_id,y_min,x_max,y_max\na,3,R1,2,3,4",
            r"train\.csv:1: no column 'x_min'.*image_id, class",
        ),
        (b"image_id,rad_id,x_min,y_min,x_max,y_max\na,R1,1,2,3,4", "no column 'class_id' or 'class_name'"),
        (HEADER.encode() + b",x_min\na", r"train\.csv:1: more than one column 'x_min'"),
        (HEADER.replace(",", ";").encode() + b"\na;b", r"train\.csv:1: separated by ';'"),
        (HEADER.replace(",", "\t").encode() + b"\na", r"train\.csv:1: separated by '\\t'"),
        (HEADER.encode() + b'\na,"b\n', r"train\.csv:2: not a csv table \(unexpected end of data\)"),
        (HEADER.encode("utf-16"), r"train\.csv:1: not UTF-8 text \(byte 0xff\); save it as UTF-8"),
        (HEADER.encode() + b"\na,3\n", r"none of its training images can be used; most often .*:2: 2 cells"),
        (HEADER.encode() + b"\n" + ROWS[0].replace("a,", "a.png,").encode(), "none of its training images"),
    ],
)
def test_unusable_csv_is_one_line(folder, tmp_path, content, message):
    folder()
    with pytest.raises(InputError, match=message) as caught:
        read_source(put(tmp_path, **{"train.csv": content}))
    assert "\n" not in str(caught.value)


def test_truncated_gz_is_one_line(folder, tmp_path):
    folder()
    (tmp_path / "train.csv").unlink()
    with pytest.raises(InputError, match=r"train\.csv\.gz: .*[Tt]runcated"):
        read_source(put(tmp_path, **{"train.csv.gz": gzip.compress(HEADER.encode() * 100)[:-12]}))


def test_no_training_images_is_one_line(folder, tmp_path):
    with pytest.raises(InputError, match=r"train: no \.dicom"):
        read_source(folder(train=()))
    put(tmp_path / "train", **{"a.png": b""})
    with pytest.raises(InputError, match=r"train: no usable \.dicom"):
        read_source(str(tmp_path))
