"""A schedule as a C header: constant tables for a microcontroller that executes it without an allocator.

C99, no includes but <stdint.h>, nothing to link. The header says what to do and where; kernels and drivers are the
firmware's.
"""

import re
from collections.abc import Iterable, Sequence

from poet.arena import Arena, lifetimes
from poet.device import Tier
from poet.events import Event, Kind
from poet.graph import Graph
from poet.timeline import stored_bytes

NOWHERE = 2**32 - 1

_TYPES = """\
enum {name}_kind {{ {kinds} }};

typedef struct {{
    uint32_t offset;  /* of the value; compute: its workspace; drop: the copy; {NAME}_NOWHERE if not in the arena */
    uint32_t size;    /* bytes there; of a copy outside the arena: bytes in its tier */
    uint32_t first;   /* compute: where its places begin, inputs first, then outputs; a tier within RAM: the copy's */
    {index} inputs;   /* number of places that are read */
    {index} outputs;  /* number of places that are written */
    {index} target;   /* operation or value */
    uint8_t kind;
    int8_t tier;      /* -1: none */
}} {name}_event;

typedef struct {{
    uint32_t offset;  /* bytes from the start of the arena */
    {index} value;
}} {name}_place;
"""


def to_c(graph: Graph, events: Sequence[Event], arena: Arena, tiers: Sequence[Tier] = (), *, name: str = "poet") -> str:
    """The schedule as the text of a C header.

    Args:
        graph: The training step.
        events: A schedule that breaks no rule.
        arena: Addresses of its `poet.arena.lifetimes`.
        tiers: The tiers of its device.
        name: Prefix of everything the header defines, a C identifier.

    Raises:
        ValueError: If there are no events, the arena is of another schedule or too large for 32-bit offsets, or the
            name is not a C identifier.

    Example:
        >>> from poet import arena, events, graph
        >>> step, plan = graph.chain("c", [4, 6]), [events.compute(0), events.compute(1), events.free(0)]
        >>> text = to_c(step, plan, arena.first_fit(arena.lifetimes(step, plan)))
        >>> [line for line in text.splitlines() if "ARENA" in line or "free" in line][-2:]
        ['#define POET_ARENA_BYTES 32u', '    {0u, 4u, 3u, 0, 0, 0, 3, -1}, /* 2: free v0 */']
    """
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise ValueError(f"name must be a C identifier such as 'poet', got {name!r}")
    if not events:
        raise ValueError("the schedule has no events: there is nothing to export")
    if sorted(map(str, arena.blocks)) != sorted(map(str, lifetimes(graph, events, tiers))):
        raise ValueError("the arena places other blocks than those of this schedule: make it from its lifetimes")
    rows, places = _rows(graph, events, arena, tiers)
    largest = max(arena.height, *(size for _, size, *_ in rows))
    if largest >= NOWHERE:
        raise ValueError(f"offsets have 32 bits, and the schedule needs {largest} bytes")
    index = "uint16_t" if max(len(graph.ops), len(graph.values)) < 2**16 else "uint32_t"
    upper = name.upper()
    kinds = ", ".join(f"{upper}_{kind.value.upper()} = {number}" for number, kind in enumerate(Kind))
    numbers = {
        "ARENA_BYTES": arena.height,
        "ALIGNMENT": arena.alignment,
        "EVENTS": len(events),
        "OPERATIONS": len(graph.ops),
        "VALUES": len(graph.values),
        "TIERS": len(tiers),
        "NOWHERE": NOWHERE,
    }
    parts = (
        _introduction(graph, events, arena, tiers),
        f"#ifndef {upper}_SCHEDULE_H\n#define {upper}_SCHEDULE_H\n\n#include <stdint.h>\n",
        "".join(f"#define {upper}_{key} {number}u\n" for key, number in numbers.items()),
        _TYPES.format(name=name, NAME=upper, index=index, kinds=kinds),
        _table(f"uint32_t {name}_value_bytes", ((f"{v.size}u", v.name) for v in graph.values)),
        _table(f"{name}_place {name}_places", ((f"{{{o}u, {v}}}", graph.values[v].name) for o, v in places)),
        _table(f"{name}_event {name}_schedule", _named(graph, events, rows, tiers)),
        f"#endif /* {upper}_SCHEDULE_H */\n",
    )
    return "\n".join(parts)


def _rows(
    graph: Graph, events: Sequence[Event], arena: Arena, tiers: Sequence[Tier]
) -> tuple[list[tuple[int, int, int, int, int]], list[tuple[int, int]]]:
    """Offset, size, first place, inputs and outputs of each event; and the places (offset, value)."""
    starts = {(b.content, b.value, b.tier, b.start): o for b, o in zip(arena.blocks, arena.offsets, strict=True)}
    at: dict[
        tuple[int, int], int
    ] = {}  # (value, tier or -1 for RAM) -> its offset now; a value without bytes lies at 0
    rows: list[tuple[int, int, int, int, int]] = []
    places: list[tuple[int, int]] = []
    for e, event in enumerate(events):
        v, first = event.target, len(places)
        if event.kind is Kind.COMPUTE:
            op = graph.ops[v]
            inputs = [(at[w, -1], w) for w in op.inputs]
            at.update(((w, -1), starts.get(("value", w, -1, e), 0)) for w in op.outputs)
            places += [*inputs, *((at[w, -1], w) for w in op.outputs)]
            rows.append(
                (starts.get(("workspace", v, -1, e), NOWHERE), op.workspace, first, len(inputs), len(op.outputs))
            )
            continue
        size, inside = graph.values[v].size, event.tier >= 0 and tiers[event.tier].in_ram
        if event.kind is Kind.PAGE_IN:
            at[v, -1] = starts.get(("value", v, -1, e), 0)
        if inside and event.kind is Kind.PAGE_OUT:
            at[v, event.tier] = starts.get(("copy", v, event.tier, e), at.get((v, event.tier), 0))
        if event.kind is Kind.DROP:
            rows.append((at[v, event.tier] if inside else NOWHERE, stored_bytes(tiers[event.tier], size), first, 0, 0))
            continue
        copy = inside and event.kind is not Kind.FREE
        if copy:
            places.append((at[v, event.tier], v))
        rows.append(
            (
                at[v, -1],
                size,
                first,
                int(copy and event.kind is Kind.PAGE_IN),
                int(copy and event.kind is Kind.PAGE_OUT),
            )
        )
    return rows, places


def _introduction(graph: Graph, events: Sequence[Event], arena: Arena, tiers: Sequence[Tier]) -> str:
    lines = [
        f"Schedule of {graph.name}: {len(events)} events.",
        f"Arena of {arena.height} bytes; {arena.live_peak} live at once; fragmentation {arena.fragmentation:.2%}.",
        f"Static bytes beside the arena: {graph.static.total}.",
        "Transfers to tiers outside RAM may run beside the computation, one at a time in each direction and in this",
        "order; an operation waits for those of its inputs, a free for those that read the value.",
        *(f"Tier {k}: {tier.name}{' (within the arena)' if tier.in_ram else ''}" for k, tier in enumerate(tiers)),
        *(f"Operation {i}: {op.name}" for i, op in enumerate(graph.ops)),
    ]
    return "/*\n" + "".join(f" * {_comment(line)}\n" for line in lines) + " */\n"


def _named(
    graph: Graph, events: Sequence[Event], rows: Sequence[tuple[int, int, int, int, int]], tiers: Sequence[Tier]
) -> Iterable[tuple[str, str]]:
    order = list(Kind)
    for event, (offset, size, first, inputs, outputs) in zip(events, rows, strict=True):
        things = graph.ops if event.kind is Kind.COMPUTE else graph.values
        place = f" ({tiers[event.tier].name})" if event.tier >= 0 else ""
        row = f"{offset}u, {size}u, {first}u, {inputs}, {outputs}, {event.target}, {order.index(event.kind)}"
        yield f"{{{row}, {event.tier}}}", f"{event.kind.value} {things[event.target].name}{place}"


def _table(declaration: str, rows: Iterable[tuple[str, str]]) -> str:
    lines = "".join(f"    {row}, /* {number}: {_comment(text)} */\n" for number, (row, text) in enumerate(rows))
    return f"static const {declaration}[] = {{\n{lines}}};\n"


def _comment(text: str) -> str:
    """The text with nothing in it that ends, nests or continues a comment, or that is not ASCII."""
    plain = "".join(c if " " <= c <= "~" and c not in "\\?" else "_" for c in text)
    return plain.replace("*/", "*_").replace("/*", "_*")
