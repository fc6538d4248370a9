"""Members that collude, and a lambda that notices: the guard against diversity that is learnt by heart."""

import numpy as np
import torch
from torch import nn

from dncc import DNCCLoss, GuardedLambda, MultiHead, collusion_between, evaluate, fit
from dncc.datasets import digits
from dncc.datasets_split import noisy_labels

torch.set_num_threads(1)
NOISE = 0.1
data = digits(seed=1, val_share=0.4, shots=30, label_noise=NOISE)
train = (data.x_train, data.y_train)
# The guard compares training with validation data, which must be of the same kind: wrong labels in both.
assert data.x_val is not None
assert data.y_val is not None
validation = (data.x_val, noisy_labels(data.y_val, NOISE, 10, np.random.default_rng(0)))
test = (data.x_test, data.y_test)

print("lambda           at the end   collusion   member NLL   ensemble NLL")
for name, lam in (("0", 0.0), ("1", 1.0), ("1, guarded", GuardedLambda(1.0, tolerance=0.1))):
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU())
    generator = torch.Generator().manual_seed(0)
    model = MultiHead(trunk, 10, members=8, mode="full", hidden=(16,), generator=generator)
    # `fit` shows the guard both decompositions after every epoch; in a loop of your own: lam.observe(train, validation)
    history = fit(model, DNCCLoss(lam), train, val=validation, epochs=40, batch_size=60, lr=5e-3, generator=generator)
    share = collusion_between(evaluate(model, train), evaluate(model, validation)).share
    found = evaluate(model, test)
    end = history.epochs[-1].lam
    print(f"{name:<16} {end:<12.2f} {share:<11.0%} {found.ce:<12.3f} {found.ensemble_ce:.3f}")
