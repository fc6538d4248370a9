"""Learners: their backups against tables, their order in delta, their exact resumption."""

import copy
import dataclasses
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

import jaxtyping
import numpy as np
import pytest
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from ccvf.baselines import DQN, REM, BehaviourCloning, DiscreteCQL, DiscreteIQL
from ccvf.batches import Batch
from ccvf.ccvl import DeepCCVL
from ccvf.configs import BCConfig, CCVLConfig, CQLConfig, DQNConfig, IQLConfig, REMConfig
from ccvf.exact_counts import ExactCounts
from ccvf.io import FormatError, load_checkpoint, save_checkpoint
from ccvf.multi_step import n_step
from ccvf.objectives import split_confidences
from ccvf.penalties import Bonus
from ccvf.saving import load_learner, save_learner
from ccvf.training import DivergenceError, check_fit, train
from ccvf.transitions import Transitions
from ccvf.value_learner import Drawn, ValueLearner

SMALL: dict[str, Any] = {"hidden": (16,), "target_period": 5, "learning_rate": 1e-2}


class TableBonus(Bonus):
    """1/sqrt(max(n, 1)) of a table of counts; observations are one-hot states."""

    def __init__(self, counts: Tensor) -> None:
        self.counts = counts

    def fit(self, data: Transitions, generator: torch.Generator) -> "Bonus":
        return self

    def __call__(self, observations: Shaped[Tensor, "batch ..."]) -> Float[Tensor, "batch actions"]:
        return self.counts.clamp(min=1).rsqrt()[observations.argmax(-1)]

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {"counts": self.counts}, {"name": "table"}

    def restore(self, tensors: Mapping[str, Tensor], extra: Mapping[str, Any]) -> None:
        self.counts = tensors["counts"]


def one_hot_log(seed: int = 0, n: int = 200, states: int = 3, actions: int = 2) -> Transitions:
    """A random walk on a few states."""
    rng = np.random.default_rng(seed)
    state = rng.integers(states, size=n + 1)
    eye = np.eye(states, dtype=np.float32)
    ends = rng.random(n) < 0.1
    return Transitions.from_arrays(
        eye[state[:-1]], rng.integers(actions, size=n), rng.normal(size=n).astype(np.float32), eye[state[1:]],
        ends, n_actions=actions,
    )  # fmt: skip


def batch_of(data: Transitions, rows: slice = slice(None)) -> Batch:
    return Batch(
        torch.as_tensor(data.observations(rows)), torch.as_tensor(data.actions[rows]).long(),
        torch.as_tensor(data.rewards[rows]).float(), torch.as_tensor(data.next_observations(rows)),
        torch.as_tensor(data.terminated[rows]), torch.as_tensor(data.steps[rows]).long(),
    )  # fmt: skip


ALL: list[tuple[type[ValueLearner[Any]], Any]] = [
    (DeepCCVL, CCVLConfig(**SMALL)),
    (DeepCCVL, CCVLConfig(**SMALL, head="cosine", hinge=1.0)),
    (DQN, DQNConfig(**SMALL)),
    (DiscreteCQL, CQLConfig(**SMALL)),
    (REM, REMConfig(**SMALL, heads=7)),
    (DiscreteIQL, IQLConfig(**SMALL)),
    (BehaviourCloning, BCConfig(**SMALL)),
]


@pytest.mark.parametrize(("kind", "config"), ALL)
def test_a_learner_saved_halfway_ends_with_the_same_weights(kind: Any, config: Any, tmp_path: Path) -> None:
    data = one_hot_log()
    whole = kind((3,), 2, config, generator=torch.Generator().manual_seed(3))
    train(whole, data, updates=23, batch_size=8, record_every=4)
    first = kind((3,), 2, config, generator=torch.Generator().manual_seed(3))
    place = tmp_path / "run.safetensors"
    train(first, data, updates=11, batch_size=8, record_every=4, checkpoint=place)
    second = kind((3,), 2, config, generator=torch.Generator().manual_seed(99))
    history = train(second, data, updates=23, batch_size=8, record_every=4, checkpoint=place, resume=True)
    assert history.updates == (4, 8, 11, 12, 16, 20, 23)
    for name, value in whole.state()[0].items():
        assert torch.equal(value, second.state()[0][name]), name
    loaded, _ = load_learner(place)
    seen = data.observations(slice(0, 9))
    assert np.array_equal(loaded.q_values(seen, np.array([0.01, 1.0])), whole.q_values(seen, np.array([0.01, 1.0])))


@pytest.mark.parametrize(("kind", "config"), ALL)
def test_a_learner_is_the_same_after_saving(kind: Any, config: Any, tmp_path: Path) -> None:
    learner = kind((3,), 2, config)
    learner.update(batch_of(one_hot_log()))
    save_learner(tmp_path / "a.safetensors", learner, {"note": 1})
    again, info = load_learner(tmp_path / "a.safetensors")
    assert info == {"note": 1}
    assert again.config == config
    assert all(torch.equal(value, again.state()[0][name]) for name, value in learner.state()[0].items())


@pytest.mark.parametrize(("kind", "config"), ALL)
def test_a_state_is_a_copy_and_two_learners_restored_from_it_share_nothing(kind: Any, config: Any) -> None:
    data = one_hot_log()
    learner, twin, other = (kind((3,), 2, config) for _ in range(3))
    learner.update(batch_of(data))
    tensors, extra = learner.state()
    kept = {name: value.clone() for name, value in tensors.items()}
    twin.restore(tensors, extra)
    other.restore(tensors, extra)
    for _ in range(6):
        twin.update(batch_of(data))
    assert all(torch.equal(value, kept[name]) for name, value in tensors.items())
    for untouched in (learner, other):
        assert all(torch.equal(value, kept[name]) for name, value in untouched.state()[0].items())


def test_a_learner_with_a_bonus_is_loaded_whole_or_called_damaged(tmp_path: Path) -> None:
    data = one_hot_log()
    bonus = ExactCounts().fit(data, torch.Generator().manual_seed(0))
    learner = DeepCCVL((3,), 2, CCVLConfig(**SMALL, method="bonus"), bonus=bonus)
    learner.update(batch_of(data))
    save_learner(tmp_path / "a.safetensors", learner)
    again, _ = load_learner(tmp_path / "a.safetensors")
    assert torch.equal(again.values(torch.eye(3), torch.tensor([0.1])), learner.q(torch.eye(3), 0.1))
    tensors, about = load_checkpoint(tmp_path / "a.safetensors")
    del tensors["learner.bonus.counts"]
    save_checkpoint(tmp_path / "b.safetensors", tensors, about)
    with pytest.raises(FormatError, match="cannot be made a learner again"):
        load_learner(tmp_path / "b.safetensors")


def test_copies_of_a_compiled_learner_train_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    # In place of a compiler: like its results, a function that keeps the learner it was made for.
    monkeypatch.setattr(torch, "compile", lambda method: lambda step: method(step))
    learner = DQN((3,), 2, DQNConfig(**SMALL, compile=True))
    batch = batch_of(one_hot_log())
    learner.update(batch)
    kept = learner.state()[0]
    for twin in (copy.deepcopy(learner), pickle.loads(pickle.dumps(learner))):
        twin.update(batch)
        assert all(torch.equal(value, kept[name]) for name, value in learner.state()[0].items())
        assert not torch.equal(twin.state()[0]["online.q.head.dense.bias"], kept["online.q.head.dense.bias"])


def network_values(learner: DeepCCVL, which: Literal["online", "target"], x: Tensor, deltas: Tensor) -> Tensor:
    with torch.no_grad():
        return learner.network(which)(x, deltas)


@pytest.mark.parametrize("budget", ["box", "sum", "product"])
@pytest.mark.parametrize("penalise", ["values", "rewards"])
@pytest.mark.parametrize("double", [True, False])
def test_the_backup_with_a_bonus_is_the_maximum_over_splits_and_actions(
    budget: Any, penalise: Any, double: bool
) -> None:
    data = one_hot_log(1, n=12)
    counts = torch.tensor([[0.0, 1.0], [4.0, 9.0], [25.0, 2.0]])
    config = CCVLConfig(
        **SMALL,
        method="bonus",
        alpha=0.7,
        budget=budget,
        penalise=penalise,
        double=double,
        splits=3,
        confidences=4,
    )
    learner = DeepCCVL((3,), 2, config, bonus=TableBonus(counts))
    for parameter in learner.target.parameters():  # so that online and target differ
        parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())))
    batch = batch_of(data)
    u, shifts, bonus = learner.draw(batch)
    deltas = torch.exp(-u.square())
    found = learner.backup(batch.rewards, batch.discounts(0.99), batch.next_observations, deltas, (shifts, bonus))
    firsts, rests = split_confidences(deltas, shifts, config.budget, config.smallest)
    for i in range(len(data)):
        s, a = int(batch.observations[i].argmax()), int(batch.actions[i])
        following = batch.next_observations[i : i + 1]
        after = int(following.argmax())
        discount = 0.0 if data.terminated[i] else 0.99
        for j in range(4):
            best, value = -np.inf, np.nan
            for first, rest in zip(firsts[i, j].tolist(), rests[i, j].tolist(), strict=True):
                chooser = "online" if double else "target"
                own = network_values(learner, chooser, following, torch.tensor([rest]))[0, 0]
                judge = network_values(learner, "target", following, torch.tensor([rest]))[0, 0]
                cost = 0.7 * np.sqrt(-np.log(first))
                if penalise == "rewards":
                    candidate = float(judge[own.argmax()])
                    got = float(data.rewards[i]) - cost / max(float(counts[s, a]), 1) ** 0.5 + discount * candidate
                    value = got if np.isnan(value) else max(value, got)
                    continue
                for action in range(2):
                    off = cost / max(float(counts[after, action]), 1) ** 0.5
                    if float(own[action]) - off > best:
                        best = float(own[action]) - off
                        value = float(data.rewards[i]) + discount * (float(judge[action]) - off)
            assert float(found[i, j]) == pytest.approx(value, abs=1e-5)


def test_at_the_same_confidence_the_network_target_of_cql_is_double_q_learning() -> None:
    data = one_hot_log(2, n=10)
    learner = DeepCCVL((3,), 2, CCVLConfig(**SMALL, confidences=3))
    for parameter in learner.target.parameters():
        parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())))
    batch = batch_of(data)
    deltas = torch.rand(10, 3, generator=torch.Generator().manual_seed(0)).clamp(min=1e-3)
    found = learner.backup(batch.rewards, batch.discounts(0.99), batch.next_observations, deltas, ())
    online = network_values(learner, "online", batch.next_observations, deltas)
    target = network_values(learner, "target", batch.next_observations, deltas)
    future = target.gather(-1, online.argmax(-1, keepdim=True)).squeeze(-1)
    wanted = batch.rewards[:, None] + 0.99 * (~batch.terminated[:, None]) * future
    assert torch.allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize("budget", ["box", "sum", "product"])
@pytest.mark.parametrize("penalise", ["values", "rewards"])
def test_trained_values_grow_with_delta_whatever_the_weights(budget: Any, penalise: Any) -> None:
    counts = torch.tensor([[0.0, 1.0], [4.0, 9.0], [25.0, 2.0]])
    config = CCVLConfig(**SMALL, method="bonus", budget=budget, penalise=penalise)
    learner = DeepCCVL((3,), 2, config, bonus=TableBonus(counts))
    train(learner, one_hot_log(), updates=30, batch_size=16)
    q = learner.q(torch.eye(3), np.geomspace(1e-4, 1.0, 40))
    assert bool((q.diff(dim=1) >= -1e-5).all())


@pytest.mark.parametrize("penalise", ["values", "rewards"])
def test_learnt_values_with_counts_are_those_of_the_table(penalise: Any) -> None:
    """A chain of two states and an end, alpha 0.4: the fixed point has a closed form at every delta."""
    eye = np.eye(2, dtype=np.float32)
    # state 0: action 0 goes on to state 1 (n = 16), action 1 ends with reward 0.3 (n = 4); state 1 ends with 1 (n = 16)
    state = np.array([0] * 16 + [0] * 4 + [1] * 16 + [1] * 16)
    action = np.array([0] * 16 + [1] * 4 + [0] * 16 + [1] * 16)
    reward = np.array([0.0] * 16 + [0.3] * 4 + [1.0] * 32, dtype=np.float32)
    after = np.where((state == 0) & (action == 0), 1, 0)
    data = Transitions.from_arrays(
        eye[state], action, reward, eye[after], ~((state == 0) & (action == 0)), np.zeros(52, bool), np.arange(52)
    )
    counts = torch.tensor([[16.0, 4.0], [16.0, 16.0]])
    config = CCVLConfig(
        hidden=(64,), learning_rate=3e-3, target_period=50, gamma=0.9, method="bonus", alpha=0.4, huber=None,
        penalise=penalise, knots=24,
    )  # fmt: skip
    learner = DeepCCVL((2,), 2, config, bonus=TableBonus(counts))
    train(learner, data, updates=1500, batch_size=64)
    deltas = np.array([1e-3, 0.01, 0.1, 0.5, 0.95])
    u = np.sqrt(-np.log(deltas))
    end = 1.0 - 0.4 * u / 4
    wanted = np.stack([-0.4 * u / 4 + 0.9 * end, 0.3 - 0.4 * u / 2], -1)
    assert learner.q_values(eye[:1], deltas)[0] == pytest.approx(wanted, abs=0.04)


def test_dqn_learns_the_values_of_a_known_chain() -> None:
    eye = np.eye(3, dtype=np.float32)
    # 0 -> 1 -> 2 -> end with reward 1; action 1 ends at once with reward 0.2
    state, action = np.repeat([0, 1, 2], 2), np.tile([0, 1], 3)
    reward = np.where((state == 2) & (action == 0), 1.0, np.where(action == 1, 0.2, 0.0)).astype(np.float32)
    ends = (state == 2) | (action == 1)
    after = np.where(ends, 0, state + 1)
    data = Transitions.from_arrays(eye[state], action, reward, eye[after], ends, np.zeros(6, bool), np.arange(6))
    learner = DQN((3,), 2, DQNConfig(hidden=(32,), learning_rate=1e-2, target_period=20, gamma=0.9))
    train(learner, data, updates=600, batch_size=16)
    wanted = np.array([[0.81, 0.2], [0.9, 0.2], [1.0, 0.2]])
    assert learner.q_values(eye, np.ones(1))[:, 0] == pytest.approx(wanted, abs=0.02)


def test_a_truncated_transition_is_bootstrapped_and_a_terminated_one_is_not() -> None:
    data = one_hot_log(5, n=6)
    both = dataclasses.replace(data, terminated=np.array([1, 0] * 3, bool), truncated=np.array([0, 1] * 3, bool))
    discounts = batch_of(both).discounts(0.9)
    assert discounts.tolist() == pytest.approx([0.0, 0.9] * 3)
    several = dataclasses.replace(both, steps=np.full(6, 3))
    assert batch_of(several).discounts(0.9).tolist() == pytest.approx([0.0, 0.9**3] * 3)


@pytest.mark.parametrize("head", ["monotone", "cosine"])
def test_the_regulariser_moves_neither_the_trunk_nor_values_without_conservatism(head: Any) -> None:
    batch = batch_of(one_hot_log())
    moved = {}
    for alpha in (0.0, 5.0):
        learner = DeepCCVL((3,), 2, CCVLConfig(**SMALL, alpha=alpha, head=head, lift=False))
        draws = learner.draw(batch)
        loss, _ = learner.objective(
            Drawn(
                batch.observations, batch.actions, batch.rewards, batch.discounts(0.9), batch.next_observations, draws
            )
        )
        loss.backward()
        moved[alpha] = dict(learner.online.named_parameters())
    for name, parameter in moved[5.0].items():
        if "body" in name:
            torch.testing.assert_close(parameter.grad, moved[0.0][name].grad, msg=name)
    if head == "monotone":  # whose first outputs are the values at delta = 1
        bias = [moved[alpha]["q.head.dense.bias"].grad[:2] for alpha in (0.0, 5.0)]
        torch.testing.assert_close(*bias)


def test_values_without_conservatism_are_those_of_q_learning_however_strong_the_regulariser() -> None:
    # Two actions logged alike that end the episode with 1 and 0: Q(1) = (1, 0).
    actions = np.arange(64) % 2
    nowhere = np.zeros(64, dtype=np.int64)
    log = Transitions.from_arrays(nowhere, actions, 1.0 - actions, nowhere, np.ones(64, bool), n_actions=2)
    config = CCVLConfig(
        alpha=1.0,
        body="tabular",
        n_states=1,
        learning_rate=3e-2,
        target_period=10,
        huber=None,
        clip_gradient=None,
        lift=False,
    )
    learner = DeepCCVL((), 2, config)
    for _ in range(500):
        learner.update(batch_of(log))
    sure, free = learner.q([0], [1e-4, 1.0])[0]
    torch.testing.assert_close(free, torch.tensor([1.0, 0.0]), atol=0.01, rtol=0)
    assert sure[0] < 0.6


def test_behaviour_cloning_learns_the_shares_of_the_logged_actions() -> None:
    eye = np.eye(2, dtype=np.float32)
    state = np.repeat([0, 1], 100)
    action = np.r_[np.repeat([0, 1], [80, 20]), np.repeat([0, 1], [10, 90])]
    data = Transitions.from_arrays(eye[state], action, np.zeros(200, np.float32), eye[state], np.ones(200, bool))
    learner = BehaviourCloning((2,), 2, BCConfig(hidden=(16,), learning_rate=3e-3))
    train(learner, data, updates=800, batch_size=200)
    shares = np.exp(learner.q_values(eye, np.ones(1)))[:, 0]
    assert shares == pytest.approx(np.array([[0.8, 0.2], [0.1, 0.9]]), abs=0.03)


def test_iql_prefers_the_better_logged_action() -> None:
    eye = np.eye(2, dtype=np.float32)
    state, action = np.repeat([0, 1], 100), np.tile([0, 1], 100)
    reward = (action == state).astype(np.float32)
    data = Transitions.from_arrays(eye[state], action, reward, eye[state], np.ones(200, bool))
    learner = DiscreteIQL((2,), 2, IQLConfig(hidden=(16,), learning_rate=3e-3, target_period=20))
    train(learner, data, updates=500, batch_size=50)
    assert learner.q_values(eye, np.ones(1))[:, 0].argmax(-1).tolist() == [0, 1]


def test_the_mixture_of_one_head_is_dqn() -> None:
    data = one_hot_log()
    rem = REM((3,), 2, REMConfig(**SMALL, heads=1), generator=torch.Generator().manual_seed(1))
    dqn = DQN((3,), 2, DQNConfig(**SMALL, double=False), generator=torch.Generator().manual_seed(2))
    for mine, other in zip(rem.online.parameters(), dqn.online.parameters(), strict=True):
        other.data.copy_(mine.data.view_as(other))
    dqn.target.load_state_dict(dqn.online.state_dict())
    for k in range(12):
        batch = batch_of(data, slice(8 * k, 8 * k + 8))
        assert float(rem.update(batch)["loss"]) == pytest.approx(float(dqn.update(batch)["loss"]), rel=1e-5)


def test_autocast_changes_little_and_keeps_values_in_full_precision() -> None:
    batch = batch_of(one_hot_log())
    plain, half = (DeepCCVL((3,), 2, CCVLConfig(**SMALL, amp=amp)) for amp in (False, True))
    assert float(half.update(batch)["loss"]) == pytest.approx(float(plain.update(batch)["loss"]), rel=0.02)
    assert half.q(torch.eye(3), 0.1).dtype == torch.float32


def test_autocast_leaves_large_mixtures_of_heads_in_full_precision() -> None:
    figures = {}
    for amp in (False, True):
        learner = REM((3,), 2, REMConfig(**SMALL, heads=7, amp=amp))
        with torch.no_grad():
            learner.online["q"].head.dense.bias += 1000.3  # of which bfloat16 would make 1000
        figures[amp] = float(learner.update(batch_of(one_hot_log()))["q"])
    assert figures[True] == pytest.approx(figures[False], abs=0.01)


def test_rewards_are_clipped_if_asked() -> None:
    batch = batch_of(one_hot_log())
    signs = dataclasses.replace(batch, rewards=batch.rewards.sign())
    clipped, plain = (DQN((3,), 2, DQNConfig(**SMALL, clip_rewards=clip)) for clip in (True, False))
    assert float(clipped.update(batch)["loss"]) == float(plain.update(signs)["loss"])


def test_ctrl_c_between_updates_leaves_a_checkpoint_to_go_on_from(tmp_path: Path) -> None:
    import signal

    data, place = one_hot_log(), tmp_path / "run.safetensors"
    learner = DQN((3,), 2, DQNConfig(**SMALL))

    def press(updates: int, metrics: dict[str, float]) -> None:
        if updates == 8:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(learner, data, updates=20, batch_size=4, record_every=4, checkpoint=place, on_record=press)
    assert learner.updates == 8
    again = DQN((3,), 2, DQNConfig(**SMALL))
    train(again, data, updates=20, batch_size=4, record_every=4, checkpoint=place, resume=True)
    whole = DQN((3,), 2, DQNConfig(**SMALL))
    train(whole, data, updates=20, batch_size=4, record_every=4)
    assert all(torch.equal(value, again.state()[0][name]) for name, value in whole.state()[0].items())


def test_divergence_is_said_and_does_not_replace_the_checkpoint(tmp_path: Path) -> None:
    data, place = one_hot_log(), tmp_path / "run.safetensors"
    learner = DQN((3,), 2, DQNConfig(**SMALL))
    train(learner, data, updates=5, batch_size=4, checkpoint=place)
    before = place.read_bytes()
    with torch.no_grad():
        next(iter(learner.online.parameters())).fill_(torch.nan)
    with pytest.raises(DivergenceError, match="learning rate"):
        train(learner, data, updates=9, batch_size=4, checkpoint=place)
    assert place.read_bytes() == before


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    data, place = one_hot_log(), tmp_path / "run.safetensors"
    with pytest.raises(ValueError, match="shape"):
        check_fit(DQN((4,), 2, DQNConfig(**SMALL)), data)
    with pytest.raises(ValueError, match="actions"):
        check_fit(DQN((3,), 5, DQNConfig(**SMALL)), data)
    with pytest.raises(ValueError, match="no transition"):
        check_fit(DQN((3,), 2, DQNConfig(**SMALL)), data.select(slice(0, 0)))
    with pytest.raises(ValueError, match="signs before n_step"):
        check_fit(DQN((3,), 2, DQNConfig(**SMALL, clip_rewards=True)), n_step(data, 3, 0.9))
    train(DQN((3,), 2, DQNConfig(**SMALL)), data, updates=2, checkpoint=place)
    with pytest.raises(ValueError, match="batch_size"):
        train(DQN((3,), 2, DQNConfig(**SMALL)), data, updates=4, batch_size=8, checkpoint=place, resume=True)
    other = dataclasses.replace(DQNConfig(**SMALL), learning_rate=0.5)
    with pytest.raises(ValueError, match="learning_rate"):
        train(DQN((3,), 2, other), data, updates=4, checkpoint=place, resume=True)
    with pytest.raises(ValueError, match="log"):
        train(DQN((3,), 2, DQNConfig(**SMALL)), one_hot_log(9), updates=4, checkpoint=place, resume=True)
    with pytest.raises(ValueError, match="updates"):
        train(DQN((3,), 2, DQNConfig(**SMALL)), data, updates=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": 1.0}, "gamma"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"tau": 0.0}, "tau"),
        ({"huber": -1.0}, "huber"),
        ({"alpha": -1.0}, "alpha"),
        ({"smallest": 1.0}, "smallest"),
        ({"confidences": 0}, "confidences"),
        ({"budget": "sum"}, "budget"),
        ({"hinge": 1.0}, "hinge"),
        ({"method": "other"}, "method"),
        ({"hidden": (0,)}, "hidden"),
        ({"body": "vgg"}, "body"),
    ],
)
def test_settings_out_of_range_are_refused(
    options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # our own message, not the checker's
    with pytest.raises(ValueError, match=message):
        CCVLConfig(**options)


def test_wrong_calls_are_refused() -> None:
    with pytest.raises(ValueError, match="bonus"):
        DeepCCVL((3,), 2, CCVLConfig(method="bonus"))
    with pytest.raises(ValueError, match="2 actions"):
        DQN((3,), 1)
    with pytest.raises(TypeError, match="DQNConfig"):
        DQN((3,), 2, cast("Any", CQLConfig()))
    learner = DeepCCVL((3,), 2, CCVLConfig(**SMALL))
    with pytest.raises(ValueError, match="shape"):
        learner.q(torch.zeros(2, 4), 0.1)
    with pytest.raises(ValueError, match="outside"):
        learner.q(torch.zeros(2, 3), 0.0)
