"""What is deleted, and what is left alone."""

import os
from pathlib import Path

import pytest

from vbd import storage
from vbd.storage import deletion


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """A folder of somebody else, with a file."""
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "ours-1").write_bytes(b"1")
    return tmp_path / "other"


def _ours(name: str) -> bool:
    return name.startswith("ours-")


def test_a_folder_of_our_files_goes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("ours-1", "ours-2", "ours-2.0123abcd.tmp"):
        storage.write_bytes(str(tmp_path / "folder" / name), b"1")
    deletion.delete_folder(str(tmp_path / "folder"), _ours)
    assert not (tmp_path / "folder").exists()
    deletion.delete_folder(str(tmp_path / "folder"), _ours)
    assert capsys.readouterr().out == ""


def test_strangers_and_links_stay_and_are_named_once(
    tmp_path: Path, other: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "folder"
    for name in ("ours-1", "notes.txt", "below/ours-1"):
        storage.write_bytes(str(folder / name), b"1")
    (folder / "ours-2").symlink_to(other)
    (folder / "ours-3").symlink_to(other / "ours-1")
    (folder / "ours-4").symlink_to("nowhere")  # which a listing leaves out
    for _ in range(2):
        deletion.delete_folder(str(folder), _ours)
    assert sorted(path.name for path in folder.iterdir()) == ["below", "notes.txt", "ours-2", "ours-3", "ours-4"]
    assert (other / "ours-1").read_bytes() == (folder / "below" / "ours-1").read_bytes() == b"1"
    assert capsys.readouterr().out == f"{folder}: left alone, not known to vbd: below, notes.txt, ours-2 and 1 more\n"


def test_a_link_in_the_place_of_the_folder_and_a_file_stay(
    tmp_path: Path, other: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "link").symlink_to("other")
    (tmp_path / "file").write_bytes(b"1")
    for name in ("link", "file"):
        deletion.delete_folder(str(tmp_path / name), _ours)
    assert (tmp_path / "link").is_symlink()
    assert (other / "ours-1").exists()
    assert capsys.readouterr().out.splitlines() == [
        f"{tmp_path}: left alone, not known to vbd: {name}" for name in ("link", "file")
    ]


def test_a_link_above_is_where_the_user_wants_it(tmp_path: Path, other: Path) -> None:
    storage.write_bytes(str(other / "run" / "ours-1"), b"1")
    (tmp_path / "runs").symlink_to("other")
    deletion.delete_folder(str(tmp_path / "runs" / "run"), _ours)
    assert sorted(path.name for path in other.iterdir()) == ["ours-1"]


def test_only_what_is_not_wanted_goes(tmp_path: Path) -> None:
    for name in ("ours-1", "ours-2", "theirs"):
        storage.write_bytes(str(tmp_path / name), b"1")
    assert deletion.keep_only(str(tmp_path), {"ours-2"}, _ours) == ["theirs"]
    assert storage.list_names(str(tmp_path)) == ["ours-2", "theirs"]
    assert deletion.keep_only(str(tmp_path / "nowhere"), set(), _ours) == []


def test_a_folder_of_an_object_store_goes_with_its_last_file(s3_bucket: str) -> None:
    folder = f"{s3_bucket}/deletion"
    for name in ("ours-1", "ours-2", "theirs"):
        storage.write_bytes(f"{folder}/{name}", b"1")
    deletion.delete_folder(folder, _ours)
    assert storage.list_names(folder) == ["theirs"]
    deletion.delete_folder(folder, bool)
    assert not storage.exists(folder)


def test_what_a_killed_writer_left_goes_and_what_is_being_written_stays(tmp_path: Path) -> None:
    old, new = "a.parquet.0123abcd.tmp", "b.parquet.0123abcd.tmp"
    for name in (old, new, "mine.tmp", "a.parquet"):
        (tmp_path / name).write_bytes(b"1")
    (tmp_path / "folder.0123abcd.tmp").mkdir()
    (tmp_path / "folder.0123abcd.tmp" / "file").write_bytes(b"1")
    (tmp_path / "other").mkdir()
    link = "link.0123abcd.tmp"
    (tmp_path / link).symlink_to("other")
    for path in tmp_path.iterdir():
        if path.name != new:
            os.utime(path, (1, 1), follow_symlinks=False)
    deletion.remove_leftovers(str(tmp_path))
    assert storage.list_names(str(tmp_path)) == ["a.parquet", new, link, "mine.tmp", "other"]
    deletion.remove_leftovers(str(tmp_path / "nowhere"))
