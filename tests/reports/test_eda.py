from pathlib import Path

import pyarrow.compute as pc
import pytest

from tests.reports.conftest import write_dataset
from tests.reports.reading import figures, loads, tables
from vbd import storage
from vbd.errors import InputError
from vbd.reports.eda.page import write_eda


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("eda")
    write_eda(write_dataset(str(folder / "data")), str(folder / "eda.html"))
    return (folder / "eda.html").read_text()


def test_the_report_is_self_contained_and_says_synthetic(page: str) -> None:
    assert loads(page) == []
    assert "Synthetic data." in page
    assert "<script>alert(1)</script>" not in page
    assert "&lt;script&gt;alert(#)" in page


def rows_of(page: str, caption: str) -> dict[str, list[str]]:
    """A table's rows by their first cell."""
    return {row[0]: row[1:] for row in tables(page)[caption]}


def test_the_tables_hold_the_counts(page: str) -> None:
    classes = rows_of(page, "Images and boxes of each class")
    assert classes["Cardiomegaly"] == ["2", "5", "2", "0", "1", "1", "0.0%"]
    assert classes["all"] == ["2", "6", "3", "1", "1", "1", "33.3%"]
    overview = rows_of(page, "The dataset in a few numbers")
    assert overview["boxes that readers drew"] == ["6"]
    assert overview["readers of one image"] == ["3"]
    sizes = rows_of(page, "Boxes whose sides both have at least 8 px when the image is prepared at a size")
    assert sizes["Nodule/Mass"] == ["0.29%", "100.0%", "100.0%", "100.0%", "100.0%"]
    assert sizes["Aortic enlargement"] == ["-"] * 5
    assert sizes["all"] == ["", "100.0%", "100.0%", "100.0%", "100.0%"]


def test_the_overview_tells_how_the_boxes_were_fused(dataset: str, tmp_path: Path) -> None:
    manifest = storage.read_json(f"{dataset}/dataset.json")
    options = manifest["options"] | {"min_readers": 2, "without_readers": ["R9", "R7"], "fusion": "nmw"}
    storage.write_json(f"{dataset}/dataset.json", manifest | {"options": options})
    write_eda(dataset, str(tmp_path / "eda.html"))
    overview = rows_of((tmp_path / "eda.html").read_text(), "The dataset in a few numbers")
    rules = "nmw at IoU 0.4; drawn by 2 or more; readers heard: not R9, not R7"
    assert overview["boxes after fusing the readers"] == [f"3 ({rules})"]
    assert overview["prepared image"] == ["64 px, stretch, png, grey"]


def test_the_readers_are_told_apart(page: str) -> None:
    assert rows_of(page, "What each reader read and drew")["R3"] == [
        *("4", "50.0%", "25.0%", "1"),  # read, abnormal, with a box of R3's own, boxes
        *("1.0", "100.0%", "33.3%"),
    ]
    votes = rows_of(page, "Images by how many of their readers drew a box")
    assert votes["0 of 3"] == ["2", "50.0%"]
    assert votes["2 of 3"] == votes["3 of 3"] == ["1", "25.0%"]
    # Cardiomegaly: each of five boxes has its like among the others' fused boxes, of which R3 missed the one on b.
    human = rows_of(page, "Each reader against the others, all readers together: the human reference for a model")
    assert human["Cardiomegaly"] == ["5", "100.0%", "6", "83.3%"]
    assert human["Nodule/Mass"] == ["1", "0.0%", "2", "0.0%"]
    by_reader = figures(page)[6]["data"][0]
    assert by_reader["y"] == ["R1 (2)", "R2 (2)", "R3 (1)"]
    assert [row[3] for row in by_reader["z"]] == [1, 1, 1]
    assert [row[8] for row in by_reader["z"]] == [0.5, 0, 0]


def test_the_folds_are_compared(page: str) -> None:
    assert rows_of(page, "Images of each fold by who read them")["R1, R2, R3"] == ["4", "50.0%", "2", "2"]
    balance = figures(page)[8]["data"][0]
    # Classes without an image have no row.
    assert dict(zip(balance["y"], balance["z"], strict=True)) == {
        "images": [1, 1],
        "normal images": [1, 1],
        "Cardiomegaly": [1, 1],
        "Nodule/Mass": [2, 0],
    }
    assert "look alike" not in page


@pytest.mark.parametrize(
    ("groups", "counts", "text"),
    [
        ("a,0,p\nb,1,q\nc,0,p\nd,1,s\n", ["1", "1", "0"], "Every group of images that look alike stands in one fold."),
        ("a,0,p\nb,1,p\nc,0,r\nd,1,s\n", ["1", "1", "0"], "Groups that stand in more than one fold: 1."),
    ],
)
def test_images_that_look_alike_are_shown(
    dataset: str, tmp_path: Path, groups: str, counts: list[str], text: str
) -> None:
    storage.write_bytes(f"{dataset}/annotations/folds.csv", f"image_id,fold,group\n{groups}".encode())
    write_eda(dataset, str(tmp_path / "eda.html"))
    page = (tmp_path / "eda.html").read_text()
    assert rows_of(page, "Images that look alike in each fold")["groups"] == counts
    assert text in page
    assert page.count('alt="2 chest images that look alike"') == 1


def test_no_two_images_look_alike(dataset: str, tmp_path: Path) -> None:
    storage.write_bytes(f"{dataset}/annotations/folds.csv", b"image_id,fold,group\na,0,p\nb,1,q\nc,0,r\nd,1,s\n")
    write_eda(dataset, str(tmp_path / "eda.html"))
    assert "No two images look alike." in (tmp_path / "eda.html").read_text()


def test_sampling_is_told_by_class(page: str) -> None:
    columns, *rows = tables(page)["Images of each class in one epoch"]
    table = {row[0]: dict(zip(columns[1:], row[1:], strict=True)) for row in rows}
    assert table["all abnormal images"]["once each"] == "2"
    assert table["Nodule/Mass"]["t = 0.2: own factor"] == "1.00"  # half of the abnormal images is not rare
    assert table["Nodule/Mass"]["policy D: shown"] == "1 (x1.00)"
    assert table["Atelectasis"]["t = 0.1: shown"] == "-"


def test_the_figures_hold_the_counts(page: str) -> None:
    by_agreement = figures(page)[0]["data"]
    assert [bar["name"] for bar in by_agreement] == ["1 reader", "2 readers", "3 readers"]
    assert [sum(bar["x"]) for bar in by_agreement] == [1, 1, 1]
    per_image = figures(page)[1]["data"][0]
    assert per_image["y"] == [2, 1, 1]  # two normal images, one with a box, one with two
    together = figures(page)[2]["data"][0]
    assert [together["z"][3][8], together["z"][8][3], together["z"][8][8]] == [0.5, 1, None]
    assert together["text"][3][8] == "of 2 images with Cardiomegaly, 1 show Nodule/Mass"
    survive = figures(page)[4]["data"]
    assert [(trace["name"], trace["x"]) for trace in survive] == [
        (f"{size} px", [1, 1]) for size in (256, 512, 768, 1024)
    ]
    places = figures(page)[5]
    assert len(places["data"]) == 14
    titles = [note["text"] for note in places["layout"]["annotations"]]
    assert titles[3] == "Cardiomegaly<br>2 boxes, peak 100%"
    assert titles[0] == "Aortic enlargement<br>no box"


def test_the_page_is_the_same_whatever_the_order_of_the_rows(dataset: str, tmp_path: Path) -> None:
    write_eda(dataset, str(tmp_path / "one.html"))
    for name in ("readings", "readers"):
        path = f"{dataset}/annotations/{name}.parquet"
        table = storage.read_table(path)
        storage.write_table(path, table.take(list(reversed(range(len(table))))))
    write_eda(dataset, str(tmp_path / "two.html"))
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()


def test_sample_images_are_in_the_page(page: str) -> None:
    assert page.count('<img src="data:image/png;base64,') == 2
    assert "with the boxes of 3 readers: Cardiomegaly, Nodule/Mass" in page


def test_real_data_has_no_banner(tmp_path: Path) -> None:
    write_eda(write_dataset(str(tmp_path / "real"), synthetic=False), str(tmp_path / "eda.html"))
    assert "Synthetic" not in (tmp_path / "eda.html").read_text()


def test_a_dataset_without_a_single_finding_has_a_report(dataset: str, tmp_path: Path) -> None:
    path = f"{dataset}/annotations/instances_all.json"
    document = storage.read_json(path)
    storage.write_json(path, document | {"annotations": []})
    write_eda(dataset, str(tmp_path / "eda.html"))
    assert "No image has a finding." in (tmp_path / "eda.html").read_text()


def test_a_dataset_that_does_not_tell_its_readers_has_a_report(dataset: str, tmp_path: Path) -> None:
    for name in ("readings", "readers"):
        path = f"{dataset}/annotations/{name}.parquet"
        storage.write_table(path, storage.read_table(path).slice(0, 0))
    write_eda(dataset, str(tmp_path / "eda.html"))
    page = (tmp_path / "eda.html").read_text()
    assert "The source of this dataset does not tell who read which image." in page
    assert rows_of(page, "Images and boxes of each class")["all"] == ["2", "0", "3", "1", "1", "1", "33.3%"]
    assert "Images of each fold by who read them" not in page


def test_a_single_reader_has_no_one_to_agree_with(dataset: str, tmp_path: Path) -> None:
    for name in ("readings", "readers"):
        path = f"{dataset}/annotations/{name}.parquet"
        table = storage.read_table(path)
        storage.write_table(path, table.filter(pc.equal(table["rad_id"], "R1")))
    write_eda(dataset, str(tmp_path / "eda.html"))
    page = (tmp_path / "eda.html").read_text()
    assert rows_of(page, "What each reader read and drew")["R1"] == ["4", "50.0%", "50.0%", "3", "1.5", "-", "-"]


def test_a_dataset_and_its_report_may_lie_in_an_object_store(s3_bucket: str, dataset: str, tmp_path: Path) -> None:
    remote = write_dataset(f"{s3_bucket}/eda")
    write_eda(remote, f"{s3_bucket}/eda.html")
    write_eda(dataset, str(tmp_path / "eda.html"))
    page = storage.read_bytes(f"{s3_bucket}/eda.html").decode()
    assert page.replace(remote, dataset) == (tmp_path / "eda.html").read_text()


def test_a_missing_dataset_is_a_mistake_of_the_user(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no dataset\.json"):
        write_eda(str(tmp_path / "nowhere"), str(tmp_path / "eda.html"))


def test_a_missing_image_is_named(dataset: str, tmp_path: Path) -> None:
    Path(f"{dataset}/images/a.png").unlink()
    with pytest.raises(InputError, match=r"images/a\.png: no such file"):
        write_eda(dataset, str(tmp_path / "eda.html"))
