from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from vbd.config import PrepareConfig
from vbd.data.labelling.label import ImageFacts, heard_readers, label_images, wanted_images, write_labels
from vbd.data.labelling.readers import COORDINATES
from vbd.data.prepared import labels_table_schema
from vbd.data.sources.tables import Source
from vbd.errors import InputError

CONFIG = PrepareConfig(image_size=100, num_folds=2)
READINGS = [
    ("a", "R1", 3, 10, 10, 50, 50),
    ("a", "R2", 3, 12, 10, 50, 52),
    ("a", "R3", 8, 60, 60, 70, 70),
    ("b", "R1", 3, 20, 20, 90, 90),
    ("c", "R4", 1, 0, 0, 30, 30),
]
READERS = [("a", "R1"), ("a", "R2"), ("a", "R3"), ("b", "R1"), ("b", "R2"), ("c", "R4"), ("d", "R1"), ("d", "R4")]


def source(readings=READINGS, *, kind="competition", sizes=None, suffix=".png") -> Source:
    """Four training images, d a normal one, and a test image; 200 x 100 pixels unless told otherwise."""
    ids = ["a", "b", "c", "d", "t"]
    hw = [(sizes or {}).get(image_id, (np.nan, np.nan)) for image_id in ids]
    images = pd.DataFrame(
        {
            "image_id": ids,
            "path": [f"/raw/{image_id}{suffix}" for image_id in ids],
            "split": ["train"] * 4 + ["test"],
            "height": [float(h) for h, _ in hw],
            "width": [float(w) for _, w in hw],
            "size": 1,
            "mtime_ns": 1,
        }
    )
    columns = ["image_id", "rad_id", "label", "x_min", "y_min", "x_max", "y_max"]
    return Source(
        kind=kind,
        images=images,
        readings=pd.DataFrame(readings, columns=columns).astype(dict.fromkeys(columns[3:], float)),
        readers=pd.DataFrame(READERS, columns=["image_id", "rad_id"]),
        rejects=[],
        truth=None,
        sample_submission=["t"],
        synthetic=True,
        fingerprint="f",
    )


def facts(hw=(200, 100), **others) -> dict[str, ImageFacts]:
    return {i: ImageFacts(i, others.get(i, hw), sha256=f"sha {i}", perceptual_hash="") for i in "abcdt"}


def boxes_of(labelling) -> dict[str, list]:
    return {image.image_id: image.boxes_original.round(1).tolist() for image in labelling.train}


def test_readers_are_fused_and_boxes_are_scaled() -> None:
    labelling = label_images(source(), facts(), CONFIG)
    image = labelling.train[0]
    assert image.boxes_original.tolist() == [[11, 10, 50, 51], [60, 60, 70, 70]]
    assert image.boxes.tolist() == [[11, 5, 50, 25.5], [60, 30, 70, 35]]
    assert image.labels.tolist() == [3, 8]
    assert image.readers.tolist() == [2, 1]
    assert image.rad_ids == (("R1", "R2"), ("R3",))
    assert [image.image_id for image in labelling.train] == ["a", "b", "c", "d"]
    assert [image.image_id for image in labelling.test] == ["t"]
    assert {image.fold for image in labelling.train} == {0, 1}


def test_findings_of_too_few_readers_are_left_out() -> None:
    assert boxes_of(label_images(source(), facts(), replace(CONFIG, min_readers=2))) == {
        "a": [[11, 10, 50, 51]],
        "b": [],
        "c": [],
        "d": [],
    }


def test_images_that_no_chosen_reader_read_are_left_out() -> None:
    config = replace(CONFIG, readers=("R1", "R2"))
    assert sorted(wanted_images(source(), config)["image_id"]) == ["a", "b", "d", "t"]
    assert list(boxes_of(label_images(source(), facts(), config))) == ["a", "b", "d"]
    others = replace(CONFIG, without_readers=("R4",))
    assert boxes_of(label_images(source(), facts(), others))["d"] == []
    assert sorted(set(heard_readers(source(), others)["rad_id"])) == ["R1", "R2", "R3"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"readers": ("R7",)}, "--readers R7: no such reader; the readers are R1, R2, R3, R4"),
        ({"without_readers": ("R9",)}, "--without-readers R9: no such reader"),
        ({"readers": ("R1",), "without_readers": ("R1",)}, "leave no reader"),
    ],
)
def test_a_reader_who_is_not_there_is_told(options, told: str) -> None:
    with pytest.raises(InputError, match=told):
        heard_readers(source(), replace(CONFIG, **options))


@pytest.mark.parametrize(
    ("corners", "kept"),
    [
        ((150, 20, 180, 40), False),
        ((20, 20, 99_999, 90), False),
        ((-30, 20, 60, 90), False),
        ((20, 20, 101.5, 202), True),  # a rounding: cut at the border
    ],
)
def test_a_box_beyond_its_image_is_refused_and_a_rounding_is_cut(corners, kept: bool) -> None:
    rows = [*READINGS, ("b", "R2", 5, *corners)]
    labelling = label_images(source(rows), facts(), CONFIG)
    assert boxes_of(labelling)["b"] == [[20, 20, 90, 90], *([[20, 20, 100, 200]] if kept else [])]
    text = " ".join(f"{value:g}" for value in corners)
    told = f"box {text} of reader R2 reaches beyond an image of 100x200"
    assert [(r["file"], r["reason"]) for r in labelling.rejects] == ([] if kept else [("/raw/b.png", told)])


def test_a_box_of_a_reader_who_is_not_heard_refuses_nothing() -> None:
    rows = [*READINGS, ("d", "R4", 5, 20, 20, 99_999, 90)]
    labelling = label_images(source(rows), facts(), replace(CONFIG, without_readers=("R4",)))
    assert boxes_of(labelling)["d"] == []
    assert labelling.rejects == []


def test_an_image_that_loses_all_of_its_boxes_is_no_normal_image() -> None:
    labelling = label_images(source(), facts(c=(200, 100), b=(20, 20)), CONFIG)
    assert "b" not in boxes_of(labelling)
    assert labelling.rejects[-1]["reason"] == "its findings were all refused, and it is not normal"


@pytest.mark.parametrize(
    ("kind", "suffix", "file_hw", "told_hw", "refused"),
    [
        ("competition", ".png", (64, 64), (2000, 1000), False),  # a mirror squeezed to a square
        ("competition", ".png", (200, 100), (2000, 1000), False),  # a smaller mirror
        ("competition", ".png", (200, 150), (2000, 1000), True),
        ("competition", ".dicom", (200, 100), (2000, 1000), True),
        ("competition", ".dicom", (200, 100), (200, 100), False),
        ("coco", ".png", (200, 100), (400, 200), True),
        ("coco", ".png", (200, 100), (200, 100), False),
    ],
)
def test_a_file_that_is_not_the_image_of_its_labels_is_refused(kind, suffix, file_hw, told_hw, refused: bool) -> None:
    found = source(kind=kind, suffix=suffix, sizes={"b": told_hw})
    labelling = label_images(found, facts(b=file_hw), CONFIG)
    assert ("b" not in boxes_of(labelling)) is refused
    told = f"image of {file_hw[1]}x{file_hw[0]} pixels, but the labels say {told_hw[1]}x{told_hw[0]}"
    assert [r["reason"] for r in labelling.rejects] == ([told] if refused else [])


def test_images_that_look_alike_stay_in_one_fold() -> None:
    known = facts()
    twins = known | {"d": replace(known["d"], sha256="sha a"), "t": replace(known["t"], sha256="sha c")}
    labelling = label_images(source(), twins, CONFIG)
    fold_of = {image.image_id: image.fold for image in labelling.train}
    assert fold_of["a"] == fold_of["d"]
    assert labelling.groups["d"] == "a"
    assert labelling.near_duplicates == 4
    assert labelling.test_lookalikes == 1


def test_an_image_without_pixels_has_no_labels() -> None:
    known = facts()
    del known["b"]
    assert "b" not in boxes_of(label_images(source(), known, CONFIG))


def test_the_order_of_rows_does_not_matter(tmp_path) -> None:
    found = source()
    shuffled = replace(
        found,
        images=found.images.iloc[::-1],
        readings=found.readings.iloc[::-1].reset_index(drop=True),
        readers=found.readers.iloc[::-1],
    )
    for name, each in (("one", found), ("two", shuffled)):
        write_labels(label_images(each, facts(), CONFIG), each, str(tmp_path / name), CONFIG, suffix=".png")
    for path in (tmp_path / "one").rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes()


def test_the_table_of_labels_keeps_images_without_boxes(tmp_path) -> None:
    import pyarrow.parquet as pq

    found = source()
    write_labels(label_images(found, facts(), CONFIG), found, str(tmp_path), CONFIG, suffix=".png")
    table = pq.read_table(tmp_path / "annotations" / "labels.parquet")
    assert table.schema.equals(labels_table_schema())
    assert table["image_id"].to_pylist() == ["a", "b", "c", "d", "t"]
    assert table["boxes"].to_pylist()[3:] == [[], []]
    assert (tmp_path / "annotations" / "folds.csv").read_text().startswith("image_id,fold,group\na,")


def test_a_truth_outside_its_film_is_fatal() -> None:
    truth = pd.DataFrame([("t", 3, 900.0, 10.0, 950.0, 60.0)], columns=["image_id", "label", *COORDINATES])
    with pytest.raises(InputError, match="test truth of t: box 900 10 950 60 leaves no more than a pixel"):
        label_images(replace(source(), truth=truth), facts(), CONFIG)
