"""Refresh the weights of an inference fleet from a trainer: how long, how many bytes, and what today's ways take."""

from xmesh_reshard import plan, simulate
from xmesh_reshard.baselines import round_robin
from xmesh_reshard.collectives import gather_broadcast
from xmesh_reshard.models import llama_refit

# 16 trainer devices (FSDP) to 8 replicas of 8 devices (tensor parallel), 8 devices and one 200 Gbit/s card a host.
case = llama_refit("8b", trainers=16, replicas=8, nic="200Gbit", local="300GB/s", alpha="2us", local_alpha="2us")
made = plan(case.transfers, case.topology)
print(f"{len(made.tensors)} tensors, {made.network_bytes / 1e9:.1f} GB between hosts, {made}")
print(f"gap to the lower bound {made.gap:.2%}, hash {made.hash()[:12]}")

times = {
    "planned": simulate(made).makespan,
    "point to point": simulate(round_robin(case.transfers, case.topology), in_flight=None).makespan,
    "gather, then broadcast": simulate(gather_broadcast(case.transfers, case.topology)).makespan,
}
for name, seconds in times.items():
    print(f"{name:<24}{seconds:6.2f} s, {seconds / made.lower_bound:5.2f} of the bound")
