"""Schedule a training step in less memory than it needs: what it costs, what is proved, and why if nothing fits."""

import tempfile
from pathlib import Path

import poet
from poet.units import show_bytes

device = poet.Device.load("nrf52840")  # a Cortex-M4F with an SD card
graph = poet.zoo.resnet18_cifar(batch=1, gradients="static")  # gradients are added in place
plain = graph.static.total + graph.resident_peak
print(f"{graph.name}: {len(graph.ops)} operations; the plain step needs {show_bytes(plain)}")

# The least energy under a limit of RAM (parameters and gradients included) and a deadline of twice the plain step.
schedule = poet.solve(graph, device, ram="75%", deadline=2.0, time_limit=3).unwrap()
print(schedule.summary())

# Every schedule carries its proof, and an independent verifier checks it.
proof = schedule.certificate
assert proof is not None
print(f"\nobjective {proof.objective:.6g} J (modelled), no schedule of its class below {proof.lower_bound:.6g} J")
verdict = schedule.verify(graph)
print(f"verified: {verdict.ok}, peak {show_bytes(verdict.peak)} of {show_bytes(schedule.problem.limit)}")

# The same under other limits; each search starts from the schedules before it.
surface = poet.pareto(graph, device, ["70%", "85%", "100%"], time_limit=1.5)
print("\nRAM, modelled energy above the plain step, proved to be within")
for row in surface.rows():
    print(f"{show_bytes(row['limit']):>9} {row['overhead']:8.2%} {row['gap']:8.2%}")

# What cannot be done is explained.
refused = poet.solve(graph, device, ram="256KiB")
print(f"\n{refused.summary()}")

# Files: the graph and its schedule.
with tempfile.TemporaryDirectory() as folder:
    poet.save_graph(graph, Path(folder) / "graph.json")
    schedule.save(Path(folder) / "schedule.json")
    again = poet.Schedule.load(Path(folder) / "schedule.json", poet.load_graph(Path(folder) / "graph.json"))
print(f"\nread back: {again == schedule}")
