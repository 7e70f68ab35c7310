import pytest
import torch
from torch import nn

from vbd.training.mirror import Mirror, statistics_of
from vbd.training.running_mean import RunningMean


def _detector() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Conv2d(2, 1, 3))


@torch.no_grad()
def _set_weights(detector: nn.Module, value: float) -> None:
    for weight in detector.parameters():
        weight.fill_(value)


def _weight(mean: RunningMean) -> float:
    (value,) = {weight.flatten()[0].item() for weight in mean.module.parameters()}
    return value


def test_the_mean_starts_as_what_it_first_sees() -> None:
    detector = _detector()
    mean = RunningMean(detector, decay=0.9)
    _set_weights(detector, 3.0)
    mean.update()
    assert _weight(mean) == 3.0
    assert not mean.module.training


def test_the_mean_forgets_faster_at_the_start_than_its_decay_says() -> None:
    detector, expected = _detector(), 0.0
    mean = RunningMean(detector, decay=0.5)
    for n in range(40):
        value = float(n % 7)
        _set_weights(detector, value)
        mean.update()
        decay = 0.0 if n == 0 else min(0.5, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * value
        assert _weight(mean) == pytest.approx(expected, rel=1e-5)
    assert mean.updates == 40


def test_statistics_are_copied_and_not_averaged() -> None:
    detector = _detector()
    mean = RunningMean(detector, decay=0.9)
    for _ in range(3):
        detector(torch.rand(2, 1, 8, 8))
        mean.update()
    for name, buffer in detector.named_buffers():
        assert torch.equal(mean.module.get_buffer(name), buffer), name
    assert mean.module.get_buffer("1.num_batches_tracked") == 3
    detector(torch.rand(2, 1, 8, 8))
    assert mean.module.get_buffer("1.num_batches_tracked") == 3  # they are no part of the detector


def test_what_is_frozen_is_shared_and_the_rest_is_not() -> None:
    detector = _detector()
    mean = RunningMean(detector, decay=0.9, frozen=detector[:2])
    own, theirs = mean.module.state_dict(keep_vars=True), detector.state_dict(keep_vars=True)
    assert own.keys() == theirs.keys()
    assert {name for name in own if own[name] is theirs[name]} == {name for name in own if name[0] in "01"}
    before = {name: tensor.clone() for name, tensor in theirs.items() if name[0] in "01"}
    _set_weights(detector[2], 1.0)
    mean.update()
    _set_weights(detector[2], 2.0)
    mean.update()
    assert all(torch.equal(theirs[name], tensor) for name, tensor in before.items())
    assert own["2.bias"].item() == pytest.approx(2 - 2 / 11)


def test_a_mean_goes_on_from_where_another_was() -> None:
    detector, values = _detector(), [1.0, 4.0, 2.0, 8.0]
    whole, first = RunningMean(detector, decay=0.9), RunningMean(detector, decay=0.9)
    for value in values:
        _set_weights(detector, value)
        whole.update()
    for value in values[:2]:
        _set_weights(detector, value)
        first.update()
    other = _detector()
    second = RunningMean(other, decay=0.9)
    second.load(first.module.state_dict(), updates=first.updates)
    for value in values[2:]:
        _set_weights(other, value)
        second.update()
    assert _weight(second) == _weight(whole)


def test_a_mirror_copies_to_and_fro_whatever_the_types() -> None:
    ours, theirs = [torch.zeros(2), torch.tensor(0), torch.zeros(1)], [torch.ones(2), torch.tensor(7), torch.ones(1)]
    mirror = Mirror(zip(ours, theirs, strict=True))
    mirror.take()
    assert [tensor.tolist() for tensor in ours] == [[1, 1], 7, [1]]
    for tensor in theirs:
        tensor.zero_()
    assert ours[1] == 7
    mirror.give_back()
    assert [tensor.tolist() for tensor in theirs] == [[1, 1], 7, [1]]
    Mirror([]).take()


def test_the_statistics_of_a_detector_are_the_buffers_that_a_checkpoint_keeps() -> None:
    detector = _detector()
    detector.register_buffer("constant", torch.ones(1), persistent=False)
    norm = detector[1]
    found = statistics_of(detector)
    wanted = [norm.running_mean, norm.running_var, norm.num_batches_tracked]
    assert [id(tensor) for tensor in found] == [id(tensor) for tensor in wanted]
