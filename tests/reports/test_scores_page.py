"""The page of a report on predictions, as its reader sees it."""

import html
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from plotly.offline import get_plotlyjs

from tests.browser import check_figures, drawn_figures, open_page
from tests.reports.conftest import write_dataset
from tests.reports.predictions import BIG_ONES, NOTHING, TEST_PART, kept, parquet, submission
from tests.reports.reading import figures, loads, tables
from vbd import storage
from vbd.reports.scores.score import score_predictions


def page_of(predictions: str, data: str, folder: Path, **options) -> str:
    score_predictions(predictions, data, output_html=str(folder / "new" / "scores.html"), **options)
    return (folder / "new" / "scores.html").read_text()


def titles(page: str) -> list[str]:
    return [html.unescape(part.partition("</a>")[0].partition(">")[2]) for part in page.split('<a href="#s')[1:]]


def test_the_page_has_all_parts_and_loads_nothing(dataset: str, tmp_path: Path) -> None:
    ours, theirs = parquet(tmp_path, BIG_ONES), parquet(tmp_path, NOTHING, "other.parquet")
    page = page_of(ours, dataset, tmp_path, against=theirs, replicates=50)
    assert loads(page) == []
    assert titles(page) == [
        *("In short", "Against the others", "Each class", "Precision and recall", "Findings against false boxes"),
        *("Beside the readers", "By agreement and size", "What is taken for what", "The worst misses"),
        *("The most confident false boxes", "How to read this page"),
    ]
    assert "Synthetic data." in page
    assert "These predictions are better than" in page
    assert len(page) - len(get_plotlyjs()) < 1_000_000


def test_the_tables_hold_what_the_json_holds(dataset: str, tmp_path: Path) -> None:
    output = str(tmp_path / "scores.json")
    page = page_of(parquet(tmp_path, BIG_ONES), dataset, tmp_path, replicates=50, output_json=output)
    content, found = json.loads(Path(output).read_text()), tables(page)
    main = {row[0]: row for row in found["The main scores"]}
    low, high = content["intervals"]["map_40_findings"]
    assert main["map_40_findings"][1:3] == ["0.5000", f"{low:.4f} to {high:.4f}"]
    assert main["coco_ap50"][1] == f"{content['coco']['ap50']:.4f}"
    classes = {row[0]: row for row in found["Average precision of each class"]}
    assert classes["class"][-2:] == ["AP, 2+ readers", "AP, 3+ readers"]
    assert classes["Cardiomegaly"][1] == "1.0000"
    assert classes["ILD"][1:3] == ["-", "-"]
    assert [row[0] for row in found["Scores on a part of the findings"]][1:4] == [
        *("any reader", "2 or more readers", "3 readers")
    ]
    readers = found["Readers and detector at the readers' rate of false boxes"]
    assert readers[1] == ["all findings", "8", "0.0833", "0.6250", "0.7500", "0.8"]


def test_the_curves_end_where_the_detector_ends(dataset: str, tmp_path: Path) -> None:
    page = page_of(parquet(tmp_path, BIG_ONES), dataset, tmp_path, replicates=0)
    curves = {line["name"]: line for figure in figures(page) for line in figure["data"] if line.get("name")}
    assert curves["Cardiomegaly (1.00)"]["x"] == [0, 0.5, 1]
    assert curves["Cardiomegaly (1.00)"]["y"] == [1, 1, 1]
    assert curves["Nodule/Mass (0.00)"]["y"] == [0]
    assert curves["all readers"]["x"] == [pytest.approx(1 / 12)]
    assert curves["all readers"]["y"] == [0.625]


def test_real_data_is_not_called_synthetic(tmp_path: Path) -> None:
    real = write_dataset(str(tmp_path / "real"), synthetic=False)
    assert "Synthetic data." not in page_of(parquet(tmp_path, TEST_PART), real, tmp_path, replicates=0)


def test_images_without_a_row_are_told(dataset: str, tmp_path: Path) -> None:
    page = page_of(parquet(tmp_path, BIG_ONES[:1]), dataset, tmp_path, replicates=0)
    assert "1 images of the fold 0 have no row" in page


def test_a_submission_without_known_truth_has_a_page_of_its_defects(dataset: str, tmp_path: Path) -> None:
    Path(f"{dataset}/annotations/instances_test.json").unlink()
    page = page_of(submission(tmp_path, "t,3 0.9 40 20 2000 100 14 0.1 0 0 1 1"), dataset, tmp_path)
    assert titles(page) == ["Not scored", "Check of the submission"]
    assert "the truth of the test part is not known" in page
    assert "the image has no row" in page


def test_predictions_without_a_box_have_a_page(dataset: str, tmp_path: Path) -> None:
    page = page_of(parquet(tmp_path, NOTHING), dataset, tmp_path, replicates=10)
    assert "as there is no box to choose it by" in page
    assert "There are none." in page


def test_a_part_without_findings_has_a_page(dataset: str, tmp_path: Path) -> None:
    """Only normal images: there is nothing to find, and every box is false."""
    location = f"{dataset}/annotations/instances_test.json"
    storage.write_json(location, storage.read_json(location) | {"annotations": []})
    page = page_of(parquet(tmp_path, TEST_PART), dataset, tmp_path, replicates=10)
    assert "the image is normal" in page
    assert "NaN" not in page.rpartition("</script>")[2]


def test_a_name_of_a_file_is_text_and_not_markup(dataset: str, tmp_path: Path) -> None:
    ours, theirs = parquet(tmp_path, BIG_ONES, "<i>x.parquet"), parquet(tmp_path, NOTHING, "<u>y.parquet")
    page = page_of(ours, dataset, tmp_path, against=theirs, replicates=0)
    assert "&lt;i&gt;x.parquet" in page
    assert "<i>x" not in page
    assert "<u>y" not in page


def test_everything_may_lie_on_an_object_store(dataset: str, s3_bucket: str, tmp_path: Path) -> None:
    storage.copy_folder(dataset, f"{s3_bucket}/scored/data")
    predictions = f"{s3_bucket}/scored/found/detections.parquet"
    storage.copy_folder(str(Path(parquet(tmp_path / "found", BIG_ONES)).parent), f"{s3_bucket}/scored/found")
    output = f"{s3_bucket}/scored/scores.html"
    score_predictions(predictions, f"{s3_bucket}/scored/data", replicates=0, output_html=output)
    page = storage.read_bytes(output).decode()
    assert "data:image/webp" in page
    assert "could not be read" not in page


def test_the_page_is_drawn_whole_and_asks_for_nothing(dataset: str, tmp_path: Path) -> None:
    best = kept(tmp_path / "best", {"yolox-1": [BIG_ONES], "yolox-2": [NOTHING]})
    theirs = parquet(tmp_path, NOTHING, "other.parquet")
    page_of(best, dataset, tmp_path, against=theirs, replicates=50)
    picture = tmp_path / "page.png"
    opened = open_page(tmp_path / "new" / "scores.html", tmp_path / "profile", screenshot=picture, hw=(3500, 1280))
    check_figures(opened)
    # Headlines, differences, classes, precision, FROC in three, agreement and size, confusion.
    assert len(drawn_figures(opened.dom)) == 9
    pixels = np.asarray(Image.open(picture).convert("RGB")).astype(int)
    # The points of the headlines and the bars of the classes.
    for colour in ((0x00, 0x72, 0xB2), (0x56, 0xB4, 0xE9)):
        assert (np.abs(pixels - colour).max(axis=2) <= 3).sum() > 300
