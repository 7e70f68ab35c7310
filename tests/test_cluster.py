"""cluster.yaml against Ray's own schema; nothing is started."""

from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


def test_ray_accepts_the_cluster(config: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(config))


def test_the_check_would_find_a_typo(config: dict[str, Any]) -> None:
    from jsonschema import ValidationError
    from ray.autoscaler._private.util import prepare_config, validate_config

    with pytest.raises(ValidationError, match="max_worker"):
        validate_config(prepare_config(config | {"max_worker": 3}))


def test_nothing_is_paid_for_while_nobody_works(config: dict[str, Any]) -> None:
    workers = {k: v for k, v in config["available_node_types"].items() if k != config["head_node_type"]}
    assert len(workers) >= 2
    for worker in workers.values():
        assert worker["min_workers"] == 0
        assert worker["idle_timeout_s"] <= 600
        assert worker["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"
    assert config["available_node_types"]["head"]["resources"]["CPU"] == 0


def test_the_ports_are_not_open_to_the_world(config: dict[str, Any]) -> None:
    head = " ".join(config["head_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in head
    assert "0.0.0.0" not in head
    assert all("RAY_AUTH_MODE=token" in " ".join(config[f"{who}_start_ray_commands"]) for who in ("head", "worker"))


def test_the_image_is_the_tested_ray(config: dict[str, Any]) -> None:
    versions = (ROOT / "constraints.txt").read_text().splitlines()
    ray = next(line.removeprefix("ray==") for line in versions if line.startswith("ray=="))
    assert f":{ray}-py311" in config["docker"]["image"]
    assert f":{ray}-py311" in config["docker"]["head_image"]
