import dataclasses
import json
from dataclasses import replace

import pytest

from vbd.config import (
    FAMILIES,
    VARIANTS,
    PrepareConfig,
    TrainConfig,
    changed_fields,
    check_prepare_config,
    check_train_config,
    config_hash,
    stage_two,
    train_config_from,
)
from vbd.config.presets import preset_of, with_steps
from vbd.errors import InputError


def test_the_hash_survives_json_and_sees_every_field() -> None:
    config = TrainConfig(learning_rate=1e-3)
    again = train_config_from(json.loads(json.dumps(dataclasses.asdict(config))))
    assert config_hash(again) == config_hash(config)
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        match value:
            case bool():
                other: object = not value
            case str():
                other = f"{value}x"
            case tuple():
                other = (*value, 1)
            case _:
                other = value + 1
        assert config_hash(dataclasses.replace(config, **{field.name: other})) != config_hash(config), field.name


def test_every_family_has_variants_that_pass_the_check() -> None:
    for family in FAMILIES:
        for variant in VARIANTS[family]:
            check_train_config(TrainConfig(detector=family, variant=variant))


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"detector": "yolov5"}, "detector is 'yolov5'"),
        ({"variant": "d0"}, "variant is 'd0' for yolox"),
        ({"image_size": 100}, "image_size is 100"),
        ({"detector": "efficientdet", "variant": "d0", "image_size": 160}, "want a multiple of 128"),
        ({"strength": 1.5}, "strength is 1.5"),
        ({"steps": 0}, "steps is 0"),
        ({"steps": 1.5}, "steps is 1.5; want a whole number"),
        ({"pretrained": 1}, "pretrained is 1; want true or false"),
        ({"learning_rate": "fast"}, "learning_rate is 'fast'"),
        ({"normal_share": 1.0}, "normal_share is 1.0"),
        ({"colour": 1}, "unknown field 'colour'"),
        ({"anchor_ratios": [0.5]}, "anchor_ratios is .* for yolox; want nothing: it has no anchors"),
        (
            {"detector": "retinanet", "variant": "resnet18", "anchor_ratios": [0.5, "1"]},
            r"anchor_ratios\[1\] is '1'; want a number",
        ),
        ({"subset": 3}, "subset is 3; want a list"),
        ({"subset": [14]}, r"subset\[0\] is 14; want 0 to 13"),
        ({"accumulate": 17}, "accumulate is 17 .*; want at most batch_size"),
        ({"weights": "a.pth", "pretrained": True}, "no file of weights beside pretrained"),
    ],
)
def test_a_wrong_value_is_named_with_its_place(values: dict, told: str) -> None:
    with pytest.raises(InputError, match=told) as caught:
        train_config_from(values, where="here.json")
    assert str(caught.value).startswith("here.json: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["smoke", "study", "search"])
def test_presets_can_be_trained(name: str) -> None:
    search = preset_of(name)  # type: ignore[arg-type]
    assert {candidate.base.detector for candidate in search.candidates} <= set(FAMILIES)
    for candidate in search.candidates:
        check_train_config(candidate.base)


def test_fewer_steps_keep_the_number_of_reports_and_the_share_of_warm_up() -> None:
    before = TrainConfig(steps=600, report_every=150, warmup_steps=50)
    assert with_steps(before, 60) == replace(before, steps=60, report_every=15, warmup_steps=5)
    assert with_steps(before, 2).report_every == 1
    assert with_steps(before, before.steps) == before


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"image_size": 0}, "--image-size 0"),
        ({"fusion_iou": 1.0}, "--fusion-iou 1.0"),
        ({"num_folds": 1}, "--folds 1"),
        ({"shard_size": 0}, "--shard-size 0"),
    ],
)
def test_options_that_no_dataset_can_be_prepared_with(fields: dict, told: str) -> None:
    check_prepare_config(PrepareConfig())
    with pytest.raises(InputError, match=told):
        check_prepare_config(PrepareConfig(**fields))


def test_a_field_at_its_default_does_not_change_the_hash() -> None:
    assert changed_fields(TrainConfig()) == {}
    assert changed_fields(TrainConfig(subset=(1,), variant="s")) == {"subset": (1,), "variant": "s"}
    values = dataclasses.asdict(TrainConfig(variant="s"))
    older = {
        name: value for name, value in values.items() if name != "multi_scale"
    }  # written before the field was there
    assert config_hash(train_config_from(older)) == config_hash(TrainConfig(variant="s"))


def test_equal_configs_have_equal_hashes_however_their_numbers_are_written() -> None:
    whole = TrainConfig(detector="fcos", variant="resnet50", grad_clip=5)
    assert config_hash(whole) == config_hash(replace(whole, grad_clip=5.0))
    ratios = TrainConfig(detector="retinanet", variant="resnet50", anchor_ratios=(1, 2))
    assert config_hash(ratios) == config_hash(replace(ratios, anchor_ratios=(1.0, 2.0)))


def test_a_second_stage_starts_from_weights_at_a_twentieth_of_the_rate() -> None:
    first = TrainConfig(pretrained=True, learning_rate=1e-3, report_every=1000)
    second = stage_two(first, weights="runs/a", steps=400, subset=(1, 12))
    check_train_config(second)
    assert (second.learning_rate, second.steps, second.warmup_steps, second.report_every) == (5e-5, 400, 20, 400)
    assert (second.weights, second.pretrained, second.subset) == ("runs/a", False, (1, 12))
