"""Whether all processes of a JAX program came with the same plan."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax

from xmesh_reshard.transports.errors import PeerLostError, PlanMismatchError

_calls: Counter[tuple[int, ...]] = Counter()


def agree(fingerprint: str, processes: Sequence[int], *, timeout: float) -> None:
    """Compare fingerprints between processes, before any byte of an array is moved.

    Every process of the group calls this for the same plans in the same order.

    Args:
        fingerprint: What must be equal.
        processes: Indices of the processes that take part, this one among them.
        timeout: Seconds to wait for the others.

    Raises:
        RuntimeError: ``jax.distributed`` is not initialised.
        PeerLostError: A process did not come with a plan for the same processes in time.
        PlanMismatchError: A process came with another plan; raised in every process.
    """
    group = tuple(sorted(processes))
    me = jax.process_index()
    if group == (me,):
        return
    client = store()
    number = _calls[group]
    _calls[group] += 1
    stem = f"xmesh_reshard/{'-'.join(map(str, group))}/{number}"
    client.key_value_set(f"{stem}/{me}", fingerprint)
    found = {}
    for process in group:
        try:
            found[process] = client.blocking_key_value_get(f"{stem}/{process}", int(timeout * 1000))
        except jax.errors.JaxRuntimeError as error:
            client.key_value_delete(f"{stem}/{me}")  # so that who comes later waits for this process's next try
            _calls[group] = number
            raise PeerLostError(
                f"process {process} has not come with a plan within {timeout} s: every process that holds a device of"
                " the source or target shardings must make the same calls with the same arguments"
            ) from error
    if others := [process for process in group if found[process] != fingerprint]:
        raise PlanMismatchError(
            f"processes {others} came with another plan than process {me}; no byte was moved. Give every process the"
            " same shapes, dtypes, shardings, topology and options"
        )


def store() -> Any:
    """The key-value store that all processes share.

    Raises:
        RuntimeError: ``jax.distributed`` is not initialised.
    """
    try:
        from jax._src.distributed import global_state  # the store of jax.distributed has no public name
    except ImportError as error:
        raise RuntimeError(
            f"this JAX ({jax.__version__}) hides the store of jax.distributed; use an older one"
        ) from error
    client = global_state.client
    if client is None:
        raise RuntimeError(
            "the devices belong to several processes, but jax.distributed is not initialised:"
            " call jax.distributed.initialize() first in each"
        )
    return client
