"""One cluster for all tests of this folder."""

from collections.abc import Iterator

import pytest

from tests.nodes import Nodes


@pytest.fixture(scope="session")
def _nodes() -> Iterator[Nodes]:
    settings = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2", "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "15"}
    with Nodes(**settings) as nodes:
        yield nodes


@pytest.fixture
def nodes(_nodes: Nodes) -> Nodes:
    """A head that does no work, and two nodes of one core each, whatever befell those of the tests before."""
    while len(_nodes.working) < 2:
        _nodes.add(cpus=1)
    return _nodes
