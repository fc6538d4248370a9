"""Max-min fair rates of flows that share resources, by progressive filling."""

import numpy as np
from jaxtyping import Float, Int

_EQUAL = 1e-12  # relative difference below which two shares are the same


def fair_rates(
    capacity: Float[np.ndarray, "r"],
    ptr: Int[np.ndarray, "c1"],
    resource: Int[np.ndarray, "e"],
    weight: Float[np.ndarray, "e"],
    count: Int[np.ndarray, "c"],
) -> Float[np.ndarray, "c"]:
    """The rates at which no flow can get more without another, no faster one, getting less.

    All rates grow together until a resource is full; the flows that use it keep their rate, the others grow on:

        Σ_f w(f, r) x_f ≤ capacity(r),   and every flow f has a full resource r on which x_f is the largest.

    Resources on which every flow has its smallest share are filled at the same time: fixing one of them does not lower
    the share of another.

    Args:
        capacity: Rate of each resource, bytes/s; may be infinite.
        ptr: Class k of flows uses the entries ``ptr[k]:ptr[k + 1]``.
        resource: Resource of each entry.
        weight: How often a byte of the flow crosses the resource.
        count: Number of equal flows in each class, above zero.

    Returns:
        Rate of each flow of each class, bytes/s; infinite where nothing limits it.

    Example:
        >>> ptr, resource = np.array([0, 2, 3]), np.array([0, 1, 1])
        >>> two = fair_rates(np.array([1.0, 3.0]), ptr, resource, np.ones(3), np.array([1, 1]))
        >>> two.tolist()  # the first flow fills the first resource; the second flow gets the rest of the second
        [1.0, 2.0]
    """
    rates = np.full(len(count), np.inf)
    limited = np.isfinite(capacity)[resource]
    owner = np.repeat(np.arange(len(count)), ptr[1:] - ptr[:-1])[limited]
    port, load = resource[limited], weight[limited] * count[owner]
    sizes = np.bincount(owner, minlength=len(count))
    classes = sizes.nonzero()[0]
    sizes = sizes[classes]
    left, demand = capacity.copy(), np.bincount(port, load, len(capacity))
    share, wanted = np.full(len(capacity), np.inf), demand > 0
    while len(classes):
        np.divide(left, demand, out=share, where=wanted)
        seen = share[port]
        first = sizes.cumsum() - sizes
        least = np.minimum.reduceat(seen, first)
        wide = seen > (least * (1 + _EQUAL)).repeat(sizes)
        blocked = np.zeros(len(capacity), bool)  # by a flow that is limited more elsewhere
        blocked[port[wide]] = True
        final = ~np.logical_and.reduceat(wide | blocked[port], first)
        rates[classes[final]] = least[final]
        gone = final.repeat(sizes)
        taken, freed = port[gone], load[gone]
        left -= np.bincount(taken, freed * least.repeat(sizes)[gone], len(left))
        np.maximum(left, 0.0, out=left)
        demand -= np.bincount(taken, freed, len(left))
        wanted = demand > 0
        keep, stay = ~gone, ~final
        port, load, classes, sizes = port[keep], load[keep], classes[stay], sizes[stay]
    return rates
