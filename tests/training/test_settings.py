from pathlib import Path

import pytest

from vbd import storage
from vbd.config import RunOptions, TrainConfig
from vbd.errors import InputError
from vbd.training.settings import changed, changed_options, config_from_file, parse_settings


def test_settings_have_the_types_of_their_fields() -> None:
    items = [
        "steps=40",
        "learning_rate=1e-4",
        "pretrained=true",
        "precision=bf16",
        "subset=1,12",
        "anchor_ratios=0.5,2",
    ]
    settings = parse_settings([*items, "threads=3", "compile=no", "sync_batchnorm=1"])
    assert settings.config == {
        "steps": 40,
        "learning_rate": 1e-4,
        "pretrained": True,
        "precision": "bf16",
        "subset": (1, 12),
        "anchor_ratios": (0.5, 2.0),
    }
    assert settings.options == {"threads": 3, "compile": False, "sync_batchnorm": True}
    assert changed_options(RunOptions(), settings) == RunOptions(threads=3, compile=False, sync_batchnorm=True)
    assert parse_settings(["subset="]).config == {"subset": ()}


@pytest.mark.parametrize(
    ("item", "told"),
    [
        ("step=4", "want name=value with one of the names .*steps"),
        ("steps", "want name=value"),
        ("steps=4.5", "want a whole number"),
        ("steps=", "want a whole number"),
        ("learning_rate=fast", "want a number"),
        ("learning_rate=nan", "want a number"),
        ("learning_rate=inf", "want a number"),
        ("pretrained=maybe", "want true or false"),
        ("policy=Z", "choose one of A, B, C, D, E"),
        ("subset=1,x", "want a whole number"),
        ("fold=1", "it has a flag of its own, --folds"),
        ("device=cuda", "it has a flag of its own, --gpu"),
    ],
)
def test_a_wrong_setting_is_told_in_one_line(item: str, told: str) -> None:
    with pytest.raises(InputError, match=f"--set {item}: {told}") as caught:
        parse_settings([item])
    assert "\n" not in str(caught.value)


def test_what_goes_with_a_setting_goes_along() -> None:
    base = TrainConfig(steps=1000, warmup_steps=100, report_every=200, pretrained=True, variant="s")
    half = changed(base, parse_settings(["steps=500"]))
    assert (half.steps, half.warmup_steps, half.report_every) == (500, 50, 100)
    own = changed(base, parse_settings(["steps=500", "warmup_steps=7", "report_every=500"]))
    assert (own.steps, own.warmup_steps, own.report_every) == (500, 7, 500)
    assert changed(base, parse_settings(["detector=retinanet"])).variant == "resnet18"
    assert changed(base, parse_settings(["detector=yolox"])).variant == "s"
    started = changed(base, parse_settings([], weights="w.pt"))
    assert (started.weights, started.pretrained) == (str(Path.cwd() / "w.pt"), False)
    assert changed(base, parse_settings([])) == base


@pytest.mark.parametrize("item", ["steps=0", "steps=-5", "image_size=100", "variant=huge", "strength=2"])
def test_a_value_that_nobody_can_train_with_is_refused(item: str) -> None:
    with pytest.raises(InputError, match=f"--set: {item.partition('=')[0]}"):
        changed(TrainConfig(), parse_settings([item]))
    with pytest.raises(InputError, match="--set threads=0: want 1 to 1024"):
        changed_options(RunOptions(), parse_settings(["threads=0"]))


def test_a_configuration_comes_from_its_fields_or_from_a_checkpoint(tmp_path: Path) -> None:
    fields = tmp_path / "mine.json"
    storage.write_json(str(fields), {"detector": "fcos", "variant": "resnet50", "subset": [3]})
    assert config_from_file(str(fields)) == TrainConfig(detector="fcos", variant="resnet50", subset=(3,))
    checkpoint = tmp_path / "checkpoint"
    storage.write_json(str(checkpoint / "config.json"), {"schema": 1, "config": {"seed": 4}, "config_hash": "x"})
    assert config_from_file(str(checkpoint)) == config_from_file(str(checkpoint / "config.json")) == TrainConfig(seed=4)
    storage.write_json(str(fields), {"weights": "w/{fold}.pt", "pretrained": False})
    assert config_from_file(str(fields)).weights == str(Path.cwd() / "w" / "{fold}.pt")
    storage.write_json(str(fields), {"detecter": "fcos"})
    with pytest.raises(InputError, match=r"mine\.json: unknown field 'detecter'"):
        config_from_file(str(fields))
    for missing in ("nowhere.json", "nowhere"):
        with pytest.raises(InputError, match=f"{missing}: no such file"):
            config_from_file(str(tmp_path / missing))
