"""Where work runs: decoding and augmenting on CPU workers, training and detectors on GPU workers, nothing on the head.

Nodes say by the label `vbd-role` (`head`, `cpu` or `gpu`) what they are for. Where none carries it, as on a laptop, Ray places
work by resources alone. What can never be placed is refused at the start: it would wait for ever.
"""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, assert_never

from vbd.cluster.nodes import Cluster, autoscaler_news, look
from vbd.config import Device
from vbd.errors import InputError

ROLE = "vbd-role"
Work = Literal["decoding", "training"]
Selector = Mapping[str, str]

# Between two lines that tell what a job waits for.
_EVERY_SECONDS = 60.0


def selector_for(work: Work, *, gpu: bool = False, cluster: Cluster | None = None) -> Selector:
    """The labels of the nodes that such work belongs on, for Ray's `label_selector`; {} where no node carries any.

    Work that asks for a GPU goes to GPU nodes, all other work to CPU nodes; to GPU nodes where there are no others.
    """
    roles = {labels.get(ROLE) for labels in (cluster or look()).all_labels}
    match work:
        case "training":
            wanted = ("gpu",) if gpu else ("cpu", "gpu")
        case "decoding":
            wanted = ("cpu", "gpu")
        case _:
            assert_never(work)
    role = next((role for role in wanted if role in roles), None)
    return {ROLE: role} if role else {}


def remote_args(selector: Selector) -> dict[str, Any]:
    """The argument of Ray's tasks, actors and datasets for a selector: left out where there is nothing to select."""
    return {"label_selector": dict(selector)} if selector else {}


def use_gpus(device: Device) -> bool:
    """Whether work on this device asks for a GPU: `auto` does where the cluster has one or its autoscaler may start one.

    Raises InputError for `cuda` where neither is so: it would wait for ever.
    """
    if device == "cpu":
        return False
    cluster = look()
    has = cluster.most_on_a_node("GPU", {}) >= 1
    if device == "cuda" and not has and not cluster.is_open:
        if cluster.grows:
            raise InputError(
                "a GPU is asked for, the cluster has none, and its autoscaler starts no nodes that have; use --device cpu"
            )
        raise InputError("a GPU is asked for and the cluster has none; use --device cpu, or start Ray with --num-gpus")
    return has or device == "cuda"


def rooms(each: Mapping[str, float], selector: Selector) -> float:
    """How many times `each` fits into the cluster, as large as it may become; infinite where that is not known."""
    return look().rooms(each, selector)


def check_workers(
    least: int,
    each: Mapping[str, float],
    *,
    beside: float = 0,
    selector: Selector | None = None,
    what: str = "worker(s)",
    mend: str = "",
) -> None:
    """Raises InputError that names the resource of which `least` workers of `each` and `beside` CPUs want too much.

    Of a cluster that grows that is what its autoscaler may start at most. `beside` are CPUs for decoding. `mend` says what
    to do about it.
    """
    cluster, mine = look(), selector or {}
    decoding = selector_for("decoding", cluster=cluster)
    shared = beside if decoding == mine else 0
    for name, amount in each.items():
        extra = shared if name == "CPU" else 0
        if cluster.rooms({name: amount}, mine) < least or cluster.total(name, mine) < least * amount + extra:
            beside_them = f" and {extra:g} beside them that makes their batches" if extra else ""
            asked = f"{least} {what} of {amount:g} {name} each{beside_them}"
            raise InputError(f"{asked}: {_has(cluster, name, mine)}; use {mend or _how_to_mend(name, bool(extra))}")
    if cluster.rooms(each, mine) < least:
        together = _listed(each)
        raise InputError(f"{least} {what} of {together} each: no node has both; use {mend or 'less of one of them'}")
    if beside and not shared and cluster.total("CPU", decoding) < beside:
        raise InputError(f"{beside:g} CPU to make batches: {_has(cluster, 'CPU', decoding)}; use --input loader")


def check_decoding(cpus: float) -> Selector:
    """The selector of tasks that decode, on so many CPUs each; raises InputError where none can ever run."""
    selector = selector_for("decoding")
    check_workers(1, {"CPU": cpus}, selector=selector, what="task(s)", mend="a cluster whose workers have CPUs")
    return selector


def what_is_held(least: int, each: Mapping[str, float]) -> str:
    """A line when others hold so much of a cluster that workers have to wait, or when it has yet to grow; else ""."""
    import ray

    free = ray.available_resources()
    for name, amount in each.items():
        if free.get(name, 0) < least * amount:
            return f"waiting for {least * amount:g} {name}: {free.get(name, 0):g} free now"
    return ""


@contextmanager
def told_while_waiting(each: Mapping[str, float], selector: Selector) -> Iterator[None]:
    """While what is inside runs: a line a minute as long as no node has room for `each`, and what the autoscaler does.

    Also how many nodes there are when that has changed. Nothing of a cluster of fixed size.
    """
    ended = threading.Event()
    if look().grows:
        threading.Thread(target=_tell, args=(ended, dict(each), selector), daemon=True).start()
    try:
        yield
    finally:
        ended.set()


def _tell(ended: threading.Event, each: dict[str, float], selector: Selector) -> None:
    import ray

    wanted = _listed(each) + "".join(f" on a node labelled {name}={value}" for name, value in selector.items())
    count = len(look().nodes)
    while not ended.is_set() and ray.is_initialized():
        try:
            cluster = look()
            if not cluster.rooms(each, selector, now=True):
                print(f"waiting for {wanted}: no node has that yet; of the autoscaler: {autoscaler_news()}", flush=True)
            elif len(cluster.nodes) != count:
                rooms_now = cluster.rooms(each, selector, now=True)
                print(
                    f"the cluster has {len(cluster.nodes)} node(s) now: room for {rooms_now:g} x {wanted}", flush=True
                )
            count = len(cluster.nodes)
        except Exception as error:  # a connection that ends, or breaks: the job itself will tell
            if not ended.is_set():
                print(f"waiting for {wanted}; of the autoscaler nothing is known ({type(error).__name__})", flush=True)
        ended.wait(_EVERY_SECONDS)


def _listed(each: Mapping[str, float]) -> str:
    return " and ".join(f"{amount:g} {name}" for name, amount in each.items() if amount)


def _has(cluster: Cluster, name: str, selector: Selector) -> str:
    """What there is of a resource, and what may come."""
    now = cluster.total(name, selector, now=True)
    count = sum(all(node.labels.get(k) == v for k, v in selector.items()) for node in cluster.nodes)
    on = "".join(f" labelled {key}={value}" for key, value in selector.items())
    has = f"the cluster has {now:g} {name} on {count} node(s){on}"
    if not cluster.grows:
        return f"{has}, and does not grow"
    types = [kind for kind in cluster.types if kind.most and all(kind.labels.get(k) == v for k, v in selector.items())]
    told = [f"{kind.most:g} {kind.name} of {kind.resources.get(name, 0):g} {name}" for kind in types]
    of_all = f", {cluster.most_workers:g} of all" if len(types) > 1 else ""
    return f"{has}, and its autoscaler starts at most {', '.join(told) or 'nodes without those labels'}{of_all}"


def _how_to_mend(name: str, has_extra: bool) -> str:
    if name == "GPU":
        return "fewer --workers, leave out --gpu, or start Ray with --num-gpus"
    return "fewer --workers or --loader-workers" + (", or --input loader" if has_extra else "")
