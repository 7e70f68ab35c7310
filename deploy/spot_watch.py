"""Waits for the notice that the cloud takes this spot machine back, and has Ray drain it: no new work lands there.

Runs beside Ray on every worker and needs nothing but Python and the `ray` command. On other machines it waits for ever.
"""

import argparse
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from datetime import UTC, datetime

ENDPOINTS = {"aws": "http://169.254.169.254", "gcp": "http://metadata.google.internal"}
_AWS_HEADER = "X-aws-ec2-metadata-token"
_GCP_SECONDS = 30.0  # between the notice and the end; on AWS the notice names the time


def seconds_left(cloud: str, endpoint: str) -> float | None:
    """Seconds until this machine is taken back, at least 0; None when no notice was given. Raises OSError."""
    if cloud == "gcp":
        answer = _ask(f"{endpoint}/computeMetadata/v1/instance/preempted", {"Metadata-Flavor": "Google"})
        return _GCP_SECONDS if answer.strip() == "TRUE" else None
    token = _ask(f"{endpoint}/latest/api/token", {f"{_AWS_HEADER}-ttl-seconds": "60"}, method="PUT")
    try:
        answer = _ask(f"{endpoint}/latest/meta-data/spot/instance-action", {_AWS_HEADER: token})
    except urllib.error.HTTPError as error:
        if error.code == 404:  # no notice
            return None
        raise
    end = datetime.fromisoformat(json.loads(answer)["time"])
    return max(0.0, (end - datetime.now(UTC)).total_seconds())


def _ask(url: str, headers: Mapping[str, str], *, method: str = "GET") -> str:
    # Never through a proxy: the address is the machine's own.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(urllib.request.Request(url, headers=dict(headers), method=method), timeout=5) as answer:
        return answer.read().decode()


def drain(address: str, node_id: str, seconds: float) -> bool:
    """Asks Ray to drain a node, this one when `node_id` is ""; says whether Ray agreed."""
    command = ["ray", "drain-node", "--address", address, "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
    command += ["--reason-message", "spot machine taken back", "--deadline-remaining-seconds", str(int(seconds))]
    command += ["--node-id", node_id] if node_id else []
    return not subprocess.run(command, env=os.environ | {"RAY_ADDRESS": address}, check=False).returncode


def watch(cloud: str, endpoint: str, address: str, *, node_id: str, every: float) -> None:
    """Looks every so many seconds; returns when a notice came and Ray drains the node."""
    silent = False
    while True:
        try:
            left = seconds_left(cloud, endpoint)
        except (OSError, ValueError, KeyError) as error:
            if not silent:  # once, not every few seconds
                print(f"spot watch: {endpoint}: {error}; looking again", flush=True)
            silent, left = True, None
        if left is not None:
            print(f"spot watch: this machine is taken back in {left:.0f} s", flush=True)
            if drain(address, node_id, left):
                return
        time.sleep(every)


def main() -> int:
    """Parses the command line and watches."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cloud", choices=sorted(ENDPOINTS), required=True)
    parser.add_argument("--address", required=True, help="host:port of the head")
    parser.add_argument("--endpoint", help="of the metadata service, if not the cloud's own")
    parser.add_argument("--node-id", default="", help="of the node to drain, if not this one")
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two looks")
    given = parser.parse_args()
    endpoint = given.endpoint or ENDPOINTS[given.cloud]
    watch(given.cloud, endpoint, given.address, node_id=given.node_id, every=given.every)
    return 0


if __name__ == "__main__":
    sys.exit(main())
