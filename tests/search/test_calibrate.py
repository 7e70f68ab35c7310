import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.search.histories import reports, trial_of
from vbd.cluster.nodes import Cluster, Node, NodeType
from vbd.cluster.versions import VersionsError
from vbd.config import RunOptions, SearchConfig, TrainConfig
from vbd.errors import InputError
from vbd.search.cost.forecast import Devices, read_record, write_record
from vbd.search.cost.measure import calibrate, close_forecast, devices_at_most, devices_of, measure, prepare_forecast
from vbd.search.cost.rates import Rate, combination_of, no_rate
from vbd.search.tune.handed_over import Workers
from vbd.training.loop import TrainingRun

CPU = RunOptions(device="cpu")
ONE_CPU, TWO_CPUS = (Workers(1, cpus, 0.0, max_failures=0) for cpus in (1.0, 2.0))
TINY = TrainConfig(image_size=64, batch_size=4, steps=40, report_every=20, policy="E")
SEARCH = SearchConfig(preset="mine", candidates=(), scheduler="fifo")


def quick(config: TrainConfig, location: str, options: RunOptions, *, workers: int) -> Rate:
    """Stands for a measurement; some variants cannot be measured."""
    match config.variant:
        case "s":
            raise InputError("out of memory with one image at a time\nlower image_size")
        case "m":
            os._exit(1)
        case "tiny":
            raise ValueError("Expected more than 1 value per channel\nwhen training")
        case "l":
            time.sleep(60)
    return Rate(step=config.image_size / 64, validation=2.0, start=float(workers))


# --------------------------------------------------------------------------------------------------- one measurement


@pytest.fixture
def steps_of_a_second(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A clock that steps and looks at images move, not time: a step is a second, the first one ten."""
    now, steps = [0.0], list[int]()
    real = TrainingRun.step

    def step(self: TrainingRun, number: int, batch: object) -> tuple[float, float]:
        steps.append(number)
        now[0] += 10.0 if number == 0 else 1.0
        return real(self, number, batch)  # type: ignore[arg-type]

    def look(model: object, images: object, indices: list[int], **_: object) -> None:
        now[0] += 7.0 if indices[0] == 0 else 0.5 * len(indices)

    monkeypatch.setattr(TrainingRun, "step", step)
    monkeypatch.setattr("vbd.search.cost.measure.detect", look)
    monkeypatch.setattr("vbd.search.cost.measure.time.monotonic", lambda: now[0])
    return steps


def test_the_first_step_and_the_first_look_count_as_the_start_and_not_at_all(
    prepared: str, steps_of_a_second: list[int]
) -> None:
    found = measure(TINY, prepared, CPU)
    images = 20  # of fold 0 of the phantom's 60 films
    assert found == Rate(step=1.0, validation=0.5 * images, start=9.0)
    assert steps_of_a_second == [0, 1, 2, 3]  # more than two seconds are enough


def test_workers_share_the_batch_and_the_validation(prepared: str, steps_of_a_second: list[int]) -> None:
    alone, shared = measure(TINY, prepared, CPU), measure(TINY, prepared, CPU, workers=2)
    assert shared.validation == alone.validation / 2


def test_a_worker_that_normalises_with_others_is_measured_on_as_many_images_as_it_needs(
    prepared: str, steps_of_a_second: list[int]
) -> None:
    small = replace(TINY, image_size=32, batch_size=2)
    assert measure(small, prepared, CPU, workers=2).step == 1.0


def test_a_real_measurement_has_seconds_for_everything(prepared: str) -> None:
    found = measure(replace(TINY, steps=1, report_every=1), prepared, CPU)
    assert found.step > 0
    assert found.validation > 0
    assert found.start > 0
    assert found.source == "measured"


# --------------------------------------------------------------------------------------------------- all of them


def test_every_combination_is_measured_once_whatever_else_differs(ray_session: None) -> None:
    configs = [replace(TINY, image_size=side, seed=seed) for side in (64, 128) for seed in (0, 1)]
    found = calibrate(configs, "", CPU, replace(ONE_CPU, number=3), measured_by=quick)
    assert found == {combination_of(configs[0]): Rate(1, 2, 3), combination_of(configs[2]): Rate(2, 2, 3)}


def test_what_fails_or_dies_has_no_rate_but_a_reason(ray_session: None) -> None:
    configs = [replace(TINY, variant=variant) for variant in ("nano", "s", "m", "tiny")]
    found = calibrate(configs, "", CPU, ONE_CPU, measured_by=quick)
    assert {one.variant: rate.problem for one, rate in found.items()} == {
        "nano": "",
        "s": "out of memory with one image at a time",
        "m": "its process died (ActorDiedError)",
        "tiny": "ValueError: Expected more than 1 value per channel",
    }
    # Only what the training itself raises is what its trials would raise too.
    assert [one.variant for one, rate in found.items() if rate.is_final] == ["tiny"]


def on_another_node(config: TrainConfig, location: str, options: RunOptions, *, workers: int) -> Rate:
    """Stands for a measurement where the libraries are others."""
    raise VersionsError("node a: numpy 1.26.0, and the driver has 2.5.0")


def test_a_node_with_other_libraries_ends_the_search_before_any_trial(ray_session: None) -> None:
    with pytest.raises(InputError, match=r"^node a: numpy 1\.26\.0, and the driver has 2\.5\.0$"):
        calibrate([TINY], "", CPU, ONE_CPU, measured_by=on_another_node)
    assert calibrate([TINY], "", CPU, TWO_CPUS, measured_by=quick)  # nothing is held any more


def test_what_takes_too_long_is_given_up(ray_session: None) -> None:
    slow = replace(TINY, variant="l")
    found = calibrate([slow], "", CPU, ONE_CPU, measured_by=quick, patience_seconds=1)
    assert found[combination_of(slow)].problem == "not measured within 1 s"
    assert calibrate([TINY], "", CPU, TWO_CPUS, measured_by=quick)  # which needs every core: none is held any more


def test_what_is_known_is_not_measured_again(ray_session: None, capsys: pytest.CaptureFixture[str]) -> None:
    known = {combination_of(TINY): Rate(1, 2, 3)}
    assert calibrate([TINY], "", CPU, ONE_CPU, known=known, measured_by=quick) == {}
    assert capsys.readouterr().out == ""


def test_devices_are_what_trials_ask_for(ray_session: None) -> None:
    cpus = devices_of(ONE_CPU)
    assert (cpus.kind, cpus.count, cpus.per_trial) == ("CPU", 2, 1)
    gpus = devices_of(replace(ONE_CPU, number=4, gpus=0.5))
    assert (gpus.kind, gpus.count, gpus.per_trial) == ("GPU", 2, 2)  # none yet, but one trial will have its two


HEAD = Node({"node:__internal_head__": 1}, {"vbd-role": "head"})
CPU_NODE = Node({"CPU": 4}, {"vbd-role": "cpu"}, "cpu_spot")
GPU_TYPE = NodeType("gpu_spot", {"CPU": 8, "GPU": 1}, {"vbd-role": "gpu"}, most=8)
GROWING = Cluster((HEAD, CPU_NODE), (GPU_TYPE,), most_workers=9)
ONE_GPU = replace(ONE_CPU, gpus=1.0, selector={"vbd-role": "gpu"})
ONE_CPU_THERE = replace(ONE_CPU, selector={"vbd-role": "cpu"})


@pytest.mark.parametrize(
    ("cluster", "needs", "trials", "wanted"),
    [
        (GROWING, ONE_GPU, 24, Devices("GPU", 8, 1, grows=True)),
        (GROWING, ONE_GPU, 3, Devices("GPU", 3, 1, grows=True)),  # for which it grows no further
        (GROWING, replace(ONE_GPU, number=3), 24, Devices("GPU", 6, 3, grows=True)),  # two more would be idle
        (GROWING, replace(ONE_GPU, cpus=4.0, gpus=0.5), 24, Devices("GPU", 8, 0.5, grows=True)),
        (
            GROWING,
            replace(ONE_GPU, cpus=8.0, gpus=0.5),
            24,
            Devices("GPU", 4, 0.5, grows=True),
        ),  # each has cores for one
        (GROWING, ONE_GPU, 1, Devices("GPU", 1, 1)),
        (GROWING, ONE_CPU_THERE, 24, Devices("CPU", 4, 1)),  # those of the GPU machines are not for it
        (Cluster((HEAD,), is_open=True), ONE_GPU, 24, Devices("GPU", 24, 1, grows=True)),
        (Cluster((HEAD, CPU_NODE)), ONE_CPU_THERE, 24, Devices("CPU", 4, 1)),
    ],
)
def test_of_a_cluster_that_grows_the_forecast_counts_what_may_come_and_has_trials_to_run(
    monkeypatch: pytest.MonkeyPatch,
    cluster: Cluster,
    needs: Workers,
    trials: int,
    wanted: Devices,
) -> None:
    monkeypatch.setattr("vbd.search.cost.measure.look", lambda: cluster)
    assert devices_at_most(needs, trials=trials) == wanted
    there = devices_of(needs)
    assert (there.count, there.grows) == (4 if needs == ONE_CPU_THERE else needs.number * needs.gpus, False)


def test_the_forecast_before_the_start_tells_what_the_cluster_may_grow_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vbd.search.cost.measure.look", lambda: GROWING)
    monkeypatch.setattr("vbd.search.cost.measure.calibrate", lambda *_, **__: {combination_of(TINY): Rate(1, 0, 0)})
    configs = [replace(TINY, seed=seed) for seed in range(4)]
    prepare_forecast(str(tmp_path), SEARCH, configs, [], location="", options=RunOptions(), needs=ONE_GPU)
    assert capsys.readouterr().out == "forecast: 4 trials take about 0.044 GPU-hours, 40 s with up to 4 GPU(s)\n"


def test_a_search_is_measured_and_forecast_once_and_compared_at_the_end(
    prepared: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = str(tmp_path)

    def prepare(configs: list[TrainConfig], **more: bool) -> None:
        prepare_forecast(run, SEARCH, configs, [], location=prepared, options=CPU, needs=ONE_CPU, price=2.0, **more)

    prepare([TINY])
    first = capsys.readouterr().out
    assert "measuring how fast 1 of 1 combinations train here" in first
    assert "forecast: 1 trials take about " in first
    assert "it costs about 0.0" in first
    record = read_record(run)
    assert record
    assert record.rates[combination_of(TINY)].is_known
    # Again, and with nothing to measure by: what is written is told.
    monkeypatch.setattr("vbd.search.cost.measure.measure", quick)
    prepare([TINY])
    assert capsys.readouterr().out == first.partition("\n")[2]
    # The run is extended: what is new is measured, what failed for good once more, and all is forecast anew.
    larger, failed = replace(TINY, image_size=128), replace(TINY, image_size=96)
    write_record(run, replace(record, rates=record.rates | {combination_of(failed): no_rate("few", is_final=True)}))
    prepare([TINY, larger], renew=True)
    renewed = read_record(run)
    assert renewed
    assert renewed.rates == record.rates | {combination_of(larger): Rate(2, 2, 1)}
    assert renewed.before.trials == 2
    capsys.readouterr()
    told = close_forecast(run, [trial_of(TINY, *reports(TINY, 40))], price=2.0)
    assert told.startswith("taken: 0.014 CPU-hours of about ")
    assert told.endswith("; it cost 0.03")
    closed = read_record(run)
    assert closed
    assert closed.actual
    assert closed.actual.price == 2.0
