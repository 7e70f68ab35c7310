"""What many tests need: one Ray for the whole session, one small phantom, raw and prepared."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.nodes import free_port
from tests.stores import environment_of, s3_server

# Read by Ray when it is imported or started, in the jobs that tests start too.
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["TUNE_GLOBAL_CHECKPOINT_S"] = "1"
# Where `s3://` leads in this session, Ray's workers included: to a server of our own, which `s3_bucket` starts.
_S3_PORT = free_port()
os.environ |= environment_of(_S3_PORT)


@pytest.fixture(scope="session", autouse=True)
def _own_cache() -> Iterator[None]:
    """Datasets are cached in a folder of this session, not in the home of whoever runs the tests."""
    folder = tempfile.mkdtemp(prefix="vbd-cache-")
    os.environ["VBD_CACHE"] = folder
    yield
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A Ray of our own with two cores; its sockets need a short path."""
    import ray

    folder = tempfile.mkdtemp(prefix="vbd", dir="/tmp")
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=300_000_000,
        log_to_driver=False,
        _temp_dir=folder,
        _system_config={"metrics_report_interval_ms": 1000},  # by default ten seconds
    )
    yield
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Raw films in the competition's layout: 60 to train on, most of them abnormal, and 12 for the test part."""
    from vbd.data.phantom.write import write_phantom

    folder = tmp_path_factory.mktemp("phantom") / "raw"
    write_phantom(folder, images=60, test_images=12, image_format="dicom", size=160, abnormal_share=0.7, seed=5)
    return folder


@pytest.fixture(scope="session")
def prepared(phantom: Path, ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The phantom prepared at 128 pixels, in three folds and shards of 16 images."""
    from vbd.config import PrepareConfig
    from vbd.data.prepare.dataset import prepare

    folder = tmp_path_factory.mktemp("prepared") / "data"
    prepare(str(phantom), str(folder), PrepareConfig(image_size=128, num_folds=3, shard_size=16))
    return str(folder)


@pytest.fixture(scope="session")
def s3_bucket() -> Iterator[str]:
    """An empty bucket, `s3://...`, on an S3 server of our own."""
    with s3_server(_S3_PORT, "vbd-tests") as bucket:
        yield bucket
