"""cluster.yaml and deploy/gcp.yaml against Ray's own schema and against what docs/cluster.md promises; nothing is started."""

import re
import subprocess
from typing import Any

import pytest
import yaml

from tests.deploy.files import CLOUDS, ROOT, cluster, documents, images, pinned

WORKERS = [(cloud, name) for cloud in CLOUDS for name in cluster(cloud)["available_node_types"] if name != "head"]


def _is_spot(node_config: dict[str, Any]) -> bool:
    aws = node_config.get("InstanceMarketOptions", {}).get("MarketType") == "spot"
    return aws or node_config.get("scheduling", {}).get("provisioningModel") == "SPOT"


@pytest.mark.parametrize("cloud", CLOUDS)
def test_ray_accepts_the_cluster(cloud: str) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(cluster(cloud)))


@pytest.mark.parametrize(
    "path",
    [(), ("provider",), ("docker",), ("auth",), ("available_node_types", "gpu_spot")],
    ids=lambda path: ".".join(path),
)
@pytest.mark.parametrize("cloud", CLOUDS)
def test_the_check_would_find_a_typo(cloud: str, path: tuple[str, ...]) -> None:
    from jsonschema import ValidationError
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = cluster(cloud)
    place = config
    for key in path:
        place = place[key]
    if path == ("provider",):  # the one place where Ray takes any name: a known name with a wrong kind of value
        place["use_internal_ips"] = "yes"
    else:
        place["max_worker"] = 3
    with pytest.raises(ValidationError, match=r"max_worker|yes"):
        validate_config(prepare_config(config))


@pytest.mark.parametrize(("cloud", "name"), WORKERS)
def test_a_worker_is_paid_for_only_while_it_works(cloud: str, name: str) -> None:
    config = cluster(cloud)
    worker = config["available_node_types"][name]
    assert worker["min_workers"] == 0
    assert 0 < worker["idle_timeout_s"] <= 600
    assert worker["max_workers"] <= config["max_workers"]


@pytest.mark.parametrize(("cloud", "name"), WORKERS)
def test_what_is_not_spot_is_started_only_by_choice_and_after_spot(cloud: str, name: str) -> None:
    types = cluster(cloud)["available_node_types"]
    worker = types[name]
    assert worker["labels"]["market"] == ("spot" if _is_spot(worker["node_config"]) else "on-demand")
    if worker["labels"]["market"] == "on-demand":
        assert worker["max_workers"] == 0
        alike = [each for each in types.values() if each["labels"] == worker["labels"] | {"market": "spot"}]
        assert alike
        assert all(each["priority"] > worker["priority"] for each in alike)


@pytest.mark.parametrize("cloud", CLOUDS)
def test_nothing_but_ray_itself_runs_on_the_head(cloud: str) -> None:
    config = cluster(cloud)
    head = config["available_node_types"][config["head_node_type"]]
    assert head["resources"]["CPU"] == 0
    assert head["max_workers"] == 0
    assert not _is_spot(head["node_config"])
    assert "--num-cpus=0" in " ".join(config["head_start_ray_commands"])


def test_every_node_says_by_a_label_that_ray_takes_what_it_is_for() -> None:
    from ray._private.label_utils import validate_node_label_syntax

    from vbd.cluster.placement import ROLE

    kinds = [kind for cloud in CLOUDS for kind in cluster(cloud)["available_node_types"].items()]
    spec = documents("raycluster.yaml")[1]["spec"]
    kinds += [("head", spec["headGroupSpec"])]
    kinds += [(group["groupName"], group) for group in spec["workerGroupSpecs"]]
    assert len(kinds) == 4 + 4 + 3
    for name, kind in kinds:
        validate_node_label_syntax(kind["labels"])
        assert kind["labels"][ROLE] == re.split("[-_]", name)[0]
        assert kind["labels"]["market"] in ("spot", "on-demand")


@pytest.mark.parametrize("cloud", CLOUDS)
def test_ray_asks_for_a_token_and_shows_its_dashboard_to_localhost_alone(cloud: str) -> None:
    config = cluster(cloud)
    for who in ("head", "worker"):
        starting = [command for command in config[f"{who}_start_ray_commands"] if "ray start" in command]
        assert len(starting) == 1
        assert "export RAY_AUTH_MODE=token; ray start" in starting[0]
        assert "0.0.0.0" not in starting[0]
    head = " ".join(config["head_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in head
    assert "--disable-usage-stats" in head
    # The token of whoever starts the cluster goes to every node, to where Ray is told to look for it.
    place = next(option for option in config["docker"]["run_options"] if "RAY_AUTH_TOKEN_PATH=" in option).split("=")[1]
    assert config["file_mounts"][place] == "~/.ray/auth_token"
    assert "-e RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    # Published ports would be open whatever Ray listens at.
    assert not any(re.search(r"(^|\s)(-p|--publish)\b", option) for option in config["docker"]["run_options"])


def test_images_are_of_the_tested_ray_and_its_python() -> None:
    found = [image for cloud in CLOUDS for image in images(cluster(cloud))]
    found += [
        image for name in ("raycluster.yaml", "rayjob.yaml") for each in documents(name) for image in images(each)
    ]
    found += re.findall(r"^ARG BASE=(.+)$", (ROOT / "deploy" / "Dockerfile").read_text(), re.MULTILINE)
    assert len(found) == 3 + 3 + 3 + 3 + 1
    assert {image.split(":")[1].rsplit("-", 1)[0] for image in found} == {f"{pinned('ray')}-py311"}
    # The driver that an image asks of the machine is the one that the pinned torch needs.
    cuda = "cu" + "".join(pinned("cuda-toolkit").split(".")[:2])
    assert {image.rsplit("-", 1)[1] for image in found} == {"cpu", cuda}
    assert documents("raycluster.yaml")[1]["spec"]["rayVersion"] == pinned("ray")


@pytest.mark.parametrize("cloud", CLOUDS)
def test_the_files_that_nodes_get_are_there(cloud: str) -> None:
    config = cluster(cloud)
    mine = [local for local in config["file_mounts"].values() if not local.startswith("~")]
    assert mine
    assert all((ROOT / local).exists() for local in mine)
    commands = " ".join([*config["setup_commands"], *config["worker_start_ray_commands"]])
    used = re.findall(r"/home/ray/vbd/(deploy/\S+)", commands)
    assert len(used) == 2
    assert all((ROOT / name).is_file() for name in used)


@pytest.mark.parametrize("cloud", CLOUDS)
def test_commands_are_ones_that_a_shell_understands(cloud: str) -> None:
    config = cluster(cloud)
    for command in [each for key, value in config.items() if key.endswith("_commands") for each in value]:
        subprocess.run(["bash", "-n", "-c", command], check=True)


def test_what_travels_with_a_job_is_an_environment_that_ray_takes() -> None:
    from ray.dashboard.modules.job.job_supervisor import JobSupervisor
    from ray.runtime_env import RuntimeEnv

    given = yaml.safe_load((ROOT / "deploy" / "runtime-env.yaml").read_text())
    grace = float(RuntimeEnv(**given).env_vars()["RAY_JOB_STOP_WAIT_TIME_S"])
    assert grace > JobSupervisor.DEFAULT_RAY_JOB_STOP_WAIT_TIME_S
    assert yaml.safe_load(documents("rayjob.yaml")[0]["spec"]["runtimeEnvYAML"]) == given


# What the clouds' and Ray's keys look like; names of files that hold some.
SECRETS = (
    r"\b(AKIA|ASIA)[0-9A-Z]{16}\b",
    r"(?i)aws_secret_access_key\s*[:=]\s*\S{20,}",
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    r"\bAIza[0-9A-Za-z_-]{35}\b",
    r"(?i)\b(auth_?token|password|secret)\b\s*[:=]\s*[\"']?[0-9A-Za-z+/]{24,}",
    r"\bgh[pousr]_[0-9A-Za-z]{36}\b",
)


def _tracked() -> list[str]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_no_key_is_in_any_file() -> None:
    for name in _tracked():
        if name.endswith((".png", ".ipynb")):
            continue
        text = (ROOT / name).read_text(errors="replace")
        found = [match.group() for secret in SECRETS for match in re.finditer(secret, text)]
        assert found == [], f"{name} holds what looks like a key"


@pytest.mark.parametrize(
    "text",
    [
        "AKIA" + "Q" * 16,
        "aws_secret_access_key = " + "x" * 40,
        "-----BEGIN RSA " + "PRIVATE KEY-----",
        "auth_token: " + "a" * 64,
    ],
)
def test_a_key_would_be_found(text: str) -> None:
    assert any(re.search(secret, text) for secret in SECRETS)
