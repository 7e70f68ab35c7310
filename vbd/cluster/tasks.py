"""Work of one kind spread over the cluster by Ray Data, with its progress and Ray's own metrics."""

import functools
import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from vbd.cluster.placement import check_decoding, remote_args, told_while_waiting
from vbd.cluster.versions import check_versions
from vbd.console.last_line import tell
from vbd.console.progress import Progress
from vbd.errors import InputError

if TYPE_CHECKING:
    import ray.data

Task = dict[str, Any]


def run_tasks(
    tasks: Sequence[Task], worker: Callable[..., dict[str, int]], *, title: str, total: int, **options: Any
) -> dict[str, int]:
    """Calls `worker(task, **options)` for each task in Ray's workers and adds up the numbers that they return.

    Each number named `images` counts towards `total`; the others are told beside the progress. Tasks carry file names,
    not pixels: results are small, and the order in which they end does not matter. An InputError of a worker is raised
    here, and one that names what is missing where no node of the cluster could ever run a task.
    """
    sums: dict[str, int] = {}
    if not tasks:
        return sums
    with told_while_waiting({"CPU": 1}, check_decoding(1)), Progress(title, total, unit="images") as progress:
        for result in spread(tasks, _guarded, inner=worker, options=options).iter_rows():
            if result["fault"]:
                raise InputError(result["fault"])
            numbers: dict[str, int] = json.loads(result["numbers"])
            sums = {name: sums.get(name, 0) + value for name, value in numbers.items()}
            tell(**{f"{title.split()[0]}_{name}": value for name, value in sums.items()})
            others = (f"{count} {name}" for name, count in sums.items() if name != "images")
            progress.advance(numbers["images"], note=", ".join(others))
    return sums


def _guarded(task: Task, *, inner: Callable[..., dict[str, int]], options: dict[str, Any]) -> Task:
    """In a worker: what a user can mend travels as a result. As an exception it would lose its type on the way."""
    try:
        check_versions()
        return {"fault": "", "numbers": json.dumps(inner(task, **options))}
    except InputError as error:
        return {"fault": str(error), "numbers": ""}


def spread(tasks: Sequence[Task], worker: Callable[..., Task], **options: Any) -> "ray.data.Dataset":
    """What `worker(task, **options)` returns for each task, as a dataset that is computed when it is read."""
    import ray

    context = ray.data.DataContext.get_current()
    before = context.op_resource_reservation_enabled, context.enable_auto_log_stats
    # Ray Data keeps a part of the cores back for other operators. There is one only, and on two cores one of them would
    # stand idle two thirds of the time. Its statistics go to its own log, at the level INFO.
    context.op_resource_reservation_enabled, context.enable_auto_log_stats = False, True
    try:
        # A block for each task, so that Ray may hand them out one by one and do a lost one again.
        items = ray.data.from_items(list(tasks), override_num_blocks=len(tasks))
        return items.map(worker, fn_kwargs=options, num_cpus=1, **remote_args(check_decoding(1)))
    finally:
        context.op_resource_reservation_enabled, context.enable_auto_log_stats = before


def count_in_ray(name: str, description: str, count: int) -> None:
    """Adds to a counter of Ray's metrics, which the dashboard shows when Prometheus runs; for workers."""
    if count:
        _counter(name, description).inc(count)


@functools.cache
def _counter(name: str, description: str) -> Any:
    from ray.util.metrics import Counter

    return Counter(name, description)
