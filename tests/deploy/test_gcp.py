"""The machines of deploy/gcp.yaml against Google's own description of its API, which its Python client ships."""

import json
from importlib.resources import files
from typing import Any

import pytest
from jsonschema import Draft4Validator

from tests.deploy.files import cluster

TYPES = cluster("gcp")["available_node_types"]


def _instance() -> dict[str, Any]:
    """The schema of a machine, in which a name that Google does not know is a mistake."""
    document = files("googleapiclient") / "discovery_cache" / "documents" / "compute.v1.json"
    schemas = json.loads(document.read_text())["schemas"]
    return {"$ref": "#/definitions/Instance", "definitions": {name: _strict(each) for name, each in schemas.items()}}


def _strict(schema: Any) -> Any:
    """Google's dialect in that of JSON schema."""
    if isinstance(schema, list):
        return [_strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    names = ("type", "properties", "items", "additionalProperties", "enum")
    found = {
        name: _strict(schema[name]) for name in names if name in schema and isinstance(schema[name], (dict, list, str))
    }
    if "properties" in schema:
        found["properties"] = {name: _strict(each) for name, each in schema["properties"].items()}
    if "$ref" in schema:
        return {"$ref": f"#/definitions/{schema['$ref']}"}
    if schema.get("format") in ("int64", "uint64"):
        found["type"] = ["string", "integer"]
    if "properties" in schema and "additionalProperties" not in schema:
        found["additionalProperties"] = False
    return found


def _as_sent(node_config: dict[str, Any]) -> dict[str, Any]:
    """What Ray's provider for Google Cloud sends for it."""
    from ray.autoscaler._private.gcp.node import GCPCompute

    class Resource:
        """The client of the API, as far as the provider gets to it."""

        _http = None
        sent: dict[str, Any]

        def instances(self) -> "Resource":
            return self

        def insert(self, *, body: dict[str, Any], **_: Any) -> "Resource":
            self.sent = body
            return self

        def execute(self, **_: Any) -> dict[str, Any]:
            return {}

    resource = Resource()
    compute = GCPCompute(resource, "my-project", "us-central1-a", "vbd")
    compute.get_new_authorized_http = lambda _: None
    tags = {"ray-node-name": "ray-vbd-worker", "ray-user-node-type": "any"}
    compute.create_instance(node_config, tags, wait_for_operation=False)
    return resource.sent


@pytest.mark.parametrize("name", TYPES)
def test_google_would_know_every_field_of_a_machine(name: str) -> None:
    sent = _as_sent(TYPES[name]["node_config"])
    assert sent["machineType"].endswith(TYPES[name]["node_config"]["machineType"])
    Draft4Validator(_instance()).validate(sent)


@pytest.mark.parametrize(
    "path", [(), ("scheduling",), ("disks", 0), ("disks", 0, "initializeParams"), ("serviceAccounts", 0)]
)
def test_a_typo_would_be_found(path: tuple[str | int, ...]) -> None:
    sent = json.loads(json.dumps(_as_sent(TYPES["gpu_spot"]["node_config"])))
    place: Any = sent
    for key in path:
        place = place[key]
    place["diskSizeGB"] = 200
    assert [error.validator for error in Draft4Validator(_instance()).iter_errors(sent)] == ["additionalProperties"]


@pytest.mark.parametrize("name", [name for name in TYPES if name != "head"])
def test_a_worker_may_use_the_bucket_by_its_account(name: str) -> None:
    accounts = TYPES[name]["node_config"]["serviceAccounts"]
    assert [each["email"].split("@")[0] for each in accounts] == ["vbd-worker"]


@pytest.mark.parametrize("name", [name for name in TYPES if name.endswith("_spot")])
def test_a_spot_machine_that_is_taken_back_is_gone(name: str) -> None:
    scheduling = TYPES[name]["node_config"]["scheduling"]
    assert scheduling["provisioningModel"] == "SPOT"
    assert scheduling["instanceTerminationAction"] == "DELETE"
