import pytest
import torch
from torch import nn

from tests.training.runs import config_of
from vbd.config import FAMILIES, Family, TrainConfig
from vbd.models import detector_of
from vbd.training.optimizer import build_optimizer, count_parameters, learning_rate_at, set_learning_rate, train_mode


class _Small(nn.Module):
    """A detector in small: layers with and without bias, every kind of normalisation, a scalar, and a shared layer."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.head = nn.ModuleDict(
            {"conv": nn.Conv2d(4, 4, 1), "group": nn.GroupNorm(2, 4), "layer": nn.LayerNorm((2, 4)), "linear": _Bias()}
        )
        self.scale = nn.Parameter(torch.ones(()))
        self.head["again"] = self.head["conv"]


class _Bias(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(2, 3))  # libraries have such, one for each anchor


def _names(detector: nn.Module, group: dict) -> set[str]:
    names = {id(parameter): name for name, parameter in detector.named_parameters()}
    return {names[id(parameter)] for parameter in group["params"]}


def test_the_learning_rate_warms_up_and_falls_to_a_hundredth() -> None:
    config = TrainConfig(steps=100, warmup_steps=10, learning_rate=1.0)
    rates = [learning_rate_at(step, config) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[10] == 1.0
    assert rates[55] == pytest.approx(0.01 + 0.99 / 2)  # half way
    assert learning_rate_at(100, config) == pytest.approx(0.01)


def test_without_a_warm_up_the_first_step_has_the_whole_rate() -> None:
    assert learning_rate_at(0, TrainConfig(steps=100, warmup_steps=0, learning_rate=0.3)) == pytest.approx(0.3)


def test_a_run_shorter_than_its_warm_up_only_warms_up() -> None:
    config = TrainConfig(steps=5, warmup_steps=10, learning_rate=1.0)
    assert [learning_rate_at(step, config) for step in range(5)] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])


def test_biases_scalars_and_norms_do_not_decay() -> None:
    detector = _Small()
    decayed, free = build_optimizer(detector, TrainConfig(weight_decay=0.3)).param_groups
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.3, 0.0)
    assert _names(detector, decayed) == {"backbone.0.weight", "head.conv.weight"}
    everything = {name for name, _ in detector.named_parameters()}
    assert _names(detector, free) == everything - _names(detector, decayed)


def test_a_slow_backbone_has_its_share_of_every_rate() -> None:
    detector = _Small()
    optimizer = build_optimizer(detector, TrainConfig(backbone_rate=0.1, weight_decay=0.3))
    set_learning_rate(optimizer, 0.5)
    for group in optimizer.param_groups:
        is_backbone = {name.startswith("backbone.") for name in _names(detector, group)}
        assert is_backbone == {group["lr"] == 0.05}
        assert group["lr"] in (0.05, 0.5)
    assert len(optimizer.param_groups) == 4
    assert sorted(group["weight_decay"] for group in optimizer.param_groups) == [0, 0, 0.3, 0.3]


def test_groups_of_older_checkpoints_take_the_rate_as_it_is() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    set_learning_rate(optimizer, 0.25)
    assert optimizer.param_groups[0]["lr"] == 0.25


def test_a_frozen_backbone_is_not_in_the_optimiser() -> None:
    detector = _Small()
    detector.backbone.requires_grad_(False)
    groups = build_optimizer(detector, TrainConfig(backbone_rate=0.0)).param_groups
    names = set().union(*(_names(detector, group) for group in groups))
    assert names == {name for name, _ in detector.named_parameters() if not name.startswith("backbone.")}
    assert {group["share"] for group in groups} == {1.0}
    total, trained = count_parameters(detector)
    assert total - trained == sum(parameter.numel() for parameter in detector.backbone.parameters())


@pytest.mark.parametrize("rate", [1.0, 0.5])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_weight_of_a_detector_is_trained_once(family: Family, rate: float) -> None:
    config = config_of(family, backbone_rate=rate)
    detector = detector_of(config, with_first_weights=False)
    optimizer = build_optimizer(detector, config)
    trained = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(trained) == sorted(id(parameter) for parameter in detector.parameters())
    backbone = {id(parameter) for parameter in detector.backbone.parameters()}
    for group in optimizer.param_groups:
        inside = {id(parameter) in backbone for parameter in group["params"]}
        assert inside == {group["share"] == rate} if rate != 1 else group["share"] == 1
        assert (group["weight_decay"] > 0) == all(parameter.ndim > 1 for parameter in group["params"])


def test_the_two_optimisers_are_what_they_say() -> None:
    adamw, sgd = (build_optimizer(_Small(), TrainConfig(optimizer=name)) for name in ("adamw", "sgd"))
    assert isinstance(adamw, torch.optim.AdamW)
    assert isinstance(sgd, torch.optim.SGD)
    assert {(group["momentum"], group["nesterov"]) for group in sgd.param_groups} == {(0.9, True)}


def test_training_mode_leaves_a_frozen_backbone_as_it_is() -> None:
    detector = _Small().eval()
    wrapped = nn.Sequential(detector)
    train_mode(wrapped, detector, TrainConfig(backbone_rate=0.0))
    assert wrapped.training
    assert detector.head["group"].training
    assert not any(module.training for module in detector.backbone.modules())
    train_mode(wrapped, detector, TrainConfig(backbone_rate=0.1))
    assert all(module.training for module in wrapped.modules())
