"""Options of `ccvf train` as settings of a method; an option of another method is refused, not ignored."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, final

from ccvf.configs import BCConfig, CCVLConfig, CQLConfig, DQNConfig, IQLConfig, LearnerConfig, REMConfig

__all__ = ["METHODS", "Settings", "settings_of"]

METHODS = ("ccvl", "dqn", "cql", "rem", "iql", "bc", "tabular")
BONUSES = ("exact", "hash", "rnd", "elliptical", "ensemble", "behaviour")
_CONFIGS: dict[str, type[LearnerConfig]] = {
    "ccvl": CCVLConfig, "dqn": DQNConfig, "cql": CQLConfig, "rem": REMConfig, "iql": IQLConfig, "bc": BCConfig,
}  # fmt: skip
_DEEP = ("ccvl", "dqn", "cql", "rem", "iql", "bc")
# option: the field of the configuration, and the methods that have it
_FIELDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "lr": ("learning_rate", _DEEP), "body": ("body", _DEEP), "hidden": ("hidden", _DEEP),
    "target_period": ("target_period", _DEEP), "clip_rewards": ("clip_rewards", _DEEP), "amp": ("amp", _DEEP),
    "compile": ("compile", _DEEP), "budget": ("budget", ("ccvl", "tabular")), "relative": ("relative", ("ccvl",)),
    "hold": ("lift", ("ccvl",)), "head": ("head", ("ccvl",)), "smallest": ("smallest", ("ccvl", "tabular")),
    "confidences": ("confidences", ("ccvl", "tabular")), "heads": ("heads", ("rem",)),
    "expectile": ("expectile", ("iql",)), "temperature": ("temperature", ("iql",)),
    "union": ("union", ("tabular",)), "reward_range": ("reward_range", ("tabular",)),
    "alpha": ("alpha", ("ccvl", "cql", "tabular")),
    "penalty": ("penalty", ("ccvl",)), "updates": ("updates", _DEEP), "batch": ("batch", _DEEP),
    "n_step": ("n_step", _DEEP),
}  # fmt: skip
_TABULAR = {"alpha": 0.1, "budget": "box", "union": "none", "confidences": None, "smallest": None,
            "reward_range": None}  # fmt: skip
_TRAINING = {"updates": 20_000, "batch": 32, "n_step": 1}


@final
@dataclass(frozen=True)
class Settings:
    """What a training is, beyond its log.

    Attributes:
        method: One of `METHODS`.
        config: All settings of the method, as JSON values.
        penalty: Of ccvl: "cql", or the name of a bonus.
        updates: Gradient steps; 0 for tabular.
        batch: Transitions a step; 0 for tabular.
        n_step: Steps that returns look ahead.
        seed: Of weights, batches and bonus.
    """

    method: str
    config: Mapping[str, Any]
    penalty: str
    updates: int
    batch: int
    n_step: int
    seed: int

    @property
    def conditioned(self) -> bool:
        """Whether its values depend on a confidence."""
        return self.method in ("ccvl", "tabular")

    @property
    def gamma(self) -> float:
        """Discount of a step."""
        return float(self.config["gamma"])

    @property
    def smallest(self) -> float:
        """The most conservative confidence that it knows."""
        return float(self.config["smallest"]) if self.conditioned else 1.0

    def plain(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return asdict(self) | {"config": {key: _plain(value) for key, value in self.config.items()}}

    def difference(self, other: "Settings") -> list[str]:
        """Where another training differs, in words.

        Args:
            other: It.

        Returns:
            One entry a difference; how often is trained does not count.
        """
        mine, theirs = self.flat(), other.flat()
        return [f"{key} was {value} and is now {theirs.get(key)}" for key, value in mine.items()
                if theirs.get(key) != value]  # fmt: skip

    def flat(self) -> dict[str, Any]:
        """Everything by name that decides what is learnt: neither how often is trained, nor how it is computed."""
        found = self.plain()
        config = found.pop("config")
        del found["updates"]
        # "method" of a configuration is the kind of its penalty, which `penalty` tells
        return found | {key: value for key, value in config.items() if key not in ("compile", "method")}

    def learner_config(self) -> LearnerConfig:
        """The configuration of the learner."""
        return _CONFIGS[self.method](**self.config)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def settings_of(method: str, gamma: float, seed: int, given: Mapping[str, Any], n_states: int | None) -> Settings:
    """Settings from options.

    Args:
        method: One of `METHODS`.
        gamma: Discount of a step.
        seed: Of everything.
        given: Options by name; None or False: not given.
        n_states: Number of states, of a log of state numbers.

    Returns:
        The settings, checked.

    Raises:
        ValueError: If an option is of another method, or out of range.

    Example:
        >>> settings_of("cql", 0.99, 0, {"alpha": "4", "lr": None}, None).config["alpha"]
        4.0
    """
    asked = {name: value for name, value in given.items() if value is not None and value is not False}
    for name in asked:
        if method not in (methods := _FIELDS[name][1]):
            flag = "--" + name.replace("_", "-")
            raise ValueError(f"{flag} is of {', '.join(methods)} and not of {method}: leave it out")
    training = {name: asked.pop(name, usual) for name, usual in _TRAINING.items()}
    penalty = asked.pop("penalty", "cql" if method == "ccvl" else "")
    options = {_FIELDS[name][0]: value for name, value in asked.items()}
    if "lift" in options:
        options["lift"] = False  # asked for by its opposite, --hold
    if "alpha" in options:
        options["alpha"] = _alpha(options["alpha"], method)
    if method == "tabular":
        return Settings(method, _tabular(gamma, options, n_states), penalty, 0, 0, 1, seed)
    if penalty not in ("", "cql", *BONUSES):
        raise ValueError(f"--penalty {penalty!r} is unknown: give cql, {', '.join(BONUSES)}")
    if method == "ccvl":
        options["method"] = "cql" if penalty == "cql" else "bonus"
    for name, value in training.items():
        if value < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {value}; give 1 or more")
    config = _CONFIGS[method](gamma=gamma, n_states=n_states, **options)
    return Settings(method, asdict(config), penalty, **training, seed=seed)


def _alpha(text: str, method: str) -> float | str:
    if text == "hoeffding" and method == "tabular":
        return text
    try:
        return float(text)
    except ValueError:
        more = ", or hoeffding," if method == "tabular" else ""
        raise ValueError(f"--alpha is a number{more} and not {text!r}") from None


def _tabular(gamma: float, options: dict[str, Any], n_states: int | None) -> dict[str, Any]:
    if n_states is None:
        raise ValueError(
            "method tabular needs a log whose observations are state numbers; leave --method out for others"
        )
    found: dict[str, Any] = {**_TABULAR, "gamma": gamma, **options, "n_states": n_states}
    found["reward_range"] = None if found["reward_range"] is None else list(found["reward_range"])
    box = found["budget"] == "box"
    found["confidences"] = found["confidences"] or (60 if box else 800)
    found["smallest"] = found["smallest"] or (1e-6 if box else 1e-8)
    return found
