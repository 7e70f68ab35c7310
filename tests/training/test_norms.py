"""Two ranks, each a process: batch statistics over both, and one verdict on what only one of them has seen."""

import dataclasses
import math
from typing import Any

import pytest
import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tests.training.runs import CPU, assert_same, config_of, new_run, state_of
from vbd.data.batches.make import BatchMaker
from vbd.data.prepared import open_dataset
from vbd.training.loop import Ranks, TrainingError
from vbd.training.norms import JointBatchNorm2d, join_batch_norms

STEPS = 3
# Images of the first rank and of the second.
SHARES = (3, 2)


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.BatchNorm2d(2),
        nn.Conv2d(2, 4, 3),
        nn.BatchNorm2d(4, affine=False, momentum=None),
        BatchNormAct2d(4, eps=1e-3),
    )
    for norm in (network[0], network[3]):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    return network


def _images(step: int) -> tuple[Tensor, Tensor]:
    """The joint batch of a step, and how much each number of the output counts in the loss."""
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(sum(SHARES), 2, 6, 6, generator=generator) * torch.tensor([1.0, 5.0])[:, None, None] + 2
    return images, torch.randn(sum(SHARES), 4, 4, 4, generator=generator)


def _passes(network: nn.Module, share: slice) -> dict[str, list[Tensor]]:
    """What comes out of some training steps on a share of the joint batch, and the gradients on the way back."""
    found: dict[str, list[Tensor]] = {"outputs": [], "input_gradients": [], "weight_gradients": []}
    for step in range(STEPS):
        network.zero_grad()
        images, counts = (tensor[share].clone() for tensor in _images(step))
        outputs = network(images.requires_grad_())
        (outputs * counts).sum().backward()
        found["outputs"].append(outputs.detach())
        found["input_gradients"].append(images.grad)
        found["weight_gradients"].append(torch.cat([weight.grad.flatten() for weight in network.parameters()]))
    return found


def _joint_norms(rank: int) -> dict[str, Any]:
    network = _network()
    names = list(network.state_dict())
    count = join_batch_norms(network)
    found: dict[str, Any] = _passes(network, slice(0, SHARES[0]) if rank == 0 else slice(SHARES[0], None))
    found |= {"count": count, "names": (names, list(network.state_dict()))}
    found["statistics"] = {name: buffer.clone() for name, buffer in network.named_buffers()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found["bf16"] = network[0](torch.ones(1, 2, 3, 3, dtype=torch.bfloat16)).dtype == torch.bfloat16
    network.eval()
    images = torch.randn(1, 2, 6, 6, generator=torch.Generator().manual_seed(9 + rank))
    plain = _network()
    plain.load_state_dict(network.state_dict())
    found["same_in_eval"] = torch.equal(network(images), plain.eval()(images))
    return found


def _verdict(rank: int, prepared: str, *, spoil: str, sync: bool) -> dict[str, Any]:
    """What a rank says of a good step, and of one in which the second rank meets what is no number."""
    config = config_of("yolox", batch_size=4, accumulate=2)
    options = dataclasses.replace(CPU, sync_batchnorm=sync)
    run = new_run(config, prepared, options=options, ranks=Ranks(rank, 2, wrap=DistributedDataParallel))
    batch_of = BatchMaker(open_dataset(prepared), config, rank=rank, world=2)
    run.step(0, batch_of(0))
    before, batch, told = state_of(run), batch_of(1), ""
    if rank == 1 and spoil == "image":
        batch = dataclasses.replace(batch, images=torch.full_like(batch.images.contiguous(), math.nan))
    if rank == 1 and spoil == "statistic":
        norm = next(module for module in run.detector.modules() if isinstance(module, nn.BatchNorm2d))
        norm.register_forward_hook(_overflow)
    try:
        run.step(1, batch)
    except TrainingError as error:
        told = str(error)
    trained = {name: parameter.detach() for name, parameter in run.detector.named_parameters()}
    return {"before": before, "after": state_of(run), "trained": list(trained), "told": told}


def _overflow(norm: nn.Module, *_: Any) -> None:
    norm.running_var.data.fill_(math.inf)  # autograd does not see it


def _rank(rank: int, folder: str, prepared: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    found = {
        "norms": _joint_norms(rank),
        "image": _verdict(rank, prepared, spoil="image", sync=True),
        "statistic": _verdict(rank, prepared, spoil="statistic", sync=False),
        "nothing": _verdict(rank, prepared, spoil="", sync=False),
    }
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(prepared: str, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two processes found that trained together."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(_rank, (str(folder), prepared), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def test_joint_norms_of_two_ranks_are_the_norms_of_one_process(ranks: list[dict[str, Any]]) -> None:
    network = _network()
    one = _passes(network, slice(None))
    first, second = (found["norms"] for found in ranks)
    assert first["count"] == second["count"] == 3
    for step in range(STEPS):
        for name in ("outputs", "input_gradients"):
            both = torch.cat([first[name][step], second[name][step]])
            torch.testing.assert_close(both, one[name][step], rtol=1e-6, atol=1e-6)
        # Each rank has the gradient of its own images' losses; DDP adds them up.
        both = first["weight_gradients"][step] + second["weight_gradients"][step]
        torch.testing.assert_close(both, one["weight_gradients"][step], rtol=1e-5, atol=1e-4)
    for found in (first, second):
        torch.testing.assert_close(found["statistics"], dict(network.named_buffers()), rtol=1e-6, atol=1e-6)


def test_joint_norms_change_no_name_no_arithmetic_and_nothing_in_eval_mode(ranks: list[dict[str, Any]]) -> None:
    for found in (rank["norms"] for rank in ranks):
        before, after = found["names"]
        assert before == after
        assert found["bf16"]
        assert found["same_in_eval"]


def test_a_joint_norm_without_statistics_of_its_own_keeps_none() -> None:
    norm = nn.BatchNorm2d(2, track_running_stats=False)
    norm.__class__ = JointBatchNorm2d
    norm._follow(torch.ones(2), torch.ones(2), torch.tensor(4.0))
    assert not list(norm.buffers())


def test_ranks_that_go_in_parts_keep_the_same_weights(ranks: list[dict[str, Any]]) -> None:
    for spoil in ("image", "statistic", "nothing"):
        first, second = ({name: found[spoil]["after"][name] for name in found[spoil]["trained"]} for found in ranks)
        assert_same(first, second)
    for found in ranks:
        before, after = found["nothing"]["before"], found["nothing"]["after"]
        assert any(not torch.equal(before[name], after[name]) for name in found["nothing"]["trained"])
        assert found["nothing"]["told"] == ""


def test_only_joint_norms_have_the_same_statistics_on_all_ranks(ranks: list[dict[str, Any]]) -> None:
    name = "network.backbone.backbone.stem.conv.bn.running_mean"
    joint, own = ([found[spoil]["before"][name] for found in ranks] for spoil in ("image", "statistic"))
    assert torch.equal(*joint)
    assert not torch.allclose(*own)


@pytest.mark.parametrize("spoil", ["image", "statistic"])
def test_ranks_come_to_one_verdict_on_what_only_one_has_seen(spoil: str, ranks: list[dict[str, Any]]) -> None:
    for found in (rank[spoil] for rank in ranks):
        assert "its gradient is no finite number at step 1" in found["told"]
        assert_same(found["after"], found["before"])
