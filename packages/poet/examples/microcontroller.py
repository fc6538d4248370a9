"""From a network to a C table that a microcontroller walks: what to compute, page and free, and where everything lies.

python microcontroller.py [FILE.h]
"""

import sys
from pathlib import Path

import poet
from poet.arena import lifetimes
from poet.arena_search import optimal
from poet.export_c import to_c
from poet.graph import Static
from poet.units import show_bytes

device = poet.Device.load("nrf52840")
# On such a part parameters, their gradients and the input live in flash; the 256 KiB of RAM are for activations.
network = poet.zoo.resnet18_cifar(batch=1, gradients="static")
graph = network.with_static(Static())
print(f"activations of {graph.name}: {show_bytes(graph.resident_peak)} at the plain step's peak")
print(f"largest operation: {show_bytes(graph.largest_working_set)}; in flash: {show_bytes(network.static.total)}")

# Static addresses lose a little to fragmentation: leave room for it until everything has its place.
assert device.ram is not None
for share in (1.0, 0.8):
    schedule = poet.solve(graph, device, ram=int(share * device.ram), time_limit=3).unwrap()
    events, tiers = schedule.events or (), schedule.problem.tiers
    arena = optimal(lifetimes(graph, events, tiers), time_limit=2)
    print(f"\n{schedule.summary()}")
    print(f"arena of {show_bytes(arena.height)}, {arena.fragmentation:.2%} above the live peak")
    if arena.height <= device.ram:
        break
schedule.verify(graph).unwrap()
print("fits" if arena.height <= device.ram else "does not fit")

header = to_c(graph, events, arena, tiers, name="step")
if len(sys.argv) > 1:
    Path(sys.argv[1]).write_text(header, "utf-8")
    print(f"wrote {sys.argv[1]}")
else:
    table = header[header.index("step_event step_schedule") :].splitlines()
    print("\nThe table begins:", *table[1:9], sep="\n")
