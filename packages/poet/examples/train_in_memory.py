"""Train a torch model in half the activation memory, with exactly the numbers of plain training."""

import copy

import torch
from torch import nn

import poet

torch.manual_seed(0)
LAYERS, WIDTH, LENGTH, BATCH = 2, 32, 64, 8
layer = nn.TransformerEncoderLayer(WIDTH, 2, 4 * WIDTH, dropout=0.1, batch_first=True)
model = nn.Sequential(nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False), nn.Linear(WIDTH, 1))
twin = copy.deepcopy(model)
loss_fn = nn.functional.mse_loss
inputs, targets = torch.randn(BATCH, LENGTH, WIDTH), torch.randn(BATCH, LENGTH, 1)

# Traced, measured, scheduled and tried out at once; paging goes to the folder for temporary files.
step = poet.compile(model, loss_fn, (inputs, targets), ram="50%", time_limit=2)
print(step.report())


def train(net: nn.Module, run) -> list[float]:
    """Five steps of Adam."""
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-3)
    torch.manual_seed(1)  # dropout
    losses = []
    for _ in range(5):
        optimiser.zero_grad()
        losses.append(float(run()))
        optimiser.step()
    return losses


def plain() -> torch.Tensor:
    """An ordinary step."""
    loss = loss_fn(twin(inputs), targets)
    loss.backward()
    return loss.detach()


ours, theirs = train(model, lambda: step(inputs, targets)), train(twin, plain)
step.close()
print("losses within the limit:", *(f"{loss:.6f}" for loss in ours))
print("losses of plain training:", *(f"{loss:.6f}" for loss in theirs))
pairs = zip(model.parameters(), twin.parameters(), strict=True)
print("parameters equal to the bit:", ours == theirs and all(torch.equal(a, b) for a, b in pairs))
