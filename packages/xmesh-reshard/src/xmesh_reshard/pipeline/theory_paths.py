"""The makespan again, as the longest path in a graph, and the best order by trying all: slow, obvious, independent."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise, permutations, product
from math import inf
from typing import Literal

Step = tuple[str, int, int]  # F, B or W; stage; microbatch
Mode = Literal["overlap", "port", "blocking", "rendezvous"]


def longest_path(
    orders: Sequence[Sequence[Step]],
    placement: Sequence[int],
    seconds: Mapping[str, Sequence[float | int]],
    transfers: Mapping[tuple[int, int], float | int],
    mode: Mode = "overlap",
) -> float | int:
    """The makespan of devices that run lists in order: the longest path through passes and transfers.

    Who comes after whom is settled beforehand in every mode, because a device issues its messages in the order of its
    list; a path adds up what has to follow each other. A circle means that nothing ever ends.

    Args:
        orders: For each device its passes in order.
        placement: The device of each stage.
        seconds: Of F, B and W by stage.
        transfers: Seconds from stage to stage, for every pair that is connected, both ways.
        mode: Links of their own for pairs of devices, one outgoing port a device, blocking, or blocking both sides.

    Returns:
        Seconds; infinite if there is a circle.
    """
    after: dict[object, set[object]] = defaultdict(set)
    takes: dict[object, float | int] = {}
    lanes: dict[object, list[object]] = defaultdict(list)  # what runs one after the other
    for device, order in enumerate(orders):
        for op, stage, k in order:
            step = (op, stage, k)
            takes[step] = seconds[op][stage]
            near = sorted((j for i, j in transfers if i == stage), key=lambda j: abs(j - stage))
            inward = [j for j in near if (j < stage) == (op == "F")] if op != "W" else []
            outward = [j for j in near if (j > stage) == (op == "F")] if op != "W" else []
            for j in inward:
                if placement[j] == device:
                    after[op, j, k].add(step)
                elif mode == "rendezvous":
                    lanes[device].append((j, stage, k))
            lanes[device].append(step)
            for j in outward:
                if placement[j] == device:
                    continue
                message = (stage, j, k)
                takes[message] = transfers[stage, j]
                after[step].add(message)
                after[message].add((op, j, k))
                link = {"overlap": (device, placement[j]), "port": (device, "port")}.get(mode, device)
                lanes[link].append(message)
    for lane in lanes.values():
        for one, other in pairwise(lane):
            after[one].add(other)
    return _longest(takes, after)


def exhaustive_optimum(
    stages: int,
    microbatches: int,
    seconds: Mapping[str, Sequence[float | int]],
    transfers: Mapping[tuple[int, int], float | int],
    *,
    split: bool = False,
) -> float | int:
    """The shortest makespan over all orders of all devices, one stage a device, overlapped; for a handful of passes.

    Microbatches are alike, so only the first stage's forward passes are taken in ascending order; everything else is
    tried.
    """
    choices = [list(_orders(stage, microbatches, split)) for stage in range(stages)]
    choices[0] = [order for order in choices[0] if [k for op, _, k in order if op == "F"] == list(range(microbatches))]
    place = list(range(stages))
    return min(longest_path(orders, place, seconds, transfers) for orders in product(*choices))


def _orders(stage: int, microbatches: int, split: bool) -> Iterator[tuple[Step, ...]]:
    ops = "FBW" if split else "FB"
    for order in permutations([(op, stage, k) for op in ops for k in range(microbatches)]):
        at = {(op, k): i for i, (op, _, k) in enumerate(order)}
        if all(at[a, k] < at[b, k] for k in range(microbatches) for a, b in pairwise(ops)):
            yield order


def _longest(takes: Mapping[object, float | int], after: Mapping[object, set[object]]) -> float | int:
    """The longest path by taking off, again and again, what nothing is before."""
    before = dict.fromkeys(takes, 0)
    for one in takes:
        for other in after.get(one, ()):
            before[other] += 1
    start = dict.fromkeys(takes, 0.0)
    free = [one for one, count in before.items() if not count]
    end, seen = 0.0, 0
    while free:
        one = free.pop()
        seen += 1
        end = max(end, start[one] + takes[one])
        for other in after.get(one, ()):
            start[other] = max(start[other], start[one] + takes[one])
            before[other] -= 1
            if not before[other]:
                free.append(other)
    return end if seen == len(takes) else inf
