"""Batches that Ray Data makes are those that the loader makes, wherever they are asked for."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.data.test_dataset import CONFIG, assert_equal
from vbd.data import dataset_ray
from vbd.data.dataset import training_batches
from vbd.data.dataset_cache import cache_rows
from vbd.data.dataset_ray import ray_batches
from vbd.data.prepared import open_dataset
from vbd.errors import InputError


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


def test_what_is_wrong_on_a_node_arrives_in_one_line(prepared: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original = dataset_ray._make_rows

    def of_another_version(numbers, *, share, first_step):
        return original(numbers, share=replace(share, fingerprint="other"), first_step=first_step)

    monkeypatch.setattr(dataset_ray, "_make_rows", of_another_version)
    with pytest.raises(InputError, match="prepared anew while a run reads it") as caught:
        list(ray_batches(open_dataset(prepared), CONFIG, first_step=0, loader_workers=0))
    assert "\n" not in str(caught.value)
    assert _idle_cpus() == 2


def test_a_cluster_without_a_free_cpu_is_told(prepared: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    @ray.remote(num_cpus=2)
    class Holder:
        def ready(self) -> None:
            pass

    monkeypatch.setattr(dataset_ray, "_PATIENCE_S", 1.0)
    holder = Holder.remote()
    ray.get(holder.ready.remote())
    try:
        for _ in range(50):
            if ray.available_resources().get("CPU", 0) < 1:
                break
            time.sleep(0.1)
        with pytest.raises(InputError, match=r"no CPU is free to make batches: all 2 .* --input loader"):
            ray_batches(open_dataset(prepared), CONFIG, first_step=0, loader_workers=0)
    finally:
        ray.kill(holder)
    assert _idle_cpus() == 2


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
