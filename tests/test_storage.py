import ast
import errno
import math
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from tests.nodes import ROOT, Proxy, free_port
from vbd import storage
from vbd.errors import InputError, StoreError, UnreachableError
from vbd.hashing import stable_hash
from vbd.storage import deletion, stores, waiting


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


def test_copying_a_folder_replaces_files_of_the_same_names_and_leaves_others(tmp_path: Path) -> None:
    storage.write_bytes(str(tmp_path / "one" / "sub" / "new"), b"1")
    storage.write_bytes(str(tmp_path / "one" / "same"), b"1")
    storage.copy_folder(str(tmp_path / "one"), str(tmp_path / "two"))
    assert storage.list_names(str(tmp_path)) == ["one", "two"]
    storage.write_bytes(str(tmp_path / "two" / "same"), b"2")
    storage.write_bytes(str(tmp_path / "two" / "notes"), b"2")
    storage.copy_folder(str(tmp_path / "one"), str(tmp_path / "two"))
    assert {name: (tmp_path / "two" / name).read_bytes() for name in ("sub/new", "same", "notes")} == {
        **{"sub/new": b"1", "same": b"1", "notes": b"2"}
    }
    assert storage.list_names(str(tmp_path)) == ["one", "two"]


def test_neither_copying_nor_deleting_goes_through_a_link(tmp_path: Path) -> None:
    storage.write_bytes(str(tmp_path / "other" / "file"), b"theirs")
    storage.write_bytes(str(tmp_path / "one" / "file"), b"ours")
    (tmp_path / "link").symlink_to("other")
    with pytest.raises(InputError) as caught:
        storage.copy_folder(str(tmp_path / "one"), str(tmp_path / "link"))
    assert str(caught.value) == (
        f"{tmp_path}/link: a link to {tmp_path}/other, whose files would be replaced; remove the link"
    )
    (tmp_path / "one" / "linked").symlink_to(tmp_path / "other" / "file")
    with pytest.raises(InputError) as caught:
        storage.delete_file(str(tmp_path / "one" / "linked"))
    assert str(caught.value) == (
        f"{tmp_path}/one/linked: a link to {tmp_path}/other/file, which vbd did not write and would delete; remove the link"
    )
    storage.delete_file(str(tmp_path / "link" / "nothing"))
    storage.write_bytes(str(tmp_path / "file"), b"theirs")
    with pytest.raises(InputError, match=r"file: a file, where a folder is to be written; remove it"):
        storage.copy_folder(str(tmp_path / "one"), str(tmp_path / "file"))
    assert (tmp_path / "other" / "file").read_bytes() == b"theirs"


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
    assert stable_hash("a") == 0x40F89E395B66422F


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


def test_a_link_that_leads_back_is_told_and_others_are_followed(tmp_path: Path) -> None:
    (tmp_path / "in" / "below").mkdir(parents=True)
    (tmp_path / "in" / "below" / "file").write_bytes(b"1")
    (tmp_path / "in" / "again").symlink_to("below")
    (tmp_path / "in" / "broken").symlink_to("nowhere")
    assert set(storage.list_files(str(tmp_path / "in"), recursive=True)) == {"below/file", "again/file"}
    (tmp_path / "in" / "below" / "up").symlink_to("..")
    with pytest.raises(InputError, match=r"up: a link to a folder that it lies in \(.*/in\); remove it"):
        storage.list_files(str(tmp_path / "in"), recursive=True)


def test_a_password_in_a_location_is_refused_and_not_repeated() -> None:
    with pytest.raises(InputError, match="holds a user or password") as caught:
        storage.read_bytes("s3://me:secret@bucket/file")
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "bucket/file" in str(caught.value)


# ----------------------------------------------------------------------------------------------------------- object stores


@pytest.fixture(scope="module")
def google_bucket() -> Iterator[str]:
    """An empty bucket, `gs://...`, on a server of this process that speaks as Google Cloud Storage."""
    from gcp_storage_emulator.server import create_server

    port = free_port()
    server = create_server("127.0.0.1", port, in_memory=True, default_bucket="vbd-tests")
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLOUD_STORAGE_EMULATOR_ENDPOINT", f"http://127.0.0.1:{port}")
        yield "gs://anonymous@vbd-tests"
    server.stop()


def test_google_cloud_storage_holds_files_and_folders(google_bucket: str, tmp_path: Path) -> None:
    storage.write_json(f"{google_bucket}/data/a.json", {"a": 1})
    storage.write_bytes(f"{google_bucket}/data/below/b", b"12")
    assert storage.read_json(f"{google_bucket}/data/a.json") == {"a": 1}
    assert storage.exists(f"{google_bucket}/data/below/b")
    assert not storage.exists(f"{google_bucket}/data/c")
    with pytest.raises(InputError, match="data/c: no such file"):
        storage.read_bytes(f"{google_bucket}/data/c")
    table = pa.table({"a": [1, 2]})
    storage.write_table(f"{google_bucket}/data/t.parquet", table)
    assert storage.read_table(f"{google_bucket}/data/t.parquet").equals(table)
    storage.move_file(f"{google_bucket}/data/t.parquet", f"{google_bucket}/data/below/t.parquet")
    listed = storage.list_files(f"{google_bucket}/data", recursive=True)
    assert sorted(listed) == ["a.json", "below/b", "below/t.parquet"]
    assert listed["below/b"].size == 2
    storage.copy_folder(f"{google_bucket}/data", str(tmp_path / "copy"))
    assert (tmp_path / "copy" / "below" / "b").read_bytes() == b"12"
    storage.copy_folder(str(tmp_path / "copy"), f"{google_bucket}/again")
    assert storage.list_names(f"{google_bucket}/again") == ["a.json", "below"]
    assert storage.exists(f"{google_bucket}/again/below")
    assert storage.is_folder(f"{google_bucket}/again/below")
    storage.delete_file(f"{google_bucket}/again/a.json")
    storage.delete_file(f"{google_bucket}/again/a.json")
    deletion.delete_folder(f"{google_bucket}/data", lambda name: name != "a.json")
    deletion.delete_folder(f"{google_bucket}/data/below", str.isalpha)
    assert sorted(storage.list_files(f"{google_bucket}/data", recursive=True)) == ["a.json", "below/t.parquet"]
    storage.delete_file(f"{google_bucket}/data/below/t.parquet")
    deletion.delete_folder(f"{google_bucket}/data", bool)
    assert storage.list_files(f"{google_bucket}/data", recursive=True) == {}


@pytest.fixture
def proxy(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """On the way to the store, for what this process opens meanwhile."""
    there = Proxy(int(os.environ["AWS_ENDPOINT_URL"].rpartition(":")[2]))
    monkeypatch.setenv("AWS_ENDPOINT_URL", there.url)
    stores._open_store.cache_clear()
    yield there
    there.shut()
    stores._open_store.cache_clear()


def test_a_file_is_sent_in_one_request(s3_bucket: str, proxy: Proxy) -> None:
    storage.write_bytes(f"{s3_bucket}/one/file", b"1" * 3_000_000)
    assert proxy.requests == ["PUT /vbd-tests/one/file HTTP/1.1"]
    assert len(storage.read_bytes(f"{s3_bucket}/one/file")) == 3_000_000


def test_a_thousand_files_are_listed_in_a_request(s3_bucket: str, proxy: Proxy) -> None:
    import boto3

    client = boto3.client("s3")
    for number in range(1100):
        client.put_object(Bucket="vbd-tests", Key=f"many/images/{number}.png", Body=b"1")
    for recursive, folder in ((True, "many"), (False, "many/images")):
        proxy.requests.clear()
        assert len(storage.list_files(f"{s3_bucket}/{folder}", recursive=recursive)) == 1100
        assert len(proxy.requests) == 2


def test_an_upload_that_is_cut_off_leaves_what_was_there(
    s3_bucket: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "PATIENCE_SECONDS", 0.0)
    for size in (200_000, 12_000_000):  # in one piece, and in several
        storage.write_bytes(f"{s3_bucket}/cut/file", b"old")
        proxy.cut_uploads_after(50_000)
        with pytest.raises(UnreachableError, match=r"cut/file: cannot be written \(.*NETWORK_CONNECTION"):
            storage.write_bytes(f"{s3_bucket}/cut/file", bytes(size))
        proxy.cut_uploads_after(None)
        assert storage.read_bytes(f"{s3_bucket}/cut/file") == b"old"
    assert storage.list_names(f"{s3_bucket}/cut") == ["file"]


def test_a_store_that_does_not_answer_is_waited_for_once(
    s3_bucket: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    location = f"{s3_bucket}/waited/file"
    storage.write_bytes(location, b"1")
    monkeypatch.setattr(waiting, "_last_told", [-9.0])
    proxy.shut()
    thread = threading.Thread(target=lambda: storage.read_many([location] * 3))
    thread.start()
    told = ""
    while "; tried again for " not in (told := told + capsys.readouterr().out):
        assert thread.is_alive()
    proxy.open()
    thread.join(60)
    assert not thread.is_alive()
    assert told.count("\n") == 1
    proxy.shut()

    calls = []

    def action() -> bytes:
        calls.append(1)
        return storage.read_many([location])[0]

    with pytest.raises(UnreachableError, match="waited/file: cannot be read"):
        storage.patiently(
            action, seconds=0, say=lambda _: None
        )  # for no longer, though reading has patience of its own
    assert len(calls) == 1


def test_a_store_that_says_no_is_not_asked_again(s3_bucket: str) -> None:
    with pytest.raises(StoreError, match="NO_SUCH_BUCKET") as caught:
        storage.write_bytes("s3://no-such-bucket/file", b"1")
    assert not isinstance(caught.value, UnreachableError)


# ------------------------------------------------------------------------------------------------------------ the one place

# What else may open files by itself: never at a location that a user names, where a store or a full disk would be met.
_OPENS_BY_ITSELF = {
    "training/checkpoint.py": "a checkpoint is made in a folder of this machine, from where it is copied",
    "training/memory.py": "reads /proc",
    "data/batches/cache.py": "the cache of this machine",
    "cluster/nodes.py": "the file in which Ray's head keeps what its autoscaler may start",
    "caches.py": "the caches of this machine",
    "cluster/own_ray.py": "the folders and the token of Ray on this machine",
    "cluster/ray_noise.py": "standard error",
    "cli.py": "throws away what nobody reads any more",
}
_OF_PATHS = {"read_text", "read_bytes", "write_text", "write_bytes", "mkdir", "rmdir", "unlink", "touch", "iterdir"}
_OF_MODULES = {
    "os": {"open", "replace", "rename", "remove", "makedirs", "mkdir", "listdir", "scandir", "walk"},
    "shutil": {"copy", "copy2", "copyfile", "copytree", "move", "rmtree"},
    **{name: {"open"} for name in ("io", "gzip", "zipfile", "tarfile")},
    **{"torch": {"save"}, "cv2": {"imread", "imwrite"}, "pd": {"read_csv", "read_parquet", "read_json"}},
    **{"pq": {"read_table", "write_table", "ParquetFile"}},
}


def _opens(tree: ast.AST) -> Iterator[str]:
    """What in a file opens, makes or removes files without `storage`."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names) if any(each.name == "pyarrow.fs" for each in names):
                yield "pyarrow.fs"
            case ast.ImportFrom("pyarrow.fs") | ast.ImportFrom("pyarrow", [ast.alias("fs")]):
                yield "pyarrow.fs"
            case ast.Call(ast.Name("open")):
                yield "open"
            case ast.Call(ast.Attribute(ast.Name(owner), name)):
                if name in _OF_MODULES.get(owner, _OF_PATHS if owner != "storage" else ()):
                    yield f"{owner}.{name}"
            case ast.Call(ast.Attribute(_, name)) if name in _OF_PATHS:
                yield name


def test_nothing_else_opens_places() -> None:
    files = [path for folder in ("vbd", "jobs") for path in sorted((ROOT / folder).rglob("*.py"))]
    found = {
        str(path.relative_to(ROOT / "vbd" if "vbd" in path.relative_to(ROOT).parts else ROOT)): opened
        for path in files
        if path.parent.name != "storage" and (opened := sorted(set(_opens(ast.parse(path.read_text())))))
    }
    assert {name: opened for name, opened in found.items() if name not in _OPENS_BY_ITSELF} == {}
    assert set(_OPENS_BY_ITSELF) <= set(found)  # a reason that is none any more goes
    assert sorted(_opens(ast.parse("from pyarrow import fs\nopen(x)\nPath(y).write_text(z)\nos.replace(x, y)"))) == [
        *("open", "os.replace", "pyarrow.fs", "write_text")
    ]


def test_a_location_is_shown_as_its_user_would_type_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert storage.shown(f"{tmp_path}/here/runs/a") == "runs/a"
    assert storage.shown("runs/a") == "runs/a"
    assert storage.shown(f"{tmp_path}/hereafter") == f"{tmp_path}/hereafter"
    assert storage.shown("s3://bucket/a") == "s3://bucket/a"
    monkeypatch.chdir("/")
    assert storage.shown(str(tmp_path)) == str(tmp_path)


def test_a_path_that_leads_nowhere_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    for location in (f"{tmp_path}/a", f"{tmp_path}/a/below", "~nobody-of-this-name/x"):
        with pytest.raises(InputError, match=f"^{re.escape(location)}: not a path that leads anywhere"):
            storage.absolute(location)
