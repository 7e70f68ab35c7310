"""cluster.yaml all the way to machines, on an AWS that moto plays within this process: no cloud is asked."""

import fnmatch
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto import mock_aws

from tests.deploy.files import ROOT, cluster

POLICIES = ROOT / "deploy" / "aws"
MINE = "203.0.113.7/32"


@dataclass
class Started:
    """A cluster of which the head and one worker of each type were started."""

    config: dict[str, Any]  # as Ray has filled it in
    provider: Any
    machines: dict[str, dict[str, Any]]  # as EC2 describes them, by node type
    calls: list[str] = field(default_factory=list)  # what Ray asked of EC2 since the head was there


@contextmanager
def _account(home: Path) -> Iterator[None]:
    """An account with a default network and the two roles that docs/cluster.md has one make."""
    from moto.ec2.models import instance_types
    from ray.autoscaler._private.aws import utils

    with pytest.MonkeyPatch.context() as patch, mock_aws():
        patch.delenv("AWS_ENDPOINT_URL")  # that leads to a server of its own
        patch.setenv("HOME", str(home))  # Ray puts its SSH key there
        # Ray asks for all machine types there are; one that cluster.yaml misspells is none.
        used = {kind["node_config"]["InstanceType"] for kind in cluster("aws")["available_node_types"].values()}
        patch.setattr(instance_types, "INSTANCE_TYPES", {name: instance_types.INSTANCE_TYPES[name] for name in used})
        utils.resource_cache.cache_clear()
        iam = boto3.client("iam")
        for name in ("vbd-head", "vbd-worker"):
            policy = (POLICIES / f"{name.removeprefix('vbd-')}.json").read_text()
            iam.create_role(RoleName=name, AssumeRolePolicyDocument=(POLICIES / "trust.json").read_text())
            iam.put_role_policy(RoleName=name, PolicyName="vbd", PolicyDocument=policy)
            iam.create_instance_profile(InstanceProfileName=name)
            iam.add_role_to_instance_profile(InstanceProfileName=name, RoleName=name)
        yield
    utils.resource_cache.cache_clear()


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    """The cluster, in an account of its own; for all tests, of which the last ends it."""
    with _account(tmp_path_factory.mktemp("home")):
        yield _start()


def _start() -> Started:
    from ray.autoscaler._private.commands import _bootstrap_config
    from ray.autoscaler._private.providers import _get_node_provider

    config = _bootstrap_config(cluster("aws"), no_config_cache=True)
    provider = _get_node_provider(config["provider"], config["cluster_name"])
    started = Started(config, provider, {})
    for client in (provider.ec2.meta.client, provider.ec2_fail_fast.meta.client):
        client.meta.events.register("before-call.ec2", lambda model, **_: started.calls.append(model.name))
    for name, kind in config["available_node_types"].items():
        tags = {"ray-user-node-type": name, "ray-node-type": "head" if name == "head" else "worker"}
        provider.create_node(kind["node_config"], tags, 1)
        ids = provider.non_terminated_nodes({"ray-user-node-type": name})
        described = boto3.client("ec2", config["provider"]["region"]).describe_instances(InstanceIds=ids)
        started.machines[name] = described["Reservations"][0]["Instances"][0]
    return started


def _ingress(config: dict[str, Any]) -> list[dict[str, Any]]:
    """The rules by which packets come in to any machine of a cluster."""
    kinds = config["available_node_types"].values()
    groups = sorted({group for kind in kinds for group in kind["node_config"]["SecurityGroupIds"]})
    described = boto3.client("ec2", config["provider"]["region"]).describe_security_groups(GroupIds=groups)
    return [rule for group in described["SecurityGroups"] for rule in group["IpPermissions"]]


def test_the_machines_that_are_started(started: Started) -> None:
    types = started.config["available_node_types"]
    assert {name: kind["resources"].get("GPU", 0) for name, kind in types.items()} == {
        **{"head": 0, "cpu_spot": 0},
        **{"gpu_spot": 1, "gpu_on_demand": 1},
    }
    assert {name: kind["resources"]["CPU"] for name, kind in types.items()} == {
        **{"head": 0, "cpu_spot": 16},
        **{"gpu_spot": 8, "gpu_on_demand": 8},
    }
    for name, machine in started.machines.items():
        spot = types[name]["labels"]["market"] == "spot"
        assert (machine.get("InstanceLifecycle") == "spot") is spot
        profile = "vbd-head" if name == "head" else "vbd-worker"
        assert machine["IamInstanceProfile"]["Arn"].endswith(f"/{profile}")
        assert machine["MetadataOptions"]["HttpTokens"] == "required"
        disk = machine["BlockDeviceMappings"][0]
        assert disk["DeviceName"] == "/dev/sda1"
        volume = boto3.client("ec2", "us-west-2").describe_volumes(VolumeIds=[disk["Ebs"]["VolumeId"]])["Volumes"][0]
        assert volume["Encrypted"]
        assert {tag["Key"]: tag["Value"] for tag in machine["Tags"]}["ray-cluster-name"] == "vbd"


def test_from_outside_only_ssh_comes_in(started: Started) -> None:
    rules = _ingress(started.config)
    outside = [rule for rule in rules if rule["IpRanges"] or rule["Ipv6Ranges"] or rule["PrefixListIds"]]
    assert [(rule["FromPort"], rule["ToPort"], rule["IpProtocol"]) for rule in outside] == [(22, 22, "tcp")]
    inside = [rule for rule in rules if rule not in outside]
    assert len(inside) == 1
    assert inside[0]["IpProtocol"] == "-1"
    assert len(inside[0]["UserIdGroupPairs"]) == 1


def _statements(name: str) -> list[dict[str, Any]]:
    return json.loads((POLICIES / f"{name}.json").read_text())["Statement"]


def _allowed(name: str) -> list[str]:
    found = [each["Action"] for each in _statements(name) if each["Effect"] == "Allow"]
    return [action for each in found for action in ([each] if isinstance(each, str) else each)]


def test_the_head_may_do_what_ray_does_there(started: Started) -> None:
    """The last that is done with this cluster: it ends it."""
    ids = [machine["InstanceId"] for machine in started.machines.values()]
    for node_id in ids:
        started.provider.node_tags(node_id)
        started.provider.internal_ip(node_id)
        started.provider.external_ip(node_id)
        started.provider.is_running(node_id)
        started.provider.set_node_tags(node_id, {"ray-node-status": "up-to-date"})
    started.provider.terminate_nodes(ids)
    assert started.provider.non_terminated_nodes({}) == []
    assert {"RunInstances", "TerminateInstances", "DescribeInstances"} <= set(started.calls)
    for call in set(started.calls):
        assert any(fnmatch.fnmatch(f"ec2:{call}", pattern) for pattern in _allowed("head")), f"the head may not {call}"


def test_the_roles_may_no_more_than_that() -> None:
    worker = _allowed("worker")
    assert {action.split(":")[0] for action in worker} == {"s3"}
    assert not any("*" in action for action in worker)
    assert set(worker) <= set(_allowed("head"))
    for name in ("worker", "head"):
        for each in _statements(name):
            if "s3" in str(each["Action"]):
                assert each["Resource"].startswith("arn:aws:s3:::BUCKET")
    assert [action for action in _allowed("head") if "*" in action] == ["ec2:Describe*"]
    # What may end machines or hand on rights is bound to those of this cluster.
    for each in _statements("head"):
        if each["Action"] in ("ec2:TerminateInstances", "iam:PassRole"):
            assert "Condition" in each


def test_a_security_group_that_is_there_keeps_its_own_rules(started: Started) -> None:
    """As docs/cluster.md has one restrict SSH to an address of one's own."""
    from ray.autoscaler._private.commands import _bootstrap_config

    elsewhere = cluster("aws")  # in another region of the same account, which knows nothing of the other cluster
    elsewhere["provider"] |= {"region": "us-east-1", "availability_zone": "us-east-1a"}
    client = boto3.client("ec2", "us-east-1")
    name = elsewhere["provider"]["security_group"]["GroupName"]
    vpc = client.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"][0]["VpcId"]
    group = client.create_security_group(GroupName=name, Description=name, VpcId=vpc)["GroupId"]
    inside = {"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": group}]}
    ssh = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": [{"CidrIp": MINE}]}
    client.authorize_security_group_ingress(GroupId=group, IpPermissions=[inside, ssh])
    config = _bootstrap_config(elsewhere, no_config_cache=True)
    kinds = config["available_node_types"].values()
    assert [kind["node_config"]["SecurityGroupIds"] for kind in kinds] == [[group]] * len(kinds)
    assert [each["CidrIp"] for rule in _ingress(config) for each in rule["IpRanges"]] == [MINE]
