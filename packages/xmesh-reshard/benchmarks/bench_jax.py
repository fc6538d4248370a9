"""JAX arrays between meshes of one process: our plans on JAX's own collectives against ``device_put``; runs on cpu.

Needs the extra ``jax``. Nothing is won here, and nothing is claimed: the rows say what planning costs where
``device_put`` is allowed; ``reshard()`` therefore leaves such arrays to it.
"""

import harness  # isort: skip  (one thread: before numpy)

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from harness import Row
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from common_core import timing
from xmesh_reshard.resharding import reshard

NAME = "bench_jax"
DEVICES = 8
CASES = {
    "rows to columns, same devices": ((0, 4), ("x",), (0, 4), (None, "x")),
    "rows to columns, other devices": ((0, 4), ("x",), (4, 8), (None, "x")),
    "rows to whole, other devices": ((0, 4), ("x",), (4, 8), ()),
    "whole to rows, other devices": ((0, 4), (), (4, 8), ("x",)),
}
NOTES = (
    "A float32 matrix of 64 MiB between meshes of 4 of 8 CPU devices of one process. 'planned' is reshard(..., "
    "method='plan'), its plan made and its programs compiled before; reshard() by default calls device_put here. In "
    "turns; medians, ratios within pairs with 95 % intervals. Between processes device_put allows the same devices on "
    "both sides only, so there is nothing to compare with. device_put copies nothing where the new shards can share "
    "memory with the old or with a copy on the host, which depends on how that lies: of the last two rows, times of "
    "microseconds are such, and from rows to whole it has also been seen to copy for a tenth of a second."
)


def rows_of(label: str, length: int, repeats: int) -> list[Row]:
    """Planned, and the default, against device_put."""
    old, before, new, after = CASES[label]
    devices = np.array(jax.devices())

    def sharding(span: tuple[int, int], spec: tuple[Any, ...]) -> NamedSharding:
        return NamedSharding(Mesh(devices[slice(*span)], ("x",)), PartitionSpec(*spec))

    values = np.arange(length * length, dtype=np.float32).reshape(length, length)
    x, target = jax.device_put(values, sharding(old, before)), sharding(new, after)

    def call(work: Callable[[], Any]) -> Callable[[], Any]:
        return lambda: jax.block_until_ready(work())

    ways = {
        "planned": call(lambda: reshard(x, target, method="plan")),
        "by default": call(lambda: reshard(x, target)),
    }
    put = call(lambda: jax.device_put(x, target))
    rows = []
    for name, way in ways.items():
        wrong = int(np.asarray(way()).tobytes() != values.tobytes())
        found = timing.paired_timing(way, put, repeats=repeats, min_time_s=0.02)
        rows.append(
            harness.row(f"{label}, {name}", found.ours_s, found.peer_s, "jax.device_put", found.ratio, wrong=wrong)
        )
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    args = harness.options(NAME, argv)
    jax.config.update("jax_num_cpu_devices", DEVICES)
    rows: list[Row] = []
    for label in list(CASES)[: 1 if args.quick else None]:
        some = rows_of(label, 64 if args.quick else 4096, args.repeats or (2 if args.quick else 15))
        harness.show(some)
        rows += some
    harness.save(NAME, args, rows, NOTES, ["jax", "jaxlib"])


if __name__ == "__main__":
    main()
