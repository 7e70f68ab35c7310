"""Detections as a DICOM Comprehensive SR (PS3.3, A.35.3): a report that refers to the image its findings were made in.

Under a container "Findings" each finding is a code with its certainty, inferred from a closed polyline that is selected from the
image. Labels are coded in a scheme of our own, since the competition's are coarser or finer than any standard's. Everything in a
report, its identifiers and times included, follows from the image's content and the findings: made twice, it is the same file.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import vbd
from vbd.data.images.dicom import is_dicom
from vbd.labels import CLASS_NAMES
from vbd.records import Detections

if TYPE_CHECKING:
    from pydicom import Dataset
    from pydicom.dataset import FileDataset

_COMPREHENSIVE_SR = "1.2.840.10008.5.1.4.1.1.88.33"
# Root of identifiers that are made from a UUID or a hash (PS3.5, B.2).
_UID_ROOT = "2.25."
_OWN_SCHEME = "99VBD"
# Of patient and study: a report belongs to the study of its image.
_PATIENT_AND_STUDY = (
    *("PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex"),
    *("StudyInstanceUID", "StudyDate", "StudyTime", "ReferringPhysicianName", "StudyID", "AccessionNumber"),
)
_MAY_BE_ABSENT = ("IssuerOfPatientID",)
_DISCLAIMER = "Made by a computer for research; not for clinical use. Not verified by a physician."

_Code = tuple[str, str, str]  # value, scheme, meaning
_REPORT: _Code = ("18748-4", "LN", "Diagnostic imaging report")
_FINDINGS: _Code = ("121070", "DCM", "Findings")
_FINDING: _Code = ("121071", "DCM", "Finding")
_CERTAINTY: _Code = ("111012", "DCM", "Certainty of Finding")
_PERCENT: _Code = ("%", "UCUM", "Percent")
_REGION: _Code = ("111030", "DCM", "Image Region")
_SOURCE: _Code = ("121112", "DCM", "Source of Measurement")
_COMMENT: _Code = ("121106", "DCM", "Comment")
_OBSERVER_TYPE: _Code = ("121005", "DCM", "Observer Type")
_DEVICE: _Code = ("121007", "DCM", "Device")
_DEVICE_UID: _Code = ("121012", "DCM", "Device Observer UID")
_DEVICE_NAME: _Code = ("121013", "DCM", "Device Observer Name")
_NORMAL: _Code = ("NORMAL", _OWN_SCHEME, "Probability that the image is normal")


def structured_report(data: bytes, found: Detections, *, threshold: float, detector: str = "") -> "FileDataset | None":
    """The report on one DICOM file of these findings, which are above `threshold`; None for a file of another kind.

    Raises nothing for an image that could be read: identifiers it lacks are made from its bytes.
    """
    if not is_dicom(data):
        return None
    import pydicom
    from pydicom.dataset import FileDataset, FileMetaDataset

    image = pydicom.dcmread(_stream(data), stop_before_pixels=True, force=True)
    content = hashlib.sha256(data).hexdigest()
    facts = json.dumps([vbd.__version__, content, threshold, detector, _plain(found)])
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = pydicom.uid.UID(_COMPREHENSIVE_SR)
    meta.MediaStorageSOPInstanceUID = pydicom.uid.UID(_uid("instance", facts))
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    report = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    _describe(report, image, content)
    report.SOPClassUID, report.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    # One series for each detector: a report made anew is another instance of it.
    report.SeriesInstanceUID = _uid("series", str(report.StudyInstanceUID), detector)
    reference = _reference(image, content)
    report.CurrentRequestedProcedureEvidenceSequence = [_evidence(report, image, reference, content)]
    root = _item("CONTAINER", _REPORT)
    root.ContinuityOfContent = "SEPARATE"
    root.ContentSequence = [
        *_observer(detector),
        _text(_COMMENT, f"{_DISCLAIMER} Findings with a score of {threshold:g} or more."),
        _findings(found, reference),
    ]
    report.update(root)
    return report


def _stream(data: bytes) -> Any:
    import io

    return io.BytesIO(data)


def _plain(found: Detections) -> list[Any]:
    return [found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), found.no_finding]


def _uid(*parts: str) -> str:
    """An identifier that follows from some texts: 128 bits of their hash."""
    digest = hashlib.sha256("\0".join(parts).encode()).digest()
    return f"{_UID_ROOT}{int.from_bytes(digest[:16], 'big')}"


# ------------------------------------------------------------------------------------------------------------- modules


def _describe(report: "Dataset", image: "Dataset", content: str) -> None:
    """Patient, study, series, equipment and document. Times are those of the image: a report has no time of its own."""
    for name in _PATIENT_AND_STUDY:
        if name in image or name not in _MAY_BE_ABSENT:
            setattr(report, name, image.get(name) or "")
    report.StudyInstanceUID = image.get("StudyInstanceUID") or _uid("study", content)
    if image.get("SpecificCharacterSet"):
        report.SpecificCharacterSet = image.SpecificCharacterSet
    report.Modality, report.SeriesNumber, report.InstanceNumber = "SR", 1, image.get("InstanceNumber") or 1
    report.ReferencedPerformedProcedureStepSequence = []
    report.Manufacturer, report.ManufacturerModelName = "vbd", "vbd"
    report.SoftwareVersions = vbd.__version__
    report.CompletionFlag, report.VerificationFlag = "COMPLETE", "UNVERIFIED"
    days = ("ContentDate", "AcquisitionDate", "StudyDate")
    report.ContentDate = next((image.get(name) for name in days if image.get(name)), "19000101")
    report.ContentTime = next(
        (image.get(f"{name[:-4]}Time") for name in days if image.get(f"{name[:-4]}Time")), "000000"
    )
    report.PerformedProcedureCodeSequence = []
    report.CodingSchemeIdentificationSequence = [_scheme()]


def _scheme() -> "Dataset":
    from pydicom import Dataset

    scheme = Dataset()
    scheme.CodingSchemeDesignator, scheme.CodingSchemeName = _OWN_SCHEME, "Findings of the VinBigData competition"
    scheme.CodingSchemeVersion = "1"
    return scheme


def _reference(image: "Dataset", content: str) -> "Dataset":
    from pydicom import Dataset

    reference = Dataset()
    meta = getattr(image, "file_meta", {})
    reference.ReferencedSOPClassUID = image.get("SOPClassUID") or meta.get("MediaStorageSOPClassUID") or _uid("class")
    reference.ReferencedSOPInstanceUID = (
        image.get("SOPInstanceUID") or meta.get("MediaStorageSOPInstanceUID") or _uid("image", content)
    )
    return reference


def _evidence(report: "Dataset", image: "Dataset", reference: "Dataset", content: str) -> "Dataset":
    from pydicom import Dataset

    series, study = Dataset(), Dataset()
    series.SeriesInstanceUID = image.get("SeriesInstanceUID") or _uid("series", content)
    series.ReferencedSOPSequence = [reference]
    study.StudyInstanceUID = report.StudyInstanceUID
    study.ReferencedSeriesSequence = [series]
    return study


# -------------------------------------------------------------------------------------------------------- content tree


def _observer(detector: str) -> "Sequence[Dataset]":
    kind = _item("CODE", _OBSERVER_TYPE, "HAS OBS CONTEXT")
    kind.ConceptCodeSequence = [_code(_DEVICE)]
    uid = _item("UIDREF", _DEVICE_UID, "HAS OBS CONTEXT")
    uid.UID = _uid("device", vbd.__version__, detector)
    name = f"vbd {vbd.__version__} {detector}".strip()
    return kind, uid, _text(_DEVICE_NAME, name, "HAS OBS CONTEXT")


def _findings(found: Detections, reference: "Dataset") -> "Dataset":
    container = _item("CONTAINER", _FINDINGS, "CONTAINS")
    container.ContinuityOfContent = "SEPARATE"
    items = [
        _finding(box, score, label, reference)
        for box, score, label in zip(found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True)
    ]
    if found.no_finding is not None:
        items.insert(0, _percentage(_NORMAL, found.no_finding, "CONTAINS"))
    if not len(found.boxes):
        items.append(_text(_COMMENT, "No finding with such a score."))
    container.ContentSequence = items
    return container


def _finding(box: Sequence[float], score: float, label: int, reference: "Dataset") -> "Dataset":
    finding = _item("CODE", _FINDING, "CONTAINS")
    finding.ConceptCodeSequence = [_code((f"VBD{label}", _OWN_SCHEME, CLASS_NAMES[label]))]
    region = _item("SCOORD", _REGION, "INFERRED FROM")
    region.GraphicType = "POLYLINE"
    x_min, y_min, x_max, y_max = box
    # Column and row of each corner; 0 is the outer edge of the first pixel (C.18.6.1.1), as in our boxes.
    region.GraphicData = [x_min, y_min, x_max, y_min, x_max, y_max, x_min, y_max, x_min, y_min]
    image = _item("IMAGE", _SOURCE, "SELECTED FROM")
    image.ReferencedSOPSequence = [reference]
    region.ContentSequence = [image]
    finding.ContentSequence = [_percentage(_CERTAINTY, score, "HAS PROPERTIES"), region]
    return finding


def _percentage(name: _Code, share: float, relation: str) -> "Dataset":
    from pydicom import Dataset

    item, value = _item("NUM", name, relation), Dataset()
    value.NumericValue = f"{100 * share:.4f}"
    value.MeasurementUnitsCodeSequence = [_code(_PERCENT)]
    item.MeasuredValueSequence = [value]
    return item


def _text(name: _Code, text: str, relation: str = "CONTAINS") -> "Dataset":
    item = _item("TEXT", name, relation)
    item.TextValue = text
    return item


def _item(kind: str, name: _Code, relation: str = "") -> "Dataset":
    from pydicom import Dataset

    item = Dataset()
    if relation:
        item.RelationshipType = relation
    item.ValueType = kind
    item.ConceptNameCodeSequence = [_code(name)]
    return item


def _code(code: _Code) -> "Dataset":
    from pydicom import Dataset

    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code
    return item
