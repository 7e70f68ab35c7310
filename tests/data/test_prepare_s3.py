"""The same dataset on an object store: a real S3 server on this machine."""

from pathlib import Path

import pytest

from tests.data.folders import hashes_of
from vbd import storage
from vbd.config import PrepareConfig, TrainConfig
from vbd.data.batches.make import Images, training_batches
from vbd.data.prepare.augmented import Augmentation, materialise
from vbd.data.prepare.dataset import prepare
from vbd.data.prepared import open_dataset
from vbd.errors import InputError

CONFIG = PrepareConfig(image_size=64, num_folds=3, shard_size=16)


@pytest.fixture(scope="module")
def raw_on_s3(phantom: Path, s3_bucket: str) -> str:
    target = f"{s3_bucket}/raw"
    for path in sorted(p for p in phantom.rglob("*") if p.is_file()):
        storage.write_bytes(f"{target}/{path.relative_to(phantom)}", path.read_bytes())
    return target


@pytest.fixture(scope="module")
def on_s3(raw_on_s3: str, s3_bucket: str, ray_session: None) -> str:
    target = f"{s3_bucket}/data"
    prepare(raw_on_s3, target, CONFIG)
    return target


def downloaded(location: str, folder: Path) -> Path:
    storage.copy_folder(location, str(folder))
    return folder


def test_a_store_holds_the_same_bytes_as_a_disk(on_s3: str, phantom: Path, tmp_path: Path) -> None:
    prepare(str(phantom), str(tmp_path / "disk"), CONFIG)
    disk, store = hashes_of(tmp_path / "disk"), hashes_of(downloaded(on_s3, tmp_path / "store"))
    assert set(disk) == set(store)
    # Receipts name the time stamps of the raw files, which differ here.
    assert {k: v for k, v in store.items() if "receipts" not in k and k != "dataset.json"} == {
        k: v for k, v in disk.items() if "receipts" not in k and k != "dataset.json"
    }
    assert open_dataset(on_s3).fingerprint == open_dataset(str(tmp_path / "disk")).fingerprint


def test_running_again_writes_nothing(on_s3: str, raw_on_s3: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = storage.list_files(f"{on_s3}/shards")
    assert prepare(raw_on_s3, on_s3, CONFIG) == open_dataset(on_s3)
    assert storage.list_files(f"{on_s3}/shards") == before
    assert "up to date" in capsys.readouterr().out


def test_a_lost_shard_comes_back(on_s3: str, raw_on_s3: str) -> None:
    wanted = storage.read_bytes(f"{on_s3}/shards/shard-00001.parquet")
    storage.delete_file(f"{on_s3}/shards/shard-00001.parquet")
    prepare(raw_on_s3, on_s3, CONFIG)
    assert storage.read_bytes(f"{on_s3}/shards/shard-00001.parquet") == wanted


def test_training_reads_from_the_store(on_s3: str) -> None:
    dataset = open_dataset(on_s3)
    assert len(Images(dataset, "train", image_size=64)) == 60
    config = TrainConfig(image_size=64, batch_size=4, steps=2)
    assert [len(batch.image_ids) for batch in training_batches(dataset, config, first_step=0, loader_workers=0)] == [
        4,
        4,
    ]


def test_an_augmented_dataset_on_the_store(on_s3: str, s3_bucket: str, tmp_path: Path) -> None:
    materialise(open_dataset(on_s3), f"{s3_bucket}/B", Augmentation("B", None, 0))
    materialise(open_dataset(on_s3), str(tmp_path / "B"), Augmentation("B", None, 0))
    assert hashes_of(downloaded(f"{s3_bucket}/B", tmp_path / "copy")) == hashes_of(tmp_path / "B")


def test_a_bucket_that_is_not_there_is_told_in_one_line(s3_bucket: str) -> None:
    with pytest.raises(InputError, match="no-such-bucket") as caught:
        prepare("s3://no-such-bucket/raw", f"{s3_bucket}/other", CONFIG)
    assert "\n" not in str(caught.value)
