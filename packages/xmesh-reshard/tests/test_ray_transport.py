"""Plans on a local Ray cluster of real actors, all in one start of Ray."""

import os

import ml_dtypes
import numpy as np
import pytest
import ray
import torch

from xmesh_reshard.layout import Layout, LayoutError, Mesh
from xmesh_reshard.planning import plan
from xmesh_reshard.ray_transport import ActorDiedError, RayHosts
from xmesh_reshard.shard_server import GlooLinks, ShardServer
from xmesh_reshard.topology import Host, Nic, Topology
from xmesh_reshard.transports.errors import PartError, PlanMismatchError, TransportError

# Starting Ray forks, to run its programs; JAX, where other tests have used it in this process, warns of forks.
pytestmark = pytest.mark.filterwarnings(r"ignore:os\.fork\(\) was called:RuntimeWarning")

CARD = (Nic(1e9, 1e9),)
TOPOLOGY = Topology((Host("a", (0, 1), CARD), Host("b", (2,), CARD)))
COLUMN = Layout.sharded((6, 4), "bfloat16", Mesh(np.array([0, 1])), "RS0")
ROWS = Layout.sharded((6, 4), "bfloat16", Mesh(np.array([2, 0, 1])), "S0R")
WHOLE = np.arange(24).reshape(6, 4).astype(ml_dtypes.bfloat16)


@pytest.fixture(scope="module")
def cluster():
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def hosts(cluster):
    with RayHosts(TOPOLOGY, cpus_per_device=0.1, timeout=30, checksum=True) as made:
        yield made


def test_moves_bit_for_bit(hosts):
    scalar = (
        Layout.sharded((), "int32", Mesh(np.array([1])), ""),
        Layout.sharded((), "int32", Mesh(np.array([2, 0])), ""),
    )
    hosts.put("w", COLUMN, WHOLE)
    hosts.put("n", scalar[0], np.array(7, np.int32))
    made = plan({"w": (COLUMN, ROWS), "n": scalar}, TOPOLOGY)
    report = hosts.execute(made)
    assert hosts.get("w").tobytes() == WHOLE.tobytes()
    assert hosts.get("n") == 7
    assert {d: part.shape for d, part in hosts.parts("w").items()} == {0: (2, 4), 1: (2, 4), 2: (2, 4)}
    assert report.bytes_sent == sum(m.nbytes * len(m.hops) for m in made.messages)
    assert all(device.checked == device.receives for device in report.devices)
    hosts.drop("w")
    with pytest.raises(KeyError, match="'w'"):
        hosts.get("w")


def test_actors_make_their_parts_and_old_ones_stay_under_another_name(hosts):
    hosts.put("w", COLUMN, lambda device, box: WHOLE[box])
    hosts.execute(plan({"w": (COLUMN, ROWS)}, TOPOLOGY), {"w": "fresh"})
    assert hosts.get("w").tobytes() == WHOLE.tobytes()
    assert hosts.get("fresh").tobytes() == WHOLE.tobytes()


def test_what_does_not_fit_is_refused_before_the_first_byte(hosts):
    hosts.put("w", ROWS, WHOLE)
    with pytest.raises(PartError, match="its source layout says"):
        hosts.execute(plan({"w": (COLUMN, ROWS)}, TOPOLOGY))
    hosts.execute(plan({"w": (ROWS, COLUMN)}, TOPOLOGY))  # they are as they were
    assert hosts.get("w").tobytes() == WHOLE.tobytes()
    with pytest.raises(LayoutError, match="a part for each of the devices"):
        hosts.put("w", COLUMN, {0: WHOLE})
    with pytest.raises(LayoutError, match=r"no actor stands for the devices \[5\]"):
        hosts.put("w", Layout.sharded((2,), "int8", Mesh(np.array([5])), "R"), np.zeros(2, np.int8))


class Trainer(ShardServer):
    """An actor of a user's, with a weight of its own."""

    def __init__(self, device):
        super().__init__(device, tensors=True)
        self.weight = torch.full((3, 4), float(device), dtype=torch.bfloat16)

    def publish(self):
        self.put_part("w", self.weight)

    def die_at_the_first_byte(self):
        GlooLinks.isend = lambda *call: os._exit(1)


def test_weights_go_from_trainers_to_rollouts_until_one_dies(cluster):
    actors = {d: ray.remote(Trainer).options(num_cpus=0).remote(d) for d in range(3)}
    hosts = RayHosts(TOPOLOGY, actors=actors, timeout=30)
    before = Layout.sharded((6, 4), "bfloat16", Mesh(np.array([0, 1])), "S0R")
    after = Layout.sharded((6, 4), "bfloat16", Mesh(np.array([2])), "RR")
    refresh = plan({"w": (before, after)}, TOPOLOGY)
    for _ in range(2):  # the same plan every time
        ray.get([actors[d].publish.remote() for d in (0, 1)])
        hosts.execute(refresh, {"w": "fresh"})
    fresh = hosts.get("fresh")
    assert fresh.dtype == torch.bfloat16
    assert fresh.tolist() == [[0.0] * 4] * 3 + [[1.0] * 4] * 3
    assert ray.get(actors[1].get_part.remote("w")).tolist() == [[1.0] * 4] * 3

    other = plan({"w": (before, after)}, Topology((*TOPOLOGY.hosts, Host("c", (9,), CARD))))
    calls = [actors[d].execute_plan.remote(made) for d, made in ((0, refresh), (1, other), (2, refresh))]
    for call in calls:
        with pytest.raises(PlanMismatchError, match="nothing was sent"):
            ray.get(call)

    ray.get(actors[1].die_at_the_first_byte.remote())
    with pytest.raises(ActorDiedError, match="device 1"):
        hosts.execute(refresh)
    with pytest.raises(TransportError, match="make new ones"):
        hosts.execute(refresh)
    assert hosts.get("fresh").tolist() == fresh.tolist()
    hosts.close()
    assert ray.get(actors[0].get_part.remote("w")).tolist() == [[0.0] * 4] * 3  # it is not ours to end


def test_what_a_cluster_does_not_have_is_said(cluster):
    with pytest.raises(TransportError, match="lower cpus_per_device"):
        RayHosts(TOPOLOGY, cpus_per_device=50, timeout=1)


@pytest.mark.parametrize(("options", "said"), [({"cpus_per_device": 0}, "above zero"), ({"timeout": -1}, "above zero")])
def test_options_are_checked(options, said):
    with pytest.raises(ValueError, match=said):
        RayHosts(TOPOLOGY, **options)


def test_actors_of_unknown_devices_are_refused():
    with pytest.raises(TransportError, match=r"no host of the topology holds the devices \[7\]"):
        RayHosts(TOPOLOGY, actors={7: None})
