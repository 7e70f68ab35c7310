"""The manifests of deploy/kuberay as KubeRay, Kubernetes and Ray's autoscaler read them; nothing is started."""

import copy
from collections.abc import Callable
from typing import Any

import kubernetes_validate
import pytest

from tests.deploy.files import documents

# The fields of KubeRay's API reference, with Ray's documentation: those that matter here, each with the kind of its value.
_WORDS = dict[str, str]
_CLUSTER = {
    "rayVersion": str,
    "authOptions": {"mode": ("disabled", "token"), "secretName": str},
    "enableInTreeAutoscaling": bool,
    "autoscalerOptions": {
        "version": ("v1", "v2"),
        "upscalingMode": ("Default", "Aggressive", "Conservative"),
        "idleTimeoutSeconds": int,
    },
    "headGroupSpec": {
        "serviceType": ("ClusterIP", "NodePort", "LoadBalancer"),
        "labels": _WORDS,
        "resources": _WORDS,
        "rayStartParams": _WORDS,
        "template": dict,
    },
    "workerGroupSpecs": [
        {
            "groupName": str,
            "labels": _WORDS,
            "resources": _WORDS,
            "replicas": int,
            "minReplicas": int,
            "maxReplicas": int,
            "idleTimeoutSeconds": int,
            "rayStartParams": _WORDS,
            "template": dict,
        }
    ],
}
_JOB = {
    "entrypoint": str,
    "runtimeEnvYAML": str,
    "submissionMode": ("K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode"),
    "backoffLimit": int,
    "activeDeadlineSeconds": int,
    "shutdownAfterJobFinishes": bool,
    "ttlSecondsAfterFinished": int,
    "rayClusterSpec": _CLUSTER,
}


def _mistakes(value: Any, wanted: Any, place: str = "spec") -> list[str]:
    """What is wrong with a part of a manifest, by its place."""
    if wanted is _WORDS:
        good = isinstance(value, dict) and all(isinstance(each, str) for each in value.values())
        return [] if good else [f"{place}: {value!r} is no map of strings"]
    if isinstance(wanted, type):
        return [] if type(value) is wanted else [f"{place}: {value!r} is no {wanted.__name__}"]
    if isinstance(wanted, tuple):
        return [] if value in wanted else [f"{place}: {value!r} is none of {wanted}"]
    if isinstance(wanted, list):
        return [found for i, each in enumerate(value) for found in _mistakes(each, wanted[0], f"{place}[{i}]")]
    unknown = [f"{place}: no field {name}" for name in value if name not in wanted]
    return unknown + [
        found
        for name, each in value.items()
        if name in wanted
        for found in _mistakes(each, wanted[name], f"{place}.{name}")
    ]


def _account() -> dict[str, Any]:
    return documents("raycluster.yaml")[0]


def _cluster() -> dict[str, Any]:
    return documents("raycluster.yaml")[1]


def _job() -> dict[str, Any]:
    return documents("rayjob.yaml")[0]


def _groups() -> list[dict[str, Any]]:
    return [_cluster()["spec"]["headGroupSpec"], *_cluster()["spec"]["workerGroupSpecs"]]


def _check(kind: str, manifest: dict[str, Any]) -> list[str]:
    assert set(manifest) == {"apiVersion", "kind", "metadata", "spec"}
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", kind)
    return _mistakes(manifest["spec"], _CLUSTER if kind == "RayCluster" else _JOB)


def test_kuberay_knows_every_field() -> None:
    assert _check("RayCluster", _cluster()) == []
    assert _check("RayJob", _job()) == []


def _at(path: str) -> Callable[[dict[str, Any]], Any]:
    def find(spec: dict[str, Any]) -> Any:
        place: Any = spec
        for key in path.split("."):
            place = place[int(key)] if key.isdigit() else place[key]
        return place

    return find


@pytest.mark.parametrize(
    ("path", "change", "told"),
    [
        ("headGroupSpec", {"label": {}}, "spec.headGroupSpec: no field label"),
        ("workerGroupSpecs.1", {"maxReplica": 3}, "spec.workerGroupSpecs[1]: no field maxReplica"),
        ("workerGroupSpecs.0", {"minReplicas": "0"}, "spec.workerGroupSpecs[0].minReplicas: '0' is no int"),
        ("workerGroupSpecs.0.labels", {"spot": True}, "spec.workerGroupSpecs[0].labels: "),
        ("headGroupSpec.rayStartParams", {"num-cpus": 0}, "spec.headGroupSpec.rayStartParams: "),
        ("authOptions", {"mode": "tokens"}, "spec.authOptions.mode: 'tokens' is none of"),
        ("autoscalerOptions", {"idleTimeoutSecond": 3}, "spec.autoscalerOptions: no field idleTimeoutSecond"),
    ],
)
def test_a_typo_would_be_found(path: str, change: dict[str, Any], told: str) -> None:
    manifest = _cluster()
    _at(path)(manifest["spec"]).update(change)
    found = _check("RayCluster", manifest)
    assert len(found) == 1
    assert found[0].startswith(told)


def _pod(group: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "any"}, **group["template"]}


def test_kubernetes_knows_every_field_of_a_pod_and_of_its_account() -> None:
    version = kubernetes_validate.latest_version()
    for group in _groups():
        kubernetes_validate.validate(_pod(group), version, strict=True)
    kubernetes_validate.validate(_account(), version, strict=True)
    wrong = _pod(_groups()[1])
    wrong["spec"] = wrong["spec"] | {"nodeSelectors": {}}
    with pytest.raises(kubernetes_validate.ValidationError, match="nodeSelectors"):
        kubernetes_validate.validate(wrong, version, strict=True)


def test_ray_s_autoscaler_starts_such_pods_for_work_alone() -> None:
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    manifest = copy.deepcopy(_cluster())
    manifest["metadata"]["namespace"] = "default"
    config = _derive_autoscaling_config_from_ray_cr(manifest)
    head = config["available_node_types"].pop(config["head_node_type"])
    assert (head["resources"]["CPU"], head["max_workers"]) == (0, 0)
    found = {
        name: (kind["labels"], kind["min_workers"], kind["resources"].get("GPU", 0))
        for name, kind in config["available_node_types"].items()
    }
    assert found == {
        "cpu-spot": ({"vbd-role": "cpu", "market": "spot"}, 0, 0),
        "gpu-spot": ({"vbd-role": "gpu", "market": "spot"}, 0, 1),
    }
    for kind in config["available_node_types"].values():
        assert kind["max_workers"] > 0
        assert 0 < kind["idle_timeout_s"] <= 600


def test_a_token_is_asked_for_and_nothing_is_reached_from_outside() -> None:
    spec = _cluster()["spec"]
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["headGroupSpec"]["serviceType"] == "ClusterIP"
    for group in _groups():
        assert not group["template"]["spec"].get("hostNetwork")
        assert not any(
            "hostPort" in port for each in group["template"]["spec"]["containers"] for port in each.get("ports", [])
        )


def test_pods_use_the_bucket_by_their_account() -> None:
    assert {group["template"]["spec"]["serviceAccountName"] for group in _groups()} == {_account()["metadata"]["name"]}
    assert not any(each.get("env") for group in _groups() for each in group["template"]["spec"]["containers"])


def test_workers_run_on_spot_machines_and_gpu_machines_take_no_other_work() -> None:
    for group in _groups()[1:]:
        pod = group["template"]["spec"]
        tolerated = {each["key"] for each in pod["tolerations"]}
        assert set(pod["nodeSelector"]) <= tolerated
        gpus = pod["containers"][0]["resources"]["limits"].get("nvidia.com/gpu")
        assert ("nvidia.com/gpu" in tolerated) is bool(gpus)
        assert pod["containers"][0]["resources"]["limits"] == pod["containers"][0]["resources"]["requests"]


def test_a_job_has_the_same_cluster_ends_it_and_goes_on_after_a_lost_head() -> None:
    spec = _job()["spec"]
    assert spec["rayClusterSpec"] == _cluster()["spec"]
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["backoffLimit"] > 0
