"""Plan a transfer between two meshes, see how far from the best possible it is, and execute it."""

import numpy as np

from xmesh_reshard import Layout, Mesh, Topology, baselines, plan
from xmesh_reshard.transports import execute_reference

# Four hosts with four devices and a 10 Gbit/s card each. Devices 0 to 7 hold a weight, 8 to 15 need it otherwise.
topology = Topology.uniform(4, 4, nic="10Gbit", local="100GB/s")
old_mesh, new_mesh = Mesh.grid((2, 4)), Mesh.grid((2, 4), first=8)
shape = (512, 512, 64)
source = Layout.sharded(shape, "float32", old_mesh, "S1RR")  # cut over axis 1 of the mesh, so both hosts hold all of it
target = Layout.sharded(shape, "float32", new_mesh, "S0RR")  # cut over axis 0

made = plan({"w": (source, target)}, topology)
print(made.explain())

today = baselines.send_recv({"w": (source, target)}, topology)
ours, theirs = made.simulate().makespan, today.simulate().makespan
print(f"planned {ours * 1e3:.1f} ms, send/recv {theirs * 1e3:.1f} ms (simulated)")
print(f"at most {made.gap:.3%} above what any plan needs")

# The same plan on real data, here without a network; see xmesh_reshard.transports for processes and clusters.
whole = np.random.default_rng(0).normal(size=shape).astype("float32")
parts = {device: {"w": part} for device, part in source.split(whole).items()}
new = execute_reference(made, parts)
print("exact:", all(np.array_equal(new[d]["w"], whole[target.slices(d)]) for d in target.devices.tolist()))
