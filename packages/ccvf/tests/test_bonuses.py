"""What every estimate of sampling error must do, whatever it is."""

import numpy as np
import pytest
import torch

from ccvf.bonuses import BONUSES, make_bonus, restore_bonus
from ccvf.penalties import Bonus
from ccvf.transitions import Transitions

QUICK = {name: {"steps": 60, "learning_rate": 0.01} for name in ("rnd", "ensemble", "behaviour")}
STATES = 6


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def log(kind):
    """60 transitions of state numbers, of vectors or of small pictures."""
    rng = np.random.default_rng(0)
    observations = {
        "states": rng.integers(STATES, size=60),
        "vectors": rng.normal(size=(60, 3)),
        "pictures": rng.random((60, 6, 6, 2)) < 0.3,
    }[kind]
    actions = rng.integers(3, size=60)
    return Transitions.from_arrays(
        observations, actions, np.zeros(60), np.roll(observations, -1, 0), np.zeros(60, bool), n_actions=4
    )


CASES = [(name, kind) for name in BONUSES for kind in ("states", "vectors", "pictures")
         if (name, kind) != ("hash", "states")]  # fmt: skip


def made(name, kind, **options):
    known = {"n_states": STATES} if kind == "states" and name not in ("exact", "hash") else {}
    return make_bonus(name, **QUICK.get(name, {}), **known, **options)


def observations(data):
    found = data.observations()
    return torch.as_tensor(found.astype(np.float32) if found.dtype == np.float64 else found)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_values_for_every_action(name, kind):
    data = log(kind)
    bonus = made(name, kind, unseen=1.5)
    assert bonus.fit(data, generator()) is bonus
    values = bonus(observations(data))
    assert values.shape == (60, 4)
    assert values.dtype == torch.float32
    assert not values.requires_grad
    assert bool((values > 0).all())
    assert bool((values <= 1.5).all())
    # The fourth action was never logged.
    assert float(values[:, 3].mean()) > float(values.gather(1, torch.as_tensor(data.actions)[:, None]).mean())


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_the_generator_decides_and_the_global_one_is_left_alone(name, kind):
    data, before = log(kind), torch.random.get_rng_state()
    first, again = (made(name, kind).fit(data, generator(3))(observations(data)) for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_a_state_makes_the_same_estimate(name, kind):
    data = log(kind)
    bonus = made(name, kind, unseen=2).fit(data, generator())
    tensors, extra = bonus.state()
    restored = restore_bonus(tensors, extra)
    assert type(restored) is type(bonus)
    assert torch.equal(restored(observations(data)), bonus(observations(data)))
    assert all(isinstance(value, torch.Tensor) for value in tensors.values())


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_the_precision_of_the_training_around_does_not_matter(name, kind):
    data = log(kind)
    bonus = made(name, kind).fit(data, generator())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = bonus(observations(data))
    assert torch.equal(inside, bonus(observations(data)))


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_rows_do_not_depend_on_their_batch(name, kind):
    data = log(kind)
    bonus, x = made(name, kind).fit(data, generator()), observations(data)
    alone = torch.cat([bonus(x[row : row + 1]) for row in range(8)])
    torch.testing.assert_close(alone, bonus(x)[:8])


@pytest.mark.parametrize("name", list(BONUSES))
def test_not_fitted_or_of_another_kind(name):
    bonus = make_bonus(name)
    assert isinstance(bonus, Bonus)
    with pytest.raises(ValueError, match="fit"):
        bonus(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="fit"):
        bonus.state()
    with pytest.raises(ValueError, match="another"):
        bonus.restore({}, {"bonus": "another"})


@pytest.mark.parametrize("name", list(BONUSES))
def test_an_empty_log_is_refused(name):
    with pytest.raises(ValueError, match="transition"):
        make_bonus(name).fit(log("vectors").select(slice(0, 0)), generator())


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("thompson", {}, "thompson"),
        ("exact", {"unseen": 0.5}, "seen once"),
        ("exact", {"unseen": float("inf")}, "seen once"),
        ("hash", {"bits": 0}, "1 to 62"),
        ("hash", {"bits": 63}, "1 to 62"),
        ("elliptical", {"ridge": 0}, "ridge"),
        ("rnd", {"steps": 0}, "steps"),
        ("rnd", {"learning_rate": 0}, "learning_rate"),
        ("ensemble", {"members": 0}, "members"),
    ],
)
def test_options_out_of_range_are_refused(name, options, says):
    with pytest.raises(ValueError, match=says):
        make_bonus(name, **options)
