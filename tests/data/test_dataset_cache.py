"""The copy of a dataset on a node: one for all processes, and what becomes of it when the disk is full or loses bits."""

import errno
import multiprocessing
import os
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.data.test_dataset import CONFIG
from vbd.data.batches import cache as dataset_cache
from vbd.data.batches.cache import cache_rows
from vbd.data.batches.make import Images, training_batches
from vbd.data.prepared import PreparedDataset, open_dataset
from vbd.errors import InputError


@pytest.fixture
def dataset(prepared: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PreparedDataset:
    """The phantom, with an empty cache of its own."""
    monkeypatch.setenv("VBD_CACHE", str(tmp_path / "cache"))
    return open_dataset(prepared)


def test_a_node_keeps_one_copy(dataset: PreparedDataset) -> None:
    first = cache_rows(dataset)
    stamp = first.stat().st_mtime_ns
    assert cache_rows(dataset) == first
    assert first.stat().st_mtime_ns == stamp


def test_those_who_ask_at_once_wait_for_one_copy(dataset: PreparedDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    copied = []
    original = dataset_cache._copy_shards
    monkeypatch.setattr(dataset_cache, "_copy_shards", lambda *args: (copied.append(1), original(*args)))
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(cache_rows(dataset))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert len(found) == 4
    assert copied == [1]


def test_another_version_of_a_dataset_has_another_copy(dataset: PreparedDataset) -> None:
    assert cache_rows(dataset) != cache_rows(replace(dataset, fingerprint="0123"))


def test_a_full_disk_is_told_and_its_half_copy_removed(
    dataset: PreparedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = dataset_cache.iter_shards

    def until_full(*args: object) -> Iterator:
        yield next(original(*args))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(dataset_cache, "iter_shards", until_full)
    with pytest.raises(InputError, match=r"No space left on device.*delete old .*arrow files there, or set VBD_CACHE"):
        cache_rows(dataset)
    assert {path.suffix for path in dataset_cache.cache_folder().iterdir()} == {".lock"}
    monkeypatch.undo()


def test_a_copy_that_is_cut_short_is_told(dataset: PreparedDataset) -> None:
    path = cache_rows(dataset)
    data = path.read_bytes()
    for length in (len(data) // 2, 0):
        path.write_bytes(data[:length])
        with pytest.raises(InputError, match=r"not readable .*delete this file") as caught:
            Images(dataset, "train", image_size=96)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
    path.unlink()
    assert len(Images(dataset, "train", image_size=96)) == 60  # made anew


@pytest.mark.parametrize("loader_workers", [0, 1])
def test_a_broken_image_in_the_copy_is_told_by_its_id(dataset: PreparedDataset, loader_workers: int) -> None:
    path = cache_rows(dataset)
    path.write_bytes(path.read_bytes().replace(b"\x89PNG", b"\x00\x00\x00\x00"))
    ids = Images(dataset, "train", image_size=96, without_fold=CONFIG.fold).image_ids
    with pytest.raises(InputError, match=r"cannot be decoded .*delete this file, the next run makes it anew") as caught:
        list(training_batches(dataset, CONFIG, first_step=0, loader_workers=loader_workers))
    message = str(caught.value)
    assert message.startswith(f"{path}: image ")
    assert message.split("image ")[1].split()[0] in ids
    assert "\n" not in message
    assert not multiprocessing.active_children()


def test_a_row_is_what_the_shards_hold(dataset: PreparedDataset) -> None:
    from vbd.data.prepared import iter_shards

    names = ["image_id", "fold", "original_hw", "boxes", "labels", "readers"]
    expected = {row["image_id"]: row for shard in iter_shards(dataset, names) for row in shard.to_pylist()}
    images = Images(dataset, "train", image_size=128)
    for index, image_id in enumerate(images.image_ids):
        row, wanted = images[index], expected[image_id]
        assert row["image"].shape == (128, 128)
        assert row["image_id"] == image_id
        assert row["fold"] == wanted["fold"]
        assert row["boxes"].shape == (len(wanted["labels"]), 4)
        for name in ("original_hw", "boxes", "labels", "readers"):
            assert row[name].tolist() == wanted[name]  # type: ignore[literal-required]
            row[name][...] = 0  # type: ignore[literal-required]  # a copy of the caller's own
        assert images[index]["labels"].tolist() == wanted["labels"]


def test_the_copy_is_kept_below_the_home_or_in_a_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VBD_CACHE")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert dataset_cache.cache_folder() == tmp_path / "home" / ".cache" / "vbd"
    monkeypatch.setenv("HOME", "/dev/null")
    assert dataset_cache.cache_folder() == tmp_path / f"vbd-{os.geteuid()}" / "datasets"
    (tmp_path / f"vbd-{os.geteuid()}").chmod(0o755)
    with pytest.raises(InputError, match=r"^~/\.cache/vbd: neither this folder .* set VBD_CACHE to a folder that"):
        dataset_cache.cache_folder()
