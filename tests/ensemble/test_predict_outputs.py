"""COCO results, pictures and DICOM reports of detections."""

import io
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pydicom
import pytest

from vbd import storage
from vbd.data.prepared import image_sizes, open_dataset
from vbd.errors import InputError
from vbd.predict.images import Item, images_in_folder, images_of_part
from vbd.predict.outputs import Extras, Found, write_extras
from vbd.predict.structured_report import structured_report
from vbd.records import Detections, detections_to_table
from vbd.reports.scores.read import read_predictions
from vbd.storage.outputs import FOLDER_MARK

BOXES = np.array([[20, 30, 60.25, 70], [80, 90, 100, 130]], np.float32)


def _found(items: list[Item], no_finding: float | None = None) -> list[Detections]:
    """Two boxes in every image, one of a low score."""
    scores, labels = np.array([0.75, 0.01], np.float32), np.array([3, 8])
    return [Detections(item["image_id"], BOXES, scores, labels, no_finding) for item in items]


def _write(extras: Extras, items: list[Item], images: str, names: tuple[str, ...] = ("detections",)) -> None:
    table = detections_to_table(_found(items))
    write_extras(
        extras, [Found(name, f"yolox {name}", table) for name in names], items, images=images, say=lambda text: None
    )


def test_coco_results_of_a_prepared_part_are_read_back_as_they_were(prepared: str, tmp_path: Path) -> None:
    dataset = open_dataset(prepared)
    items = images_of_part(dataset, 1)
    _write(Extras(coco=str(tmp_path / "results.json"), part="1"), items, prepared)
    (source,) = read_predictions(str(tmp_path / "results.json"), dataset, 1)
    back = {found.image_id: found for found in source.detections}
    assert len(back) == len(items)
    for found in _found(items):
        np.testing.assert_allclose(back[found.image_id].boxes, BOXES, atol=1e-3)
        np.testing.assert_allclose(back[found.image_id].scores, found.scores)
        assert back[found.image_id].labels.tolist() == [3, 8]


def test_coco_results_of_a_folder_have_file_names_and_original_pixels(phantom: Path, tmp_path: Path) -> None:
    items = images_in_folder(str(phantom))
    _write(Extras(coco=str(tmp_path / "results.json")), items, str(phantom), names=("a", "b"))
    for name in "ab":
        entries = json.loads((tmp_path / f"results-{name}.json").read_text())
        assert len(entries) == 2 * len(items)
        assert all((phantom / entry["image_id"]).is_file() for entry in entries)
        assert entries[0]["bbox"] == [20, 30, 40.25, 40]
        assert entries[0]["category_id"] == 4


@pytest.mark.parametrize("kind", ["raw", "prepared"])
def test_a_picture_shows_the_boxes_above_the_threshold(kind: str, phantom: Path, prepared: str, tmp_path: Path) -> None:
    films = str(phantom / "test")
    items = images_in_folder(films) if kind == "raw" else images_of_part(open_dataset(prepared), "test")
    _write(Extras(overlay=str(tmp_path), score_threshold=0.5), items, films if kind == "raw" else prepared)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {FOLDER_MARK, *(f"{item['image_id']}.png" for item in items)}
    original_hw = image_sizes(open_dataset(prepared), "test")[items[0]["image_id"]]
    picture = cv2.imread(str(tmp_path / f"{items[0]['image_id']}.png"))
    assert picture is not None
    height, width = picture.shape[:2]
    assert max(height, width) == 512
    scale = np.array([width / original_hw[1], height / original_hw[0]] * 2)
    coloured = picture.max(2).astype(int) - picture.min(2) > 60
    for box, is_drawn in zip(BOXES, (True, False), strict=True):
        x_min, _, x_max, y_max = np.rint(box * scale).astype(int)
        bottom = coloured[y_max - 4 : y_max + 1, x_min + 8 : x_max - 8].any(0)
        assert (bottom.mean() > 0.9) == is_drawn
    caption = picture[-24:, :200]
    assert (caption.max(2) > 120).any()
    assert (caption < 8).mean() > 0.3  # on black


def test_what_cannot_be_made_is_told(phantom: Path, prepared: str) -> None:
    items = images_of_part(open_dataset(prepared), "test")
    for extras, told in (
        (Extras(dicom_sr="out"), "--dicom-sr: prepared images have lost the DICOM files"),
        (Extras(coco="out"), "--coco out: want a file that ends in .json"),
        (Extras(score_threshold=1.5), "--score-threshold 1.5: want 0 to 1"),
    ):
        with pytest.raises(InputError, match=told):
            extras.check(items)
    Extras(dicom_sr="out", coco="a.json").check(images_in_folder(str(phantom / "test")))


def _codes(item: Any) -> tuple[str, str]:
    return item.ValueType, item.ConceptNameCodeSequence[0].CodeMeaning


def test_a_report_refers_to_its_image_and_holds_each_finding(phantom: Path, tmp_path: Path, ray_session: None) -> None:
    films = phantom / "test"
    items = images_in_folder(str(films))
    _write(Extras(dicom_sr=str(tmp_path), score_threshold=0.5), items, str(films))
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {FOLDER_MARK, *(f"{item['image_id']}.dcm" for item in items)}
    seen = set()
    for item in items:
        image = pydicom.dcmread(item["path"], stop_before_pixels=True)
        report = pydicom.dcmread(tmp_path / f"{item['image_id']}.dcm")
        assert report.SOPClassUID.name == "Comprehensive SR Storage"
        assert report.file_meta.MediaStorageSOPInstanceUID == report.SOPInstanceUID
        assert report.SOPInstanceUID.is_valid
        assert (report.StudyInstanceUID, report.PatientID) == (image.StudyInstanceUID, image.PatientID)
        assert report.SeriesInstanceUID != image.SeriesInstanceUID
        (study,) = report.CurrentRequestedProcedureEvidenceSequence
        (series,) = study.ReferencedSeriesSequence
        assert series.SeriesInstanceUID == image.SeriesInstanceUID
        (reference,) = series.ReferencedSOPSequence
        assert (reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID) == (
            image.SOPClassUID,
            image.SOPInstanceUID,
        )
        assert report.CompletionFlag == "COMPLETE"
        assert report.VerificationFlag == "UNVERIFIED"
        comment = next(each for each in report.ContentSequence if _codes(each) == ("TEXT", "Comment"))
        assert "not for clinical use" in str(comment.TextValue)
        (finding,) = report.ContentSequence[-1].ContentSequence  # the other one's score is below the threshold
        assert _codes(finding) == ("CODE", "Finding")
        assert finding.ConceptCodeSequence[0].CodeMeaning == "Cardiomegaly"
        certainty, region = finding.ContentSequence
        assert (certainty.RelationshipType, _codes(certainty)[1]) == ("HAS PROPERTIES", "Certainty of Finding")
        assert certainty.MeasuredValueSequence[0].NumericValue == 75
        assert (region.RelationshipType, region.GraphicType) == ("INFERRED FROM", "POLYLINE")
        assert region.GraphicData == [20, 30, 60.25, 30, 60.25, 70, 20, 70, 20, 30]
        (source,) = region.ContentSequence
        assert (source.RelationshipType, source.ValueType) == ("SELECTED FROM", "IMAGE")
        assert source.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == image.SOPInstanceUID
        seen.add(report.SOPInstanceUID)
    assert len(seen) == len(items)


def _bytes(data: bytes, found: Detections, **options: Any) -> bytes:
    report = structured_report(data, found, **({"threshold": 0.3} | options))
    assert report is not None
    stream = io.BytesIO()
    report.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def test_a_report_made_twice_is_the_same_and_other_findings_are_another(phantom: Path) -> None:
    (item, *_) = images_in_folder(str(phantom / "test"))
    data = storage.read_bytes(item["path"])
    (plain,), (normal,) = _found([item]), _found([item], no_finding=0.25)
    assert _bytes(data, plain) == _bytes(data, plain)
    uids = {
        pydicom.dcmread(io.BytesIO(each)).SOPInstanceUID
        for each in (
            _bytes(data, plain),
            _bytes(data, normal),
            _bytes(data, plain, detector="yolox"),
            _bytes(data + b"\0\0", plain),
        )
    }
    assert len(uids) == 4


def test_a_report_without_findings_says_so_and_tells_how_likely_the_image_is_normal(phantom: Path) -> None:
    (item, *_) = images_in_folder(str(phantom / "test"))
    data = storage.read_bytes(item["path"])
    report = pydicom.dcmread(io.BytesIO(_bytes(data, Detections(item["image_id"], no_finding=0.875))))
    normal, nothing = report.ContentSequence[-1].ContentSequence
    assert _codes(normal) == ("NUM", "Probability that the image is normal")
    assert normal.MeasuredValueSequence[0].NumericValue == 87.5
    assert "No finding" in str(nothing.TextValue)
    assert structured_report(b"\x89PNG", Detections("a"), threshold=0.5) is None
