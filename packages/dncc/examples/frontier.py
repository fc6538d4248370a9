"""What lambda trades, from a single run: groups of heads on one trunk, each group with a lambda of its own."""

import sys
from pathlib import Path

import torch
from torch import nn

from dncc import EnsembleReport, FrontierLoss, MultiHead, member_groups, predict_logits
from dncc.datasets import digits

torch.set_num_threads(1)
LAMBDAS = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)
MEMBERS = 8  # of each group

data = digits(seed=0, shots=30, label_noise=0.1)
generator = torch.Generator().manual_seed(0)
torch.manual_seed(0)
trunk = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU())
model = MultiHead(trunk, 10, members=MEMBERS * len(LAMBDAS), mode="full", hidden=(16,), generator=generator)
loss = FrontierLoss(LAMBDAS)
optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3)
x, y = torch.as_tensor(data.x_train), torch.as_tensor(data.y_train)
for _ in range(40):
    for rows in torch.randperm(len(x), generator=generator).split(60):
        optimiser.zero_grad()
        loss(model(x[rows]), y[rows]).loss.backward()
        optimiser.step()

# Each group is an ensemble with its own lambda. The trunk is shared by all: separate runs also differ in the trunk.
target = torch.as_tensor(data.y_test)
groups = member_groups(predict_logits(model, data.x_test), len(LAMBDAS))
reports = [EnsembleReport.from_logits(group, target) for group in groups]
members = [sum(member.nll for member in report.members) / MEMBERS for report in reports]
disagreement = [report.pair_means()["disagreement"] for report in reports]
print("lambda   member NLL   ensemble NLL               disagreement")
for lam, report, own, differ in zip(LAMBDAS, reports, members, disagreement, strict=True):
    print(f"{lam:<8} {own:.3f}        {report.nll:.3f}   {differ:.3f}")

if len(sys.argv) > 1:  # a file for the picture; needs dncc[plot]
    from common_core.plotting import svg
    from dncc.plots import frontier_figure

    figure = frontier_figure(LAMBDAS, members=members, ensemble=[r.nll for r in reports], disagreement=disagreement)
    Path(sys.argv[1]).write_text(svg(figure), "utf-8")
