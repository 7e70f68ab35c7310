"""What an output folder keeps of a run that was stopped, and what it refuses. Without Ray and detectors."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vbd import storage
from vbd.data.rejects import reject
from vbd.errors import InputError
from vbd.predict.parts import Output
from vbd.predict.stages import FoundPart
from vbd.records import Detections, detections_from_table, detections_to_table

ONE: dict[str, Any] = {"folder": "/films", "checkpoints": {"detections": {"sha256": "a"}}, "augmentation": "none"}
TWO: dict[str, Any] = ONE | {"checkpoints": {"a": {"sha256": "a"}, "b": {"sha256": "b"}}}
PARTS = [[{"image_id": f"{part}{i}", "path": f"/films/{part}{i}", "size": 1} for i in range(2)] for part in range(3)]


def _found(number: int, checkpoints: int = 1) -> FoundPart:
    """A box in the first image of a part, a reject for the second."""
    box = np.array([[number, 0, 10, 20]], np.float32)
    tables = [
        detections_to_table(
            [Detections(f"{number}0", box, np.array([0.5], np.float32), np.array([which]), no_finding=which / 4)]
        )
        for which in range(checkpoints)
    ]
    return FoundPart(number, tables, [reject(f"/films/{number}1", 0, "broken")])


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_a_stopped_run_goes_on_with_what_is_missing(tmp_path: Path) -> None:
    folder = str(tmp_path / "out")
    first = Output(folder, ONE, PARTS, names=["detections"])
    assert first.begin() == [0, 1, 2]
    first.write(_found(1))
    again = Output(folder, ONE, PARTS, names=["detections"])
    assert not again.is_finished
    assert again.begin() == [0, 2]
    again.write(_found(2))
    again.write(_found(0))
    again.finish(lambda text: None)
    assert _names(tmp_path) == ["detections.parquet", "predictions.json", "rejects.csv"]
    assert again.counts == {"images": 3, "rejects": 3}
    assert [found.image_id for found in detections_from_table(again.read("detections"))] == ["00", "10", "20"]
    assert [row["file"] for row in storage.read_csv(f"{folder}/rejects.csv")] == ["/films/01", "/films/11", "/films/21"]
    done = Output(folder, ONE, PARTS, names=["detections"])
    assert done.is_finished
    assert done.counts == again.counts


def test_several_checkpoints_have_a_table_each(tmp_path: Path) -> None:
    output = Output(str(tmp_path), TWO, PARTS, names=["a", "b"])
    for number in output.begin():
        output.write(_found(number, checkpoints=2))
    output.finish(lambda text: None)
    assert _names(tmp_path) == ["a.parquet", "b.parquet", "predictions.json", "rejects.csv"]
    for which, name in enumerate("ab"):
        found = detections_from_table(output.read(name))
        assert [(each.labels.tolist(), each.no_finding) for each in found] == [([which], which / 4)] * 3
        assert output.read(name).schema == detections_to_table(found).schema


@pytest.mark.parametrize("is_finished", [False, True])
def test_other_predictions_in_the_folder_are_refused_with_the_difference(tmp_path: Path, is_finished: bool) -> None:
    output = Output(str(tmp_path), ONE, PARTS, names=["detections"])
    for number in output.begin():
        output.write(_found(number))
    if is_finished:
        output.finish(lambda text: None)
    for change, told in (
        ({"augmentation": "flip"}, "augmentation was 'none', is 'flip'"),
        ({"checkpoints": {"detections": {"sha256": "b"}}}, "checkpoints.detections.sha256 was 'a', is 'b'"),
        ({"folder": "/other"}, "folder was '/films', is '/other'"),
    ):
        with pytest.raises(InputError, match=rf"holds other predictions \({told}\); .* --overwrite"):
            Output(str(tmp_path), ONE | change, PARTS, names=["detections"])
    before = _names(tmp_path)
    other = Output(str(tmp_path), TWO, PARTS, names=["a", "b"], overwrite=True)
    assert _names(tmp_path) == before  # nothing goes before the work begins
    assert other.begin() == [0, 1, 2]
    assert "detections.parquet" not in _names(tmp_path)


def test_a_changed_image_is_looked_at_again_and_its_neighbours_in_other_parts_are_not(tmp_path: Path) -> None:
    output = Output(str(tmp_path), ONE, PARTS, names=["detections"])
    for number in output.begin():
        output.write(_found(number))
    moved = [[item | {"path": "/elsewhere"} for item in part] for part in PARTS]
    assert Output(str(tmp_path), ONE, moved, names=["detections"]).begin() == []
    changed = [PARTS[0], [PARTS[1][0], PARTS[1][1] | {"size": 2}], PARTS[2]]
    assert Output(str(tmp_path), ONE, changed, names=["detections"]).begin() == [1]
    output.begin()
    output.write(_found(1))
    output.finish(lambda text: None)
    assert not Output(str(tmp_path), ONE, changed, names=["detections"]).is_finished
    assert Output(str(tmp_path), ONE, PARTS, names=["detections"]).is_finished


def test_a_part_without_its_content_is_done_again(tmp_path: Path) -> None:
    output = Output(str(tmp_path), ONE, PARTS, names=["detections"])
    for number in output.begin():
        output.write(_found(number))
    next(tmp_path.rglob("part-00002-*")).write_bytes(b"")
    assert Output(str(tmp_path), ONE, PARTS, names=["detections"]).begin() == [2]


def test_what_somebody_else_put_there_stays(tmp_path: Path) -> None:
    output = Output(str(tmp_path / "out"), ONE, PARTS, names=["detections"])
    for number in output.begin():
        output.write(_found(number))
    (tmp_path / "out" / "parts" / "notes.parquet").write_bytes(b"mine")
    (tmp_path / "mine.parquet").write_bytes(b"mine")
    file = str(tmp_path / "out" / "predictions.json")
    description = storage.read_object(file)
    storage.write_json(file, description | {"checkpoints": {"../mine": {}, "detections": {}}})
    other = ONE | {"augmentation": "flip"}
    before = _names(tmp_path)
    with pytest.raises(InputError) as error:
        Output(str(tmp_path / "out"), other, PARTS, names=["detections"], overwrite=True)
    assert str(error.value).startswith(f"{file}: checkpoints.../mine.[key] is '../mine'; want a name of ASCII letters")
    assert _names(tmp_path) == before
    storage.write_json(file, description)
    output = Output(str(tmp_path / "out"), other, PARTS, names=["detections"], overwrite=True)
    for number in output.begin():
        output.write(_found(number))
    output.finish(lambda text: None)
    assert _names(tmp_path) == [
        *("detections.parquet", "mine.parquet", "notes.parquet", "predictions.json", "rejects.csv")
    ]


def test_parts_lie_on_an_object_store_too(s3_bucket: str) -> None:
    folder = f"{s3_bucket}/predictions"
    output = Output(folder, ONE, PARTS, names=["detections"])
    output.begin()
    output.write(_found(0))
    output = Output(folder, ONE, PARTS, names=["detections"])
    for number in output.begin():
        output.write(_found(number))
    output.finish(lambda text: None)
    assert sorted(storage.list_files(folder, recursive=True)) == [
        "detections.parquet",
        "predictions.json",
        "rejects.csv",
    ]
    assert len(output.read("detections")) == 3
