"""torch_geometric on compressed activations: full-batch GAT on a graph of communities."""

import torch
from torch.nn import functional
from torch_geometric.nn import GAT
from torch_geometric.utils import stochastic_blockmodel_graph

import gact

torch.manual_seed(0)
SIZES = [150] * 4
chances = 0.01 * torch.ones(4, 4) + 0.09 * torch.eye(4)
edges = stochastic_blockmodel_graph(SIZES, chances)
labels = torch.arange(4).repeat_interleave(150)
features = torch.randn(4, 32)[labels] + 3.0 * torch.randn(600, 32)
known = torch.rand(600) < 0.2


def train(bits: int | str | None) -> float:
    """Share of right answers on nodes without a label."""
    torch.manual_seed(1)
    model = GAT(32, 64, num_layers=2, out_channels=4, heads=4, dropout=0.3, act="elu")
    optimiser = torch.optim.Adam(model.parameters(), lr=5e-3)
    compressor = gact.ActivationCompressor(model, bits or 8)
    forward = model if bits is None else compressor.wrap(model)
    for _ in range(40):
        optimiser.zero_grad()
        loss = functional.cross_entropy(forward(features, edges)[known], labels[known])
        loss.backward()
        optimiser.step()
    if bits is not None:
        print(f"{bits!s:>8}: {compressor.report().summary()}")
    model.eval()
    with torch.no_grad():
        right = model(features, edges).argmax(1) == labels
    return float(right[~known].float().mean())


for bits in (None, 8, "auto:4", "auto:2"):
    print(f"{'plain' if bits is None else bits!s:>8}: {train(bits):.1%} right")
