"""Batches that Ray Data makes are those that the loader makes, wherever they are asked for."""

import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tests.data.test_dataset import CONFIG, assert_equal
from vbd.data.batches import on_ray as dataset_ray
from vbd.data.batches.cache import cache_rows
from vbd.data.batches.make import training_batches
from vbd.data.batches.on_ray import ray_batches
from vbd.data.prepared import open_dataset
from vbd.errors import InputError, StoreError


def _both(prepared: str, config: Any, **kwargs: int) -> tuple[list, list]:
    dataset = open_dataset(prepared)
    options = {"first_step": 0, "loader_workers": 0} | kwargs
    return list(training_batches(dataset, config, **options)), list(ray_batches(dataset, config, **options))


def test_ray_makes_the_batches_of_the_loader(prepared: str) -> None:
    assert_equal(*_both(prepared, replace(CONFIG, agreement_weight=0.5)))
    assert_equal(*_both(prepared, CONFIG, first_step=6, loader_workers=1))


def test_each_rank_gets_its_share_of_the_batches_from_ray(prepared: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset_ray, "_SEGMENT", 3)
    config = replace(CONFIG, policy="B", batch_size=5)
    for rank in range(2):
        assert_equal(*_both(prepared, config, first_step=1, rank=rank, world=2))


def _idle_cpus() -> float:
    import ray

    for _ in range(100):
        free = ray.available_resources().get("CPU", 0.0)
        if free == ray.cluster_resources()["CPU"]:
            break
        time.sleep(0.1)
    return free


def test_closing_the_iterator_ends_the_tasks_and_few_batches_were_made_ahead(
    prepared: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tmp_path / "made"
    made.mkdir()
    original = dataset_ray._make_rows

    def counted(numbers, *, share, first_step):
        (made / str(numbers["id"][0].as_py())).touch()
        return original(numbers, share=share, first_step=first_step)

    monkeypatch.setattr(dataset_ray, "_make_rows", counted)
    batches = ray_batches(open_dataset(prepared), replace(CONFIG, steps=500), first_step=0, loader_workers=0)
    for _ in range(3):
        next(batches)
    time.sleep(2)  # time enough for every batch to be made, were they not held back
    assert len(list(made.iterdir())) < 30
    batches.close()
    assert _idle_cpus() == 2
    before = len(list(made.iterdir()))
    time.sleep(1)
    assert len(list(made.iterdir())) == before


def test_what_is_wrong_on_another_node_arrives_in_one_line(prepared: str, tmp_path: Path) -> None:
    copy = shutil.copytree(prepared, tmp_path / "copy")
    batches = ray_batches(open_dataset(str(copy)), CONFIG, first_step=0, loader_workers=0)
    manifest = copy / "dataset.json"
    manifest.write_text(manifest.read_text().replace(open_dataset(prepared).fingerprint, "another"))
    with pytest.raises(InputError, match="the dataset was prepared anew while a run reads it") as caught:
        list(batches)
    assert str(caught.value).startswith(f"{copy}: ")
    assert "\n" not in str(caught.value)
    assert _idle_cpus() == 2


@pytest.mark.parametrize("kind", [InputError, StoreError])
def test_a_fault_keeps_its_kind(prepared: str, monkeypatch: pytest.MonkeyPatch, kind: type[InputError]) -> None:
    def maker(share: Any) -> None:
        raise kind("/data: out of reach")

    monkeypatch.setattr(dataset_ray, "_maker", maker)
    share = dataset_ray._Share(prepared, "fingerprint", CONFIG, 0, 1)
    rows = dataset_ray._make_rows(pa.table({"id": [0]}), share=share, first_step=3)
    with pytest.raises(InputError, match=r"^/data: out of reach$") as caught:
        dataset_ray._row(rows.to_pylist()[0])
    assert type(caught.value) is kind


@pytest.fixture
def held(ray_session: None) -> Iterator[Any]:
    """Somebody who holds both CPUs of the cluster, until killed."""
    import ray

    @ray.remote(num_cpus=2)
    class Holder:
        def ready(self) -> None:
            pass

    holder = Holder.remote()
    ray.get(holder.ready.remote())
    for _ in range(100):
        if ray.available_resources().get("CPU", 0) < 1:
            break
        time.sleep(0.1)
    yield holder
    ray.kill(holder)
    assert _idle_cpus() == 2


def test_a_cluster_without_a_free_cpu_is_told(prepared: str, held: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset_ray, "_PATIENCE_S", 1.0)
    with pytest.raises(InputError, match=r"no CPU is free to make batches: all 2 .* --input loader"):
        ray_batches(open_dataset(prepared), CONFIG, first_step=0, loader_workers=0)


def test_a_cpu_that_becomes_free_soon_is_waited_for(prepared: str, held: Any) -> None:
    import ray

    threading.Timer(0.5, lambda: ray.kill(held)).start()
    batches = ray_batches(open_dataset(prepared), CONFIG, first_step=7, loader_workers=0)
    assert len(list(batches)) == 1


def _compare(task: dict[str, str]) -> str:
    """In a worker of Ray Train: the batches of the thread, of a process of the loader, and of Ray Data."""
    config = replace(CONFIG, steps=3)
    by_thread, by_ray = _both(task["location"], config)
    assert_equal(by_thread, by_ray)
    dataset = open_dataset(task["location"])
    assert_equal(by_thread, list(training_batches(dataset, config, first_step=0, loader_workers=1)))
    return f"{len(by_ray)} equal batches"


@pytest.mark.slow  # the processes of a Ray Train run take 20 s to start and to stop
def test_a_worker_of_ray_train_gets_them_too(prepared: str, tmp_path: Path) -> None:
    import ray.train
    from ray.train.torch import TorchTrainer

    cache_rows(open_dataset(prepared))
    trainer = TorchTrainer(
        _compare,
        train_loop_config={"location": prepared},
        scaling_config=ray.train.ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1}),
        run_config=ray.train.RunConfig(name="compare", storage_path=str(tmp_path)),
    )
    assert trainer.fit().return_value == "3 equal batches"
