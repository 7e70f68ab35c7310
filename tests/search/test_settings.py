from pathlib import Path

import pytest

from vbd.config import ANCHORED, POLICIES, Candidate, RunOptions, SearchConfig, TrainConfig
from vbd.config.presets import Preset, preset_of
from vbd.errors import InputError
from vbd.search.space.settings import options_from, search_from


def _candidate(search: SearchConfig, family: str) -> Candidate:
    return next(candidate for candidate in search.candidates if candidate.base.detector == family)


def _bases(search: SearchConfig) -> list[TrainConfig]:
    return [candidate.base for candidate in search.candidates]


@pytest.mark.parametrize("name", ["smoke", "study", "search"])
def test_without_flags_a_preset_stays_what_it_is(name: Preset) -> None:
    assert search_from(preset_of(name)) == preset_of(name)


def test_other_steps_take_reports_and_warm_up_along() -> None:
    before = preset_of("search").candidates[0]
    after = search_from(preset_of("search"), steps=before.base.steps // 10).candidates[0]
    assert after.base.steps == before.base.steps // 10
    assert after.base.report_every == before.base.report_every // 10
    assert after.base.warmup_steps == before.base.warmup_steps // 10
    assert after.ranges["warmup_steps"] == (20, 200)
    few = search_from(preset_of("study"), steps=10, vary=["report_every=5,10"])
    assert _candidate(few, "yolox").choices["report_every"] == (5, 10)


def test_the_seed_is_that_of_the_draws_and_of_every_trial() -> None:
    search = search_from(preset_of("study"), seed=5)
    assert search.seed == 5
    assert {base.seed for base in _bases(search)} == {5}
    assert {candidate.choices["seed"] for candidate in search.candidates} == {(5, 6)}


def test_trials_and_families_are_chosen() -> None:
    search = search_from(preset_of("search"), trials=3, families=("yolox", "fcos"), set=["fcos.trials=7"])
    assert [(c.base.detector, c.trials) for c in search.candidates] == [("fcos", 7), ("yolox", 3)]


def test_settings_reach_the_search_its_families_and_the_options() -> None:
    given = [
        *("searcher=random", "scheduler=fifo", "keep_per_family=3", "keep_all=yes", "gpus_per_trial=0.5"),
        *("batch_size=4", "policy=E", "fcos.batch_size=2", "anchor_per_level=3", "threads=2", "compile=true"),
        *("precision=fp32", "variant=l"),
    ]
    search = search_from(preset_of("search"), set=given)
    assert (search.searcher, search.scheduler, search.keep_per_family, search.keep_all) == ("random", "fifo", 3, True)
    assert search.gpus_per_trial == 0.5
    assert search_from(preset_of("search"), set=["gpus_per_trial=none"]).gpus_per_trial is None
    for candidate in search.candidates:
        family = candidate.base.detector
        assert candidate.base.batch_size == (2 if family == "fcos" else 4)
        assert (candidate.base.policy, candidate.base.precision) == ("E", "fp32")
        assert not {"batch_size", "policy", "anchor_per_level"} & candidate.choices.keys()
        assert candidate.base.anchor_per_level == (3 if family in ANCHORED else 0)
    assert _candidate(search, "yolox").base.variant == "l"
    assert _candidate(search, "retinanet").base.variant == "resnet50"
    assert options_from(given, device="cpu", loader_workers=1) == RunOptions(
        "cpu", threads=2, loader_workers=1, compile=True
    )


def test_weights_take_the_place_of_the_librarys_wherever_the_next_call_stands(tmp_path: Path) -> None:
    search = search_from(preset_of("search"), set=["yolox.weights=w.pt"])
    base = _candidate(search, "yolox").base
    assert (base.weights, base.pretrained) == (str(Path.cwd() / "w.pt"), False)
    assert _candidate(search, "fcos").base.pretrained
    varied = search_from(preset_of("smoke"), vary=["weights=,s3://bucket/w.pt"])
    assert varied.candidates[0].choices["weights"] == ("", "s3://bucket/w.pt")


def test_a_field_is_varied_by_values_or_within_bounds_in_the_families_that_have_it() -> None:
    search = search_from(
        preset_of("search"),
        vary=[
            *("strength=0.1..1", "yolox.learning_rate=1e-3,2e-3", "warmup_steps=100..300", "ema_decay=0.9,0.99"),
            *("anchor_ratios=/0.5,1,2", "variant=s,m", "accumulate=1"),
        ],
    )
    yolox, retina = _candidate(search, "yolox"), _candidate(search, "retinanet")
    assert "strength" not in yolox.choices
    assert yolox.ranges["strength"] == (0.1, 1.0)
    assert "learning_rate" not in yolox.ranges
    assert yolox.choices["learning_rate"] == (0.001, 0.002)
    assert "learning_rate" in retina.ranges
    assert yolox.ranges["warmup_steps"] == (100, 300)
    assert yolox.choices["ema_decay"] == (0.9, 0.99)
    assert retina.choices["anchor_ratios"] == ((), (0.5, 1.0, 2.0))
    assert "anchor_ratios" not in yolox.choices
    assert yolox.choices["variant"] == ("s", "m")
    assert retina.choices["variant"] == ("resnet50", "resnet50_v2")
    assert yolox.choices["policy"] == POLICIES


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ({"steps": 0}, "--steps 0: want 1 or more"),
        ({"trials": 0}, "--trials 0: want 1 or more"),
        ({"seed": -1}, "--seed -1: want 0 or more"),
        ({"families": ("fcos",)}, "--families fcos: preset smoke has yolox, faster_rcnn, efficientdet"),
        (
            {"set": ["colour=1"]},
            "--set colour=1: want name=value with one of the names .*keep_per_family.* learning_rate",
        ),
        ({"set": ["policy"]}, "--set policy: want name=value"),
        ({"set": ["yolov5.policy=A"]}, "--set yolov5.policy=A: 'yolov5' is no family; choose one of faster_rcnn"),
        ({"set": ["yolox.reduction=3"]}, "--set yolox.reduction=3: want name=value with one of the names"),
        ({"set": ["steps=3"]}, "--set steps=3: it has a flag of its own, --steps"),
        ({"set": ["trials=3"]}, "it has a flag of its own, --trials"),
        ({"set": ["device=cpu"]}, "it has a flag of its own, --device"),
        ({"set": ["searcher=bayes"]}, "--set searcher=bayes: choose one of random, grid, optuna"),
        ({"set": ["reduction=1"]}, "--set reduction=1: want 2 to 1000"),
        ({"set": ["reduction=x"]}, "--set reduction=x: want a whole number"),
        ({"set": ["gpus_per_trial=-1"]}, "--set gpus_per_trial=-1.0: want 0 to 1024"),
        ({"set": ["grace_share=0"]}, "--set grace_share=0.0: want more than 0"),
        ({"set": ["generation_share=2"]}, "--set generation_share=2.0: want more than 0 and at most 1"),
        ({"set": ["keep_per_family=0"]}, "--set keep_per_family=0: want 1 to 1000"),
        ({"set": ["cpus_per_trial=0"]}, "--set cpus_per_trial=0.0: want more than 0"),
        ({"set": ["workers_per_trial=0"]}, "--set workers_per_trial=0: want 1 to 1024"),
        ({"set": ["max_failures=-1"]}, "--set max_failures=-1: want 0 to 1000"),
        ({"set": ["image_size=100"]}, "--set: image_size is 100 for yolox; want a multiple of 32"),
        ({"set": ["variant=huge"]}, "--set variant=huge: no family of this search has that, which are yolox, faster"),
        ({"set": ["fcos.policy=A"]}, "--set fcos.policy=A: no family of this search has that"),
        ({"vary": ["colour=1"]}, "--vary colour=1: want name=value,value or name=low..high with one of the names acc"),
        ({"vary": ["reduction=2,3"]}, "--vary reduction=2,3: want"),
        ({"vary": ["steps=2,3"]}, "steps cannot be varied"),
        ({"vary": ["policy=A,Z"]}, "--vary policy=A,Z: choose one of A, B, C, D, E"),
        ({"vary": ["policy=A..B"]}, "--vary policy=A..B: the field is no number"),
        ({"vary": ["learning_rate=1..x"]}, "--vary learning_rate=1..x: want a number"),
        ({"vary": ["learning_rate=1..0.5"]}, "yolox: learning_rate 1.0..0.5: want two numbers"),
        ({"vary": ["policy=A,B,A"]}, "--vary policy=A,B,A: A is given twice"),
        ({"vary": ["learning_rate=0.1..0.1"]}, "--vary learning_rate=0.1..0.1: the range is empty"),
        ({"vary": ["policy=A,B", "policy=C"]}, "--vary policy=A,B: policy is given twice"),
        ({"set": ["strength=0.5", "strength=1"]}, "--set strength=0.5: strength is given twice"),
        ({"set": ["policy=C"], "vary": ["policy=A,B"]}, "--vary policy=A,B: contradicts --set policy=C"),
        ({"set": ["policy=C"], "vary": ["yolox.policy=A,B"]}, "--vary yolox.policy=A,B: contradicts --set policy=C"),
        ({"set": ["yolox.policy=C"], "vary": ["policy=A,B"]}, "--vary policy=A,B: contradicts --set yolox.policy=C"),
        ({"set": ["batch_size=200000000"]}, "--set: batch_size is 200000000; want 1 to 1024"),
        ({"vary": ["batch_size=1..200000000"]}, "batch_size is 200000000; want 1 to 1024"),
        ({"vary": ["batch_size="]}, "--vary batch_size=: want a whole number"),
        ({"vary": ["strength=0.5,2"]}, "strength is 2.0; want 0 to 1"),
        ({"vary": ["strength=0.1..1"], "set": ["searcher=grid"]}, "--vary strength=0.1..1: a grid takes values"),
    ],
)
def test_a_wrong_flag_is_told_in_one_line(flags: dict, told: str) -> None:
    with pytest.raises(InputError, match=told) as caught:
        search_from(preset_of("smoke"), **flags)
    assert "\n" not in str(caught.value)


def test_a_wrong_option_is_told() -> None:
    with pytest.raises(InputError, match="--set threads=0: want 1 to 1024"):
        options_from(["threads=0"])
    with pytest.raises(InputError, match="--set threads=x: want a whole number"):
        options_from(["threads=x"])
    with pytest.raises(InputError, match="--set loader_workers=-1: want 0 to 256"):
        options_from([], loader_workers=-1)
