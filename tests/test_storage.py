import errno
import math
import os
from pathlib import Path

import pyarrow as pa
import pytest

from vbd import storage
from vbd.errors import InputError


def test_json_is_stable_and_turns_nan_into_null(tmp_path: Path) -> None:
    first, second = str(tmp_path / "a.json"), str(tmp_path / "b.json")
    storage.write_json(first, {"b": math.nan, "a": (1, 2)})
    storage.write_json(second, {"a": [1, 2], "b": math.nan})
    assert storage.read_bytes(first) == storage.read_bytes(second)
    assert storage.read_json(first) == {"a": [1, 2], "b": None}


def test_writing_leaves_no_temporary_file(tmp_path: Path) -> None:
    storage.write_bytes(str(tmp_path / "deep" / "file"), b"1")
    storage.write_bytes(str(tmp_path / "deep" / "file"), b"2")
    assert storage.list_names(str(tmp_path / "deep")) == ["file"]
    assert storage.read_bytes(str(tmp_path / "deep" / "file")) == b"2"


def test_a_full_disk_keeps_the_old_file_and_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = str(tmp_path / "file")
    storage.write_bytes(target, b"old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InputError, match="no space left on the device"):
        storage.write_bytes(target, b"new")
    monkeypatch.undo()
    assert storage.read_bytes(target) == b"old"
    assert storage.list_names(str(tmp_path)) == ["file"]


def test_a_table_comes_back_and_a_broken_one_is_named(tmp_path: Path) -> None:
    location = str(tmp_path / "t.parquet")
    storage.write_table(location, pa.table({"a": [1, 2], "b": ["x", "y"]}))
    assert storage.read_table(location, ["b"]).to_pydict() == {"b": ["x", "y"]}
    data = storage.read_bytes(location)
    storage.write_bytes(location, data[: len(data) // 2])
    with pytest.raises(InputError, match=r"t\.parquet: not a readable Parquet file"):
        storage.read_table(location)


@pytest.mark.parametrize("read", [storage.read_bytes, storage.read_json, storage.read_table])
def test_a_missing_file_is_named(read, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing\.json: no such file"):
        read(str(tmp_path / "nothing.json"))


def test_bad_json_names_its_line(tmp_path: Path) -> None:
    storage.write_bytes(str(tmp_path / "x.json"), b'{"a": 1,\n "b": }')
    with pytest.raises(InputError, match="line 2"):
        storage.read_json(str(tmp_path / "x.json"))


def test_copying_a_folder_replaces_what_lay_there(tmp_path: Path) -> None:
    storage.write_bytes(str(tmp_path / "one" / "sub" / "new"), b"1")
    storage.write_bytes(str(tmp_path / "two" / "old"), b"2")
    storage.copy_folder(str(tmp_path / "one"), str(tmp_path / "two"))
    assert storage.list_names(str(tmp_path / "two")) == ["sub"]
    assert storage.read_bytes(str(tmp_path / "two" / "sub" / "new")) == b"1"


def test_too_little_space_is_told_before_the_work(tmp_path: Path) -> None:
    storage.need_space(str(tmp_path / "not" / "yet"), 1)
    with pytest.raises(InputError, match="MB free"):
        storage.need_space(str(tmp_path), 10**18)


@pytest.mark.parametrize(
    ("image_id", "safe"),
    [
        ("0a1b", True),
        ("x-1_2.3", True),
        ("", False),
        ("../x", False),
        ("a/b", False),
        (".x", False),
        ("a" * 201, False),
    ],
)
def test_only_plain_names_become_paths(image_id: str, safe: bool) -> None:
    assert storage.is_safe_id(image_id) is safe


def test_the_stable_hash_is_the_same_on_every_machine() -> None:
    assert storage.stable_hash("a") == 0x40F89E395B66422F


def test_an_unknown_scheme_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot open this store"):
        storage.filesystem("nowhere://bucket/x")


def test_a_place_that_cannot_be_written_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        storage.write_bytes(str(tmp_path / "file" / "below"), b"1")


def test_a_file_uri_is_a_path_of_this_machine(tmp_path: Path) -> None:
    storage.write_bytes(f"file://{tmp_path}/deep/a.txt", b"1")
    assert (tmp_path / "deep" / "a.txt").read_bytes() == b"1"
    assert storage.list_files(f"file://{tmp_path}/deep")["a.txt"].size == 1
    assert storage.absolute(f"file://{tmp_path}/deep") == f"{tmp_path}/deep"


def test_packed_files_are_read_as_they_are(tmp_path: Path) -> None:
    storage.write_bytes(str(tmp_path / "x.csv.gz"), b"no gzip")
    assert storage.read_bytes(str(tmp_path / "x.csv.gz")) == b"no gzip"


def test_a_folder_is_listed_with_sizes_and_times(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "a").write_bytes(b"123")
    os.utime(tmp_path / "a", ns=(5, 7_000_000_000))
    assert storage.list_files(str(tmp_path)) == {"a": storage.FileFacts(3, 7_000_000_000)}
    assert storage.list_names(str(tmp_path)) == ["a", "below"]
    assert storage.list_files(str(tmp_path / "nowhere")) == {}


def test_a_column_of_files_is_not_compressed_again(tmp_path: Path) -> None:
    table = pa.table({"id": ["a", "b"], "image": [b"0" * 50_000, b"1" * 50_000]})
    size = storage.write_table(str(tmp_path / "t.parquet"), table, encoded=("image",))
    assert size == (tmp_path / "t.parquet").stat().st_size > 100_000
    assert storage.read_table(str(tmp_path / "t.parquet")).equals(table)
    assert storage.write_table(str(tmp_path / "u.parquet"), table) < 10_000


def test_a_compact_document_is_the_same_document(tmp_path: Path) -> None:
    value = {"b": [1.5, math.nan], "a": {"x": "ü"}}
    storage.write_json(str(tmp_path / "a.json"), value, compact=True)
    storage.write_json(str(tmp_path / "b.json"), value)
    assert storage.read_json(str(tmp_path / "a.json")) == storage.read_json(str(tmp_path / "b.json"))
    assert (tmp_path / "a.json").read_bytes().count(b"\n") == 1


def test_many_files_come_in_the_order_asked_for(tmp_path: Path) -> None:
    names = [str(tmp_path / f"{number}") for number in range(40)]
    for name in names:
        storage.write_bytes(name, name.encode())
    assert storage.read_many(names[::-1]) == [name.encode() for name in names[::-1]]
    with pytest.raises(InputError, match="no such file"):
        storage.read_many([*names, str(tmp_path / "nothing")])
