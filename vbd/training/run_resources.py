"""Does a cluster have room for what is asked of it? One of fixed size would otherwise let it wait for ever."""

from collections.abc import Mapping
from typing import Any

from vbd.errors import InputError


def check_gpus(wanted: bool) -> None:
    """Raises InputError when GPUs are wanted of a cluster that has none and does not grow: it would wait for ever."""
    nodes = _nodes()
    if wanted and _is_fixed(nodes) and not any(node["Resources"].get("GPU") for node in nodes):
        raise InputError("a GPU is asked for and the cluster has none; use --device cpu, or start Ray with --num-gpus")


def check_workers(least: int, each: Mapping[str, float], *, beside: float = 0) -> None:
    """Raises InputError that names the resource of which `least` workers of `each` and `beside` CPUs want too much.

    A cluster that grows is left alone: what is missing may come.
    """
    nodes = [node["Resources"] for node in _nodes()]
    if not _is_fixed(_nodes()):
        return
    for name, amount in each.items():
        extra = beside if name == "CPU" else 0
        total = sum(node.get(name, 0) for node in nodes)
        room = sum(int(node.get(name, 0) // amount) for node in nodes) if amount else least
        if room < least or total < least * amount + extra:
            beside_them = f" and {extra:g} beside them that makes their batches" if extra else ""
            raise InputError(
                f"{least} worker(s) of {amount:g} {name} each{beside_them}: the cluster has {total:g} {name} on "
                f"{len(nodes)} node(s), and does not grow; use {_how_to_mend(name, bool(extra))}"
            )


def what_is_held(least: int, each: Mapping[str, float]) -> str:
    """A line when others hold so much of a cluster that workers have to wait, or when it has yet to grow; else ""."""
    import ray

    free = ray.available_resources()
    for name, amount in each.items():
        if free.get(name, 0) < least * amount:
            return f"waiting for {least * amount:g} {name}: {free.get(name, 0):g} free now"
    return ""


def _how_to_mend(name: str, has_extra: bool) -> str:
    if name == "GPU":
        return "fewer --workers, leave out --gpu, or start Ray with --num-gpus"
    return "fewer --workers or --loader-workers" + (", or --input loader" if has_extra else "")


def _nodes() -> list[dict[str, Any]]:
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def _is_fixed(nodes: list[dict[str, Any]]) -> bool:
    """A head that works itself belongs to a cluster of fixed size; that of an autoscaled one has no cores for work."""
    return any(node["Resources"].get("CPU") and "node:__internal_head__" in node["Resources"] for node in nodes)
