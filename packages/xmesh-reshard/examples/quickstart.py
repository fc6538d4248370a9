"""Fit and predict: the shortest use of xmesh-reshard."""

import numpy as np

from xmesh_reshard import Ridge

rng = np.random.default_rng(0)
truth = rng.normal(size=10)
inputs = rng.normal(size=(20, 10))
targets = inputs @ truth + rng.normal(size=20)

model = Ridge(penalty=1.0).fit(inputs, targets)

new = rng.normal(size=(100, 10))
error = np.mean((model.predict(new) - new @ truth) ** 2)
print(f"mean squared error of the prediction: {error:.2f}")
