"""Tensors of the Llama 3 models, and moving them from a sharded trainer to tensor-parallel replicas."""

from typing import SupportsFloat

from xmesh_reshard.cases import Case
from xmesh_reshard.layout import Layout, Mesh
from xmesh_reshard.plans import Transfer
from xmesh_reshard.topology import Topology

_VOCABULARY, _HEAD = 128_256, 128
# layers, width, width of the feed-forward part, heads, key and value heads (Llama Team 2024, Table 3)
_FACTS = {"8b": (32, 4096, 14_336, 32, 8), "70b": (80, 8192, 28_672, 64, 8)}
_COLUMN = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "embed_tokens", "lm_head")  # cut by output features
_ROW = ("o_proj", "down_proj")  # cut by input features


def llama_shapes(size: str) -> dict[str, tuple[int, ...]]:
    """Name and shape of every weight, as checkpoints have them.

    Args:
        size: ``8b`` (8.03 billion weights) or ``70b`` (70.6 billion).

    Raises:
        ValueError: Another size.

    Reference:
        Llama Team (2024). The Llama 3 Herd of Models. arXiv:2407.21783, Table 3.

    Example:
        >>> len(llama_shapes("8b")), llama_shapes("8b")["model.layers.0.self_attn.k_proj.weight"]
        (291, (1024, 4096))
    """
    if size not in _FACTS:
        raise ValueError(f"sizes are {sorted(_FACTS)}; got {size!r}")
    layers, width, inner, heads, groups = _FACTS[size]
    block = {
        "self_attn.q_proj": (heads * _HEAD, width),
        "self_attn.k_proj": (groups * _HEAD, width),
        "self_attn.v_proj": (groups * _HEAD, width),
        "self_attn.o_proj": (width, heads * _HEAD),
        "mlp.gate_proj": (inner, width),
        "mlp.up_proj": (inner, width),
        "mlp.down_proj": (width, inner),
        "input_layernorm": (width,),
        "post_attention_layernorm": (width,),
    }
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (_VOCABULARY, width)}
    shapes |= {f"model.layers.{i}.{name}.weight": shape for i in range(layers) for name, shape in block.items()}
    return shapes | {"model.norm.weight": (width,), "lm_head.weight": (_VOCABULARY, width)}


def llama_refit(
    size: str,
    *,
    trainers: int = 64,
    tensor_parallel: int = 8,
    replicas: int = 8,
    host_devices: int = 8,
    dtype: str = "bfloat16",
    nic: str | SupportsFloat = "400Gbit",
    nics: int = 1,
    local: str | SupportsFloat = "400GB/s",
    alpha: str | SupportsFloat = "5us",
    local_alpha: str | SupportsFloat = "2us",
) -> Case:
    """Refresh the weights of an inference fleet from a trainer, as reinforcement learning does after each step.

    The trainer cuts every weight by its first axis over all its devices (FSDP); each replica of the fleet holds the
    model cut by features over ``tensor_parallel`` devices, norms whole.

    Args:
        size: Which Llama model.
        trainers: Devices of the trainer.
        tensor_parallel: Devices of a replica.
        replicas: Replicas of the model in the fleet.
        host_devices: Devices on a host; trainer and fleet share no host.
        dtype: Element type.
        nic: Rate of a network card.
        nics: Cards on a host.
        local: Rate of a device's link inside its host.
        alpha: Seconds that a message between hosts costs.
        local_alpha: The same inside a host.

    Returns:
        All weights and the network.

    Raises:
        ValueError: A number of devices is not above zero.

    Example:
        >>> case = llama_refit("8b", trainers=16, replicas=2)
        >>> len(case.transfers), len(case.topology.hosts)
        (291, 4)
    """
    if min(trainers, tensor_parallel, replicas, host_devices) < 1:
        raise ValueError("trainers, tensor_parallel, replicas and host_devices are at least 1")
    first = -(-trainers // host_devices) * host_devices
    hosts = -(-(first + tensor_parallel * replicas) // host_devices)
    topology = Topology.uniform(
        hosts, host_devices, nic=nic, nics=nics, local=local, alpha=alpha, local_alpha=local_alpha
    )
    trainer = Mesh.grid((trainers,), ("data",))
    fleet = Mesh.grid((replicas, tensor_parallel), ("replica", "tensor"), first=first)
    made: dict[tuple[tuple[int, ...], int], Transfer] = {}
    transfers = {}
    for name, shape in llama_shapes(size).items():
        part = name.split(".")[-2]
        axis = 0 if part in _COLUMN else 1 if part in _ROW else -1
        if (shape, axis) not in made:
            source = Layout.sharded(shape, dtype, trainer, ("data",))
            spec = {0: ("tensor",), 1: (None, "tensor"), -1: ()}[axis]
            target = Layout.sharded(shape, dtype, fleet, spec)
            made[shape, axis] = Transfer(source, target)
        transfers[name] = made[shape, axis]
    return Case(f"llama {size} from {trainers} to {replicas} x {tensor_parallel}", transfers, topology)
