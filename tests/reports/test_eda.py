from pathlib import Path

import pytest

from tests.reports.conftest import write_dataset
from tests.reports.reading import figures, loads, tables
from vbd import storage
from vbd.errors import InputError
from vbd.reports.eda import write_eda


@pytest.fixture
def page(dataset: str, tmp_path: Path) -> str:
    write_eda(dataset, str(tmp_path / "eda.html"))
    return (tmp_path / "eda.html").read_text()


def test_the_report_is_self_contained_and_says_synthetic(page: str) -> None:
    assert loads(page) == []
    assert "Synthetic data." in page
    assert "<script>alert(1)</script>" not in page
    assert "&lt;script&gt;alert(#)" in page


def test_the_tables_hold_the_counts(page: str) -> None:
    classes = {row[0]: row[1:] for row in tables(page)["Images and boxes of each class"]}
    assert classes["Cardiomegaly"] == ["2", "2", "0", "1", "1", "0.0%"]
    assert classes["all"] == ["2", "3", "1", "1", "1", "33.3%"]
    readers = {row[0]: row[1:] for row in tables(page)["What each reader read and drew"]}
    assert readers["R3"] == ["4", "25.0%", "1", "1.0", "100.0%", "33.3%"]
    overview = {row[0]: row[1:] for row in tables(page)["The dataset in a few numbers"]}
    assert overview["boxes that readers drew"] == ["6"]


def test_the_figures_hold_the_counts(page: str) -> None:
    by_agreement = figures(page)[0]["data"]
    assert [bar["name"] for bar in by_agreement] == ["1 reader", "2 readers", "3 readers"]
    assert [sum(bar["x"]) for bar in by_agreement] == [1, 1, 1]
    per_image = figures(page)[1]["data"][0]
    assert per_image["y"] == [2, 1, 1]  # two normal images, one with a box, one with two


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


def test_a_missing_dataset_is_a_mistake_of_the_user(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no dataset\.json"):
        write_eda(str(tmp_path / "nowhere"), str(tmp_path / "eda.html"))


def test_a_missing_image_is_named(dataset: str, tmp_path: Path) -> None:
    Path(f"{dataset}/images/a.png").unlink()
    with pytest.raises(InputError, match=r"images/a\.png: no such file"):
        write_eda(dataset, str(tmp_path / "eda.html"))
