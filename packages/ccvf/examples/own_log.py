"""A log of your own: parallel arrays, with terminated and truncated apart; then as a file, and as a Minari data set."""

import os
import tempfile
from pathlib import Path

import numpy as np

from ccvf import Counts, TabularCCVL, Transitions, from_minari, load_transitions, save_transitions, to_minari

# Five episodes on a corridor of ten cells. The exit (cell 9) pays 1 and ends an episode; a clock cuts it at 30 steps.
rng = np.random.default_rng(0)
rows = []
for episode in range(5):
    cell = 0
    for step in range(30):
        action = int(rng.random() < 0.7)  # 1 walks right, 0 left
        after = min(9, cell + 1) if action else max(0, cell - 1)
        ended = after == 9
        rows.append((cell, action, float(ended), after, ended, step == 29 and not ended, episode))
        cell = after
        if ended:
            break
cells, actions, rewards, following, terminated, truncated, episodes = map(np.array, zip(*rows, strict=True))

# Everything is checked here: lengths, finite rewards, actions that there are, episodes in one piece.
log = Transitions.from_arrays(
    cells, actions, rewards, following, terminated, truncated, episodes,
    n_actions=2, metadata={"origin": "a corridor"},
)  # fmt: skip
print(log.describe())

# After the exit nothing follows; after the clock the future goes on unseen, and is bootstrapped.
values = TabularCCVL(0.9, alpha=0.2).fit(Counts.from_transitions(log, n_states=10)).unwrap()
for delta in (0.01, 0.3, 1.0):
    print(f"delta {delta:g}: value of the first cell {values.values(delta)[0]:.3f}, actions {values.policy(delta)[:9]}")

with tempfile.TemporaryDirectory() as folder:
    file = Path(folder, "corridor.npz")
    fingerprint = save_transitions(
        file, log
    )  # the command reads it: ccvf train corridor.npz --method tabular --out run
    assert load_transitions(file).fingerprint() == fingerprint
    print(f"saved and read back, fingerprint {fingerprint[:12]}")

    os.environ["MINARI_DATASETS_PATH"] = str(Path(folder, "minari"))
    try:
        to_minari(log, "corridor/walks-v0")
        print(f"as a Minari data set, which gives {len(from_minari('corridor/walks-v0'))} transitions back")
    except ImportError as error:
        print(f"Minari left out: {error}")
