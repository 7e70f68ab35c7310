"""A submission of a SYNTHETIC dataset with one defect after the other: which is told, with which rows, and what it costs."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vbd.boxes import to_prepared
from vbd.config import PrepareConfig
from vbd.data.phantom.write import write_phantom
from vbd.data.prepare.dataset import prepare
from vbd.data.prepared import image_sizes, open_dataset, read_truths, sample_submission_ids
from vbd.errors import InputError
from vbd.evaluation.average_precision import evaluate
from vbd.records import Detections, Truth
from vbd.submission.examine import KINDS, Examination, examine
from vbd.submission.file import read_submission, write_submission
from vbd.submission.mend import Case, mend

HEADER = "image_id,PredictionString"
Values = np.ndarray  # (n, 6) of a row, class 14 last


@pytest.fixture(scope="module")
def data(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Forty test images of about 256 pixels, whose truth is known, prepared at 128."""
    folder = tmp_path_factory.mktemp("doctor")
    write_phantom(folder / "raw", images=9, test_images=40, image_format="png", size=256, abnormal_share=0.5, seed=1)
    prepare(str(folder / "raw"), str(folder / "data"), PrepareConfig(image_size=128, num_folds=3))
    return str(folder / "data")


def found_in(truth: Truth, rng: np.random.Generator) -> Detections:
    """Most findings, thirty false boxes of lower score, and P(normal)."""
    height, width = truth.original_hw
    kept = rng.random(len(truth.labels)) < 0.8
    centres, halves = rng.uniform(0.15, 0.85, (30, 2)), rng.uniform(0.02, 0.12, (30, 2))
    false = np.hstack([centres - halves, centres + halves]) * [width, height, width, height]
    scores = np.concatenate([rng.uniform(0.3, 1, kept.sum()), rng.uniform(0.01, 0.5, 30)]).astype(np.float32)
    order = np.argsort(-scores)
    return Detections(
        truth.image_id,
        np.concatenate([truth.boxes[kept], false]).astype(np.float32)[order],
        scores[order],
        np.concatenate([truth.labels[kept], rng.integers(0, 14, 30)])[order],
        no_finding=float(rng.uniform(0, 0.6) if len(truth.labels) else rng.uniform(0.4, 1)),
    )


@pytest.fixture(scope="module")
def good(data: str) -> list[str]:
    """The rows of a good submission."""
    dataset, rng = open_dataset(data), np.random.default_rng(0)
    path = f"{data}/../good.csv"
    detections = [found_in(truth, rng) for truth in read_truths(dataset, "test")]
    ids, sizes = sample_submission_ids(dataset), image_sizes(dataset, "test")
    write_submission(detections, path, image_ids=ids, original_hw=sizes)
    return Path(path).read_text().splitlines()[1:]


def examined(folder: Path, data: str, rows: list[str], header: str = HEADER) -> Examination:
    path = folder / "submission.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return examine(str(path), data)


def changed(
    rows: list[str], change: Callable[[str, Values], Values], which: tuple[int, ...] | None = None
) -> list[str]:
    """The rows with other predictions; `which` counts from 0."""
    changed_rows = []
    for place, row in enumerate(rows):
        image_id, text = row.split(",")
        if which is None or place in which:
            values = change(image_id, np.array(text.split(), np.float64).reshape(-1, 6))
            row = f"{image_id},{' '.join(f'{value:.10g}' for value in values.ravel())}"
        changed_rows.append(row)
    return changed_rows


def column(index: int, change: Callable[[Values], Values], *, whole: bool = False) -> Callable[[str, Values], Values]:
    """Changes one column of the findings, or of class 14."""

    def other(image_id: str, values: Values) -> Values:
        rows = (values[:, 0] == 14) == whole
        values[rows, index] = change(values[rows, index])
        return values

    return other


def test_a_good_file_has_no_defects_and_the_score_of_evaluate(data: str, good: list[str], tmp_path: Path) -> None:
    done = examined(tmp_path, data, good)
    wanted = evaluate(read_submission(done.path), read_truths(open_dataset(data), "test")).map_40
    assert (done.findings, done.notes) == ((), ())
    assert done.score == done.score_mended == wanted
    assert 0.3 < wanted < 0.95
    assert done.text.splitlines()[-1] == "no defects"
    assert "synthetic data" in done.text.splitlines()[0]


SECOND = (1, 4)  # rows that a defect is put into: lines 3 and 6
ROWS: dict[str, Callable[[list[str]], list[str]]] = {
    "unknown_image": lambda rows: [*rows, "stranger,14 1 0 0 1 1"],
    "duplicate_image": lambda rows: [*rows, rows[1]],
    "no_prediction": lambda rows: [row.split(",")[0] + "," if i in SECOND else row for i, row in enumerate(rows)],
    "not_a_number": lambda rows: [row + " 3 0.1 1 1 nine 9" if i in SECOND else row for i, row in enumerate(rows)],
    "not_six": lambda rows: [row + " 3 0.1 1" if i in SECOND else row for i, row in enumerate(rows)],
    "unknown_class": lambda rows: changed(rows, column(0, lambda v: np.append(v[:-1], 17)), SECOND),
    "score_range": lambda rows: changed(rows, column(1, lambda v: v * 100), SECOND),
    "corners": lambda rows: changed(rows, lambda _, v: np.vstack([v[:-1][:, [0, 1, 4, 3, 2, 5]], v[-1:]]), SECOND),
    "one_pixel": lambda rows: [row + " 3 0.9 7 7 8 8" if i in SECOND else row for i, row in enumerate(rows)],
    "outside_image": lambda rows: [row + " 3 0.01 7 7 8000 80" if i in SECOND else row for i, row in enumerate(rows)],
    "whole_image_box": lambda rows: changed(rows, column(4, lambda v: v + 200, whole=True), SECOND),
    "whole_image_twice": lambda rows: [row + " 14 0.5 0 0 1 1" if i in SECOND else row for i, row in enumerate(rows)],
}
LINES = {"unknown_image": [42], "duplicate_image": [42]}


@pytest.mark.parametrize("kind", ROWS)
def test_a_defect_of_rows_is_found_alone_in_its_rows(kind: str, data: str, good: list[str], tmp_path: Path) -> None:
    done = examined(tmp_path, data, ROWS[kind](good))
    (finding,) = done.findings
    assert finding.kind == kind
    assert [defect.line for defect in finding.defects] == LINES.get(kind, [3, 6])
    assert f"{KINDS[kind]}: {len(finding.defects)}" in done.text
    assert all(defect.mend for defect in finding.defects)


@pytest.mark.parametrize("kind", ["not_six", "not_a_number", "score_range", "corners", "one_pixel", "unknown_image"])
def test_what_a_rule_can_mend_has_the_good_score_again(kind: str, data: str, good: list[str], tmp_path: Path) -> None:
    wanted = examined(tmp_path, data, good).score
    (finding,) = examined(tmp_path, data, ROWS[kind](good)).findings
    assert finding.score == pytest.approx(wanted, abs=1e-6)


def test_images_without_a_row_are_named(data: str, good: list[str], tmp_path: Path) -> None:
    (finding,) = examined(tmp_path, data, good[:-2]).findings
    assert finding.kind == "missing_image"
    assert [defect.image_id for defect in finding.defects] == [row.split(",")[0] for row in good[-2:]]


def test_another_header_is_told(data: str, good: list[str], tmp_path: Path) -> None:
    (finding,) = examined(tmp_path, data, good, "ID,TARGET").findings
    assert (finding.kind, finding.defects[0].line) == ("header", 1)
    assert HEADER in finding.defects[0].mend


# --------------------------------------------------------------------------------------------------------- whole files


def shrunk(data: str, side: int, mode: str = "stretch") -> Callable[[str, Values], Values]:
    sizes = image_sizes(open_dataset(data), "test")

    def smaller(image_id: str, values: Values) -> Values:
        rows = values[:, 0] != 14
        values[rows, 2:] = to_prepared(values[rows, 2:], sizes[image_id], side, mode)  # type: ignore[arg-type]
        return values

    return smaller


@pytest.mark.parametrize(("side", "mode"), [(128, "stretch"), (128, "letterbox"), (1, "stretch")])
def test_resized_boxes_cost_what_mending_gives_back(
    side: int, mode: str, data: str, good: list[str], tmp_path: Path
) -> None:
    wanted = examined(tmp_path, data, good).score
    done = examined(tmp_path, data, changed(good, shrunk(data, side, mode)))
    (finding,) = done.findings
    assert finding.kind == "resized"
    assert [defect.line for defect in finding.defects] == list(range(2, 42))
    assert wanted is not None
    assert done.score is not None
    assert done.score < wanted / 3
    assert finding.score == pytest.approx(wanted, abs=1e-3)
    assert finding.how.endswith(f"resized by {mode}")


def test_classes_that_count_from_one_are_one_defect(data: str, good: list[str], tmp_path: Path) -> None:
    wanted = examined(tmp_path, data, good).score
    rows = changed(good, lambda _, values: values + np.eye(6)[0])
    done = examined(tmp_path, data, rows)
    (finding,) = done.findings
    assert (finding.kind, len(finding.defects), finding.score) == ("unknown_class", 40, wanted)
    assert "take 1 from every class" in done.text
    assert done.score == 0


def test_ids_with_endings_are_mended(data: str, good: list[str], tmp_path: Path) -> None:
    wanted = examined(tmp_path, data, good).score
    done = examined(tmp_path, data, [row.replace(",", ".dicom,") for row in good])
    (finding,) = done.findings
    assert (finding.kind, finding.score, done.score) == ("unknown_image", wanted, 0)


def test_class_14_of_the_wrong_sense_is_told_by_the_truth(data: str, good: list[str], tmp_path: Path) -> None:
    wanted = examined(tmp_path, data, good).score
    done = examined(tmp_path, data, changed(good, column(1, lambda v: 1 - v, whole=True)))
    (finding,) = done.findings
    assert finding.kind == "whole_image_reversed"
    assert finding.score == pytest.approx(wanted)
    assert "area under the ROC curve 0.0" in done.text


def test_class_14_nowhere_costs_its_average_precision(data: str, good: list[str], tmp_path: Path) -> None:
    done = examined(tmp_path, data, changed(good, lambda _, values: values[:-1]))
    (finding,) = done.findings
    assert (finding.kind, finding.defects[0].line) == ("no_whole_image", 0)
    assert finding.score is not None
    assert done.score is not None
    assert finding.score - done.score > 0.03
    assert f"({finding.score - done.score:+.4f})" in done.text


def test_equal_scores_cannot_be_mended(data: str, good: list[str], tmp_path: Path) -> None:
    done = examined(tmp_path, data, changed(good, column(1, lambda v: v * 0 + 0.5)))
    (finding,) = done.findings
    assert (finding.kind, finding.score) == ("scores_equal", None)
    assert "what it costs cannot be told: the scores are lost" in done.text


def test_several_defects_are_told_each_with_its_own_loss(data: str, good: list[str], tmp_path: Path) -> None:
    rows = changed(changed(good, shrunk(data, 128)), column(1, lambda v: 1 - v, whole=True))[:-1]
    wanted = examined(tmp_path, data, good).score
    done = examined(tmp_path, data, rows, "ID,TARGET")
    kinds = [finding.kind for finding in done.findings]
    assert kinds == ["header", "missing_image", "resized", "whole_image_reversed"]
    assert None not in (done.score, done.score_mended, wanted)
    assert all(finding.score is not None and finding.score < done.score_mended for finding in done.findings)  # type: ignore[operator]
    assert done.score_mended == pytest.approx(wanted, abs=0.1)
    assert "4 kinds of defects in 42 places" in done.text


def test_the_sample_submission_is_valid_and_told_once_that_it_finds_nothing(data: str) -> None:
    done = examine(f"{data}/sample_submission.csv", data)
    assert done.findings == ()
    assert len(done.notes) == 1
    assert done.text.count("holds no findings") == 1


def test_class_14_as_a_switch_is_noted(data: str, good: list[str], tmp_path: Path) -> None:
    normal = {truth.image_id for truth in read_truths(open_dataset(data), "test") if not len(truth.labels)}
    switch = changed(good, lambda name, v: np.array([[14, 1, 0, 0, 1, 1.0]]) if name in normal else v[:-1])
    done = examined(tmp_path, data, switch)
    assert done.findings == ()
    (note,) = done.notes
    assert "beside the boxes" in note
    assert f"note: {note}" in done.text


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("", {"header", "missing_image"}),
        (HEADER, {"missing_image"}),
        (f"{HEADER}\n\n\n", {"missing_image"}),
        ("PK\x03\x04 no csv at all", {"header", "missing_image"}),
        (
            f"{HEADER}\nx,3 1e300 -1e300 0 1e300 1e300",
            {"unknown_image", "missing_image", "score_range", "no_whole_image"},
        ),
    ],
)
def test_what_is_hardly_a_submission_is_examined_all_the_same(
    text: str, kinds: set[str], data: str, tmp_path: Path
) -> None:
    (tmp_path / "s.csv").write_text(text)
    done = examine(str(tmp_path / "s.csv"), data)
    assert {finding.kind for finding in done.findings} >= kinds
    assert done.score == 0


def test_without_the_truth_defects_are_told_and_no_losses(
    data: str, good: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*_: object) -> list[Truth]:
        raise InputError("the truth of the test part is not known here")

    monkeypatch.setattr("vbd.data.parts.read_truths", unknown)
    rows = changed(good, lambda _, v: np.vstack([v[:-1], [[14, v[0, 1], 0, 0, 1, 1]]]))
    done = examined(tmp_path, data, changed(rows, shrunk(data, 128)))
    assert [finding.kind for finding in done.findings] == ["resized", "whole_image_reversed"]
    assert (done.score, done.score_mended, done.findings[0].score) == (None, None, None)
    assert "not scored: the truth of the test part is not known here" in done.text
    assert "map_40" not in done.text


def test_every_kind_can_be_mended_or_says_why_not(data: str, good: list[str], tmp_path: Path) -> None:
    from vbd.submission.check import read_sheet

    path = examined(tmp_path, data, good).path
    sizes = image_sizes(open_dataset(data), "test")
    case = Case(list(sizes), sizes, None, "stretch")
    for kind in KINDS:
        if kind != "resized":
            assert mend(kind, read_sheet(path), case).how


def test_every_key_of_the_json_is_documented(data: str, good: list[str], tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text("\n".join([HEADER, *good[:-1]]))
    examine(str(tmp_path / "s.csv"), data, output_json=str(tmp_path / "s.json"))
    content = json.loads((tmp_path / "s.json").read_text())
    (defect,) = content["defects"]
    assert (defect["kind"], defect["count"], defect["places"][0]["image_id"]) == (
        "missing_image",
        1,
        good[-1].split(",")[0],
    )
    assert defect["loss"] == pytest.approx(defect["map_40_mended"] - content["map_40"])
    text = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text()
    documented = text[text.index("## A submission examined") :]
    for key in [*content, *defect, *defect["places"][0]]:
        assert f"`{key}`" in documented, key
    for kind in KINDS:
        assert f"`{kind}`" in documented, kind


@pytest.mark.parametrize("content", [b"\xff\xfe\x00\x01", None])
def test_a_file_that_cannot_be_read_is_one_error(content: bytes | None, data: str, tmp_path: Path) -> None:
    path = tmp_path / "submission.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"submission\.csv: no(t a text file| such file)"):
        examine(str(path), data)
