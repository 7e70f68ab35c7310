"""What a Ray cluster has and what its autoscaler may add to it: nodes by their resources and labels.

Ray tells the nodes that are there. What may come stands in the file that the autoscaler was started with, on the head; Ray
itself tells it only on managed clusters.
"""

import functools
import json
import math
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vbd.errors import first_line

_CONFIG_FLAG, _GCS_FLAG = "--autoscaling-config=", "--gcs-address="
_HEAD = "node:__internal_head__"  # a resource of the head alone


@dataclass(frozen=True)
class Node:
    """A node that is there; `node_type` is its type's name in the autoscaler's config, or ""."""

    resources: Mapping[str, float]
    labels: Mapping[str, str]
    node_type: str = ""

    @property
    def is_head(self) -> bool:
        """Whether Ray's own services run on it."""
        return _HEAD in self.resources


@dataclass(frozen=True)
class NodeType:
    """Nodes that the autoscaler may start, at most `most` of them at a time."""

    name: str
    resources: Mapping[str, float]
    labels: Mapping[str, str]
    most: int


@dataclass(frozen=True)
class Cluster:
    """The nodes that are there, and those that may come: at most `most_workers` of all types together."""

    nodes: tuple[Node, ...]
    types: tuple[NodeType, ...] = ()
    most_workers: float = math.inf
    is_open: bool = False  # an autoscaler of which nothing more is known: any node may come

    @property
    def grows(self) -> bool:
        """Whether what is missing may come."""
        return self.is_open or any(kind.most for kind in self.types)

    @property
    def all_labels(self) -> list[Mapping[str, str]]:
        """The labels of each node, and of each type that may be started."""
        return [node.labels for node in self.nodes] + [kind.labels for kind in self.types if kind.most]

    def rooms(self, each: Mapping[str, float], selector: Mapping[str, str], *, now: bool = False) -> float:
        """How many times `each` fits into the nodes with the labels of `selector`: those that may be there, or are `now`."""
        if now or not self.grows:
            return sum(_fits(node, each, selector) for node in self.nodes)
        if self.is_open:
            return math.inf
        known = {kind.name for kind in self.types}
        others = sum(_fits(node, each, selector) for node in self.nodes if node.node_type not in known)
        left, found = self.most_workers, 0.0
        for kind in sorted(self.types, key=lambda kind: -_fits(kind, each, selector)):
            count = min(kind.most, left)
            found, left = found + count * _fits(kind, each, selector), left - count
        return others + found

    def most_on_a_node(self, resource: str, selector: Mapping[str, str]) -> float:
        """The most of a resource that one node with these labels has or may have."""
        shapes: list[Node | NodeType] = [*self.nodes, *(kind for kind in self.types if kind.most)]
        return max((shape.resources.get(resource, 0) for shape in shapes if _matches(shape, selector)), default=0.0)

    def total(self, resource: str, selector: Mapping[str, str], *, now: bool = False) -> float:
        """All there may be of a resource on the nodes with these labels, or is `now`."""
        there = sum(node.resources.get(resource, 0) for node in self.nodes if _matches(node, selector))
        if now or not self.grows:
            return there
        most = self.most_on_a_node(resource, selector)
        return math.inf if self.is_open else max(there, most and most * self.rooms({resource: most}, selector))


def _matches(shape: Node | NodeType, selector: Mapping[str, str]) -> bool:
    return all(shape.labels.get(name) == value for name, value in selector.items())


def _fits(shape: Node | NodeType, each: Mapping[str, float], selector: Mapping[str, str]) -> int:
    if not _matches(shape, selector):
        return 0
    wanted = {name: amount for name, amount in each.items() if amount}
    return min((int(shape.resources.get(name, 0) // amount + 1e-9) for name, amount in wanted.items()), default=1)


# ----------------------------------------------------------------------------------------------------------- read of Ray


def look() -> Cluster:
    """The cluster that this process is connected to, as it is now."""
    import ray

    nodes = tuple(
        Node(node["Resources"], node["Labels"], node["Labels"].get("ray.io/node-group", ""))
        for node in ray.nodes()
        if node["Alive"]
    )
    config = _config_of(ray.get_runtime_context().gcs_address)
    if config is None:
        # No autoscaler here that we could ask, as on Kubernetes. A head that works itself belongs to a cluster of fixed size.
        works = any(node.is_head and node.resources.get("CPU") for node in nodes)
        return Cluster(nodes, is_open=not works)
    types, most_workers = types_of(config)
    is_open = any(kind.most and not kind.resources for kind in types)
    return Cluster(nodes, types, most_workers, is_open=is_open)


def types_of(config: Mapping[str, Any]) -> tuple[tuple[NodeType, ...], float]:
    """The types of workers in an autoscaler's config, and how many workers there may be in all."""
    most_workers = int(config.get("max_workers", 0))
    types = tuple(
        NodeType(
            name,
            {resource: float(amount) for resource, amount in (kind.get("resources") or {}).items()},
            kind.get("labels") or {},
            min(int(kind.get("max_workers", most_workers)), most_workers),
        )
        for name, kind in (config.get("available_node_types") or {}).items()
        if name != config.get("head_node_type")
    )
    return types, most_workers


@functools.cache
def _config_of(gcs_address: str) -> dict[str, Any] | None:
    """The config of the autoscaler that serves this address, {} when none does; None when that is not to be found out."""
    import ray

    here = ray.get_runtime_context().get_node_id()
    heads = [node["NodeID"] for node in ray.nodes() if node["Alive"] and _HEAD in node["Resources"]]
    if here in heads:
        return _config_on_head(gcs_address)
    read = ray.remote(num_cpus=0, resources={_HEAD: 0.001})(_config_on_head)
    return ray.get(read.remote(gcs_address))


def _config_on_head(gcs_address: str) -> dict[str, Any] | None:
    import psutil  # type: ignore[import-untyped]  # comes with Ray
    import yaml

    for process in psutil.process_iter(["cmdline"]):
        flags = process.info["cmdline"] or []
        if _GCS_FLAG + gcs_address in flags and any(flag.endswith("monitor.py") for flag in flags):
            # Ray's log monitor has that address too.
            if any(flag.endswith("log_monitor.py") for flag in flags):
                continue
            file = next((flag.removeprefix(_CONFIG_FLAG) for flag in flags if flag.startswith(_CONFIG_FLAG)), "")
            return yaml.safe_load(Path(file).expanduser().read_text()) if file else {}
    return None


@functools.cache
def on_host() -> str:
    """` on <host>` for the lines of a worker in a cluster of several nodes, so that they tell where they come from; else ``."""
    return f" on {socket.gethostname()}" if is_spread() else ""


def is_spread() -> bool:
    """Whether this process is connected to a cluster of more than one node."""
    import ray

    return ray.is_initialized() and len(ray.nodes()) > 1


# ------------------------------------------------------------------------------------------- what the autoscaler is doing


def autoscaler_news() -> str:
    """What the autoscaler is doing, in a few words: which nodes it starts, and which it could not start."""
    import ray
    from ray.autoscaler.v2.utils import is_autoscaler_v2

    address = ray.get_runtime_context().gcs_address
    starting, failed = _news_of_v2(address) if is_autoscaler_v2(fetch_from_server=True) else _news_of_v1()
    told = [f"it starts {', '.join(f'{count} {name}' for name, count in starting.items())}"] if starting else []
    told += [f"it could not start {', '.join(f'{name} ({why})' for name, why in failed.items())}"] if failed else []
    return "; ".join(told) or "it starts nothing yet"


def _news_of_v2(address: str) -> tuple[dict[str, int], dict[str, str]]:
    from ray.autoscaler.v2.sdk import get_cluster_status

    status = get_cluster_status(address)
    starting: dict[str, int] = {}
    for launch in status.pending_launches:
        starting[launch.ray_node_type_name] = starting.get(launch.ray_node_type_name, 0) + launch.count
    for node in status.pending_nodes:
        starting[node.ray_node_type_name] = starting.get(node.ray_node_type_name, 0) + 1
    failed = {launch.ray_node_type_name: _first_line(launch.details) for launch in status.failed_launches}
    return starting, failed


def _news_of_v1() -> tuple[dict[str, int], dict[str, str]]:
    from ray.experimental.internal_kv import _internal_kv_get

    told = json.loads(_internal_kv_get(b"__autoscaling_status") or b"{}").get("autoscaler_report") or {}
    starting: dict[str, int] = dict(told.get("pending_launches") or {})
    for _, name, _ in told.get("pending_nodes") or []:
        starting[name] = starting.get(name, 0) + 1
    lacking = (told.get("node_availability_summary") or {}).get("node_availabilities") or {}
    gone = {
        name: _first_line((record.get("unavailable_node_information") or {}).get("description"))
        for name, record in lacking.items()
        if not record.get("is_available", True)
    }
    return starting, gone


def _first_line(text: str | None) -> str:
    return first_line((text or "").strip() or "no reason told")
