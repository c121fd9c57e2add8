"""The Ray engine on two nodes: a killed worker and a killed node change nothing in the result."""

import os
import random
import signal
import socket
import sys
import threading
import time
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

import pytest
import ray
from curation_steps import STEPS, contents, corpus, recipe, workers

from data_prep.curate import main
from data_prep.pipeline import curate
from data_prep.pipeline.engine_ray import ray_engine

LIMIT = 900  # seconds after which a run counts as hanging


def start_light(monkeypatch) -> dict:
    """Settings of a small node without dashboard and monitors.

    A raylet waits 15 s, no longer, for its Python agents to say which ports they took (ray-project/ray issue 65983), too little
    on a busy machine. Told ports, it does not wait.
    """
    from ray._private import node, services, utils

    plain = services.start_ray_process

    def start(command: list[str], process_type: str, *args, **kwargs):
        if process_type == "raylet":
            names = ("metrics-agent-port", "metrics_export_port", "dashboard_agent_listen_port")
            command = command + [f"--{name}={port}" for name, port in zip(names, free_ports(3), strict=True)]
        return plain(command, process_type, *args, **kwargs)

    monkeypatch.setattr(services, "start_ray_process", start)
    monkeypatch.setattr(node.Node, "start_api_server", lambda self, **kwargs: None)
    monkeypatch.setattr(utils, "set_sigterm_handler", lambda handler: None)  # nodes are added from a thread too
    return {"num_cpus": 1, "object_store_memory": 80 << 20, "include_log_monitor": False, "no_monitor": True}


def free_ports(count: int) -> list[int]:
    """Free ports below those the system hands out (32768 and up), which Ray's other processes could take first."""
    found = []
    with ExitStack() as stack:
        while len(found) < count:
            port = random.randrange(15_000, 32_000)
            with suppress(OSError):
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
                found.append(port)
    return found


def agent_port() -> dict[str, int]:
    return {"runtime_env_agent_port": free_ports(1)[0]}


def alive(node) -> bool:
    return any(each["NodeID"] == node.node_id and each["Alive"] for each in ray.nodes())


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A cluster of one raylet on this machine, joined by this process, and a call that adds another; both of one logical core."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_worker_register_timeout_seconds", "300")
    monkeypatch.setenv("RAY_health_check_timeout_ms", "120000")  # a busy machine is slow, not dead
    monkeypatch.setenv("CURATION_LOG", str(tmp_path / "log"))  # raylets and their workers inherit both
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (Path(__file__).parent, Path.cwd()))))
    settings = start_light(monkeypatch)
    nodes = Cluster(initialize_head=True, head_node_args=settings | agent_port())
    ray.init(address=nodes.address, log_to_driver=False, logging_level="ERROR")
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail("the run hangs"))
    signal.alarm(LIMIT)
    yield nodes, lambda: nodes.add_node(**settings, **agent_port())
    signal.alarm(0)
    ray.shutdown()
    nodes.shutdown()


@pytest.mark.slow
def test_a_killed_worker_and_a_killed_node_lose_and_double_nothing(tmp_path, cluster, monkeypatch):
    nodes, add = cluster
    second = add()
    manifest = corpus(tmp_path / "in", 24)
    steps = ("{name: test_halve, pause: 0.4, meet: 2}", *STEPS[1:])
    killed = []

    def kill():
        nonlocal second
        head = nodes.head_node.node_id
        while not {head, second.node_id} <= workers().keys():
            if not alive(second):  # Ray lost it in starting: not the death this test is about
                second = add()
            time.sleep(0.1)
        os.kill(workers()[head], signal.SIGKILL)
        killed.append("worker")
        time.sleep(1)
        nodes.remove_node(second, allow_graceful=False)
        killed.append("node")

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    curate(
        manifest, recipe(tmp_path, *steps, part_seconds=1.0), tmp_path / "ray", partial(ray_engine, workers=2)
    )
    killer.join(1)
    assert killed == ["worker", "node"]
    monkeypatch.delenv("CURATION_LOG")
    curate(manifest, recipe(tmp_path, *STEPS), tmp_path / "local", workers=1)
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")


def test_missing_ray_and_missing_cluster_are_one_line(tmp_path, monkeypatch, capsys):
    manifest, arguments = (
        corpus(tmp_path / "in", 1),
        ["--engine", "ray", "--recipe", str(recipe(tmp_path, *STEPS))],
    )
    arguments += ["--manifest", str(manifest), "--out", str(tmp_path / "out"), "--address", "auto"]

    def nowhere(**options):
        raise ConnectionError("Could not find any running Ray instance.")

    monkeypatch.setattr(ray, "init", nowhere)
    assert (
        main(arguments) == 2
        and "cannot join the Ray cluster at 'auto'" in capsys.readouterr().err.splitlines()[-1]
    )
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(arguments) == 2 and "pip install 'ray[data]'" in capsys.readouterr().err.splitlines()[-1]
