"""Eight classifiers on one trunk, trained in a loop of your own: what one number, lambda, does to them."""

import torch
from torch import nn

from dncc import DNCCLoss, EnsembleReport, MultiHead, compare, evaluate, predict_logits
from dncc.datasets import digits

torch.set_num_threads(1)  # tensors are small
data = digits(seed=0, shots=30, label_noise=0.1)  # 300 training digits, a tenth of them with a wrong label
x, y = torch.as_tensor(data.x_train), torch.as_tensor(data.y_train)
x_test, y_test = torch.as_tensor(data.x_test), torch.as_tensor(data.y_test)


def train(members: int, lam: float) -> MultiHead:
    """Heads on a trunk of dense layers; the loss is the only thing that is new."""
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU())
    model = MultiHead(trunk, num_classes=10, members=members, mode="full", hidden=(16,))
    loss = DNCCLoss(lam)  # (1 - lambda) * members' cross-entropy + lambda * cross-entropy of their average
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 30 * 5)
    for _ in range(30):
        for rows in torch.randperm(len(x)).split(60):
            out = loss(model(x[rows]), y[rows])  # logits (members, batch, classes)
            optimiser.zero_grad()
            out.loss.backward()
            optimiser.step()
            schedule.step()
    return model.eval()


models = {"one network": train(1, 0.0)} | {f"lambda {lam}": train(8, lam) for lam in (0.0, 0.5, 0.9, 1.0)}

# Accuracy, likelihood, calibration and diversity; each against the first, with intervals over the test samples.
reports = {name: EnsembleReport.from_logits(predict_logits(model, x_test), y_test) for name, model in models.items()}
print(compare(reports).text())

# The decomposition is exact: what the members lose, less how they differ, is what the ensemble loses.
print("members' cross-entropy - ambiguity = ensemble's cross-entropy, in nats on test data")
for name, model in models.items():
    terms = evaluate(model, (x_test, y_test))
    print(f"{name:>12}: {terms.ce:.3f} - {terms.ambiguity:.3f} = {terms.ensemble_ce:.3f}")

# One forward pass gives the prediction.
probabilities = models["lambda 0.5"].predict_proba(x_test[:3])
print("\npredicted:", probabilities.argmax(-1).tolist(), "labels:", y_test[:3].tolist())
