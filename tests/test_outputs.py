"""Outputs are checked before the work: nothing is replaced by mistake, what cannot be written is found, nothing is left."""

import errno
import json
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest

from vbd import storage
from vbd.drawing import png
from vbd.errors import InputError
from vbd.reports.page import render_page
from vbd.storage.outputs import FOLDER_MARK, Kind, check_outputs
from vbd.storage.ownership import OWNER

PAGE = render_page("title", [], synthetic=True).encode()
PICTURE = png(np.zeros((8, 8), np.uint8))
SCORES = {"schema": 2, "predictions": "a", "part": "fold 0", "not_scored": "", "against": None}
EXAMINATION = {"schema": 1, "submission": "a.csv", "rows": 3, "not_scored": ""}
COCO = [{"image_id": 1, "category_id": 2, "bbox": [0, 0, 1, 1], "score": 0.5}]
SUBMISSION = b"image_id,PredictionString\na,14 1 0 0 1 1\nb,3 0.5 1 2 30 40\n"


def _files(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


@pytest.mark.parametrize(
    ("name", "kind", "ours", "foreign"),
    [
        ("a.html", "page", PAGE, b"<!doctype html><p>my notes"),
        ("a.png", "picture", PICTURE, b"\x89PNG\r\n\x1a\n my film"),
        ("a.json", "scores", json.dumps(SCORES).encode(), json.dumps(EXAMINATION).encode()),
        ("a.json", "examination", json.dumps(EXAMINATION).encode(), json.dumps({"schema": 2, "dataset": "x"}).encode()),
        ("a.json", "coco", json.dumps(COCO).encode(), json.dumps([{"image_id": 1}]).encode()),
        ("a.json", "coco", b"[]", b"{}"),
        ("a.json", "coco", b"[]", b"no json"),
        ("a.csv", "submission", SUBMISSION, b"image_id,PredictionString\na,14 1 0 0 1 1\nb,14 1 0 0 1 1\n"),
        ("a.csv", "submission", SUBMISSION, b"image_id,class_name\n"),
    ],
)
def test_an_earlier_output_is_replaced_and_any_other_file_is_not(
    name: str, kind: Kind, ours: bytes, foreign: bytes, tmp_path: Path
) -> None:
    target = tmp_path / name
    check_outputs({"--to": (str(target), kind)})
    target.write_bytes(ours)
    check_outputs({"--to": (str(target), kind)})
    target.write_bytes(foreign)
    with pytest.raises(InputError) as caught:
        check_outputs({"--to": (str(target), kind)})
    assert str(caught.value) == (
        f"--to {target}: holds a file that was not written by this flag; choose another place, or remove that file"
    )
    assert _files(tmp_path) == {str(target): foreign}


def test_a_folder_of_other_files_is_not_filled(tmp_path: Path) -> None:
    check_outputs({"--to": (str(tmp_path), "pictures")})
    (tmp_path / OWNER).touch()  # of a job that was killed before it wrote anything else
    check_outputs({"--to": (str(tmp_path), "predictions")})
    (tmp_path / "film.png").write_bytes(b"film")
    check_outputs({"--to": (str(tmp_path), "folder")})  # such a job looks for itself
    for kind in ("pictures", "predictions"):
        with pytest.raises(InputError, match=r"holds other files, such as film\.png; choose an empty or a new folder"):
            check_outputs({"--to": (str(tmp_path), kind)})
    (tmp_path / FOLDER_MARK).touch()
    check_outputs({"--to": (str(tmp_path), "pictures")})


@pytest.mark.parametrize(
    ("location", "told"),
    [
        ("data", "--html {}/data: want a file that ends in .html"),
        ("data/dataset.json", "--html {}/data/dataset.json: want a file that ends in .html"),
        ("folder.html", "--html {}/folder.html: is a folder, want a file; add its name, ending in .html"),
        ("data/a.html", "--html {0}/data/a.html: lies within {0}/data/, which --data reads; choose another place"),
        ("data/../data/x/a.html", "which --data reads"),
        ("link/a.html", "which --data reads"),
        ("run/best/a.html", "--html {0}/run/best/a.html: lies within {0}/run, which --run reads; choose another place"),
        ("in.html", "--html {}/in.html: --config reads it; choose another place"),
        ("other.html", "--html {}/other.html: --first names the same place; choose another one"),
        ("file/a.html", "--html {0}/file/a.html: cannot be written ({0}/file is a file); choose another place"),
        ("file/b/a.html", "({0}/file is a file)"),
        ("/proc/a.html", "--html /proc/a.html: cannot be written (No such file or directory); choose another place"),
    ],
)
def test_a_place_that_cannot_be_an_output_is_one_line(location: str, told: str, tmp_path: Path) -> None:
    for folder in ("data", "run", "folder.html"):
        (tmp_path / folder).mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "data")
    (tmp_path / "file").write_bytes(b"1")
    before = _files(tmp_path)
    with pytest.raises(InputError) as caught:
        check_outputs(
            {"--first": (f"{tmp_path}/other.html", "page"), "--html": (str(tmp_path / location), "page")},
            reads={"--data": f"{tmp_path}/data/", "--config": f"{tmp_path}/in.html"},
            beside={"--run": f"{tmp_path}/run"},
        )
    assert told.format(tmp_path) in str(caught.value)
    assert _files(tmp_path) == before


def test_a_new_file_may_lie_directly_in_a_run(tmp_path: Path) -> None:
    check_outputs(
        {"--html": (f"{tmp_path}/run/a.html", "page"), "--json": (None, "scores")}, beside={"--run": f"{tmp_path}/run"}
    )
    assert _files(tmp_path) == {}  # not even the folder is made


def test_a_file_where_a_folder_is_wanted_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"1")
    with pytest.raises(InputError, match="file: is a file, want a folder; choose another place"):
        check_outputs({"--output": (f"{tmp_path}/file", "folder")})


@pytest.mark.parametrize(
    ("code", "told"), [(errno.EACCES, "Permission denied"), (errno.EROFS, "Read-only file system")]
)
def test_a_folder_that_takes_no_file_is_found_before_the_work(
    code: int, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*, dir: Path) -> None:
        assert dir == tmp_path  # the first folder above the output that there is
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(InputError) as caught:
        check_outputs({"--output": (f"{tmp_path}/new/deep", "folder")})
    assert str(caught.value) == f"--output {tmp_path}/new/deep: cannot be written ({told}); choose another place"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
def test_a_folder_of_somebody_else_is_found_before_the_work(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        Path(folder).chmod(0o755)
        os.seteuid(65534)
        try:
            with pytest.raises(InputError, match=r"a\.html: cannot be written \(Permission denied\); choose another"):
                check_outputs({"--output": (f"{folder}/a.html", "page")})
        finally:
            os.seteuid(0)


def test_a_bucket_that_does_not_exist_is_found_and_one_that_does_is_left_as_it_was(s3_bucket: str) -> None:
    for kind, name in (("page", "a.html"), ("folder", "out")):
        check_outputs({"--output": (f"{s3_bucket}/checked/{name}", kind)})
        with pytest.raises(InputError) as caught:
            check_outputs({"--output": (f"s3://no-such-bucket/{name}", kind)})
        assert str(caught.value).startswith(f"--output s3://no-such-bucket/{name}: cannot be written (")
        assert "\n" not in str(caught.value)
    assert storage.list_files(f"{s3_bucket}/checked", recursive=True) == {}
