"""What the command line names: graphs, devices, models, and files to write."""

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from poet import legacy, zoo
from poet.graph import Graph
from poet.io import load_graph
from poet.problem import Objective


def find_graph(name: str, options: Mapping[str, Any]) -> Graph:
    """A graph of the zoo, one of the original's as `legacy:NAME`, or a file that `save_graph` wrote.

    Args:
        name: What was asked for.
        options: For the zoo; entries that are None were not given.

    Raises:
        ValueError: If there is no such graph, or it does not have such an option.

    Example:
        >>> find_graph("legacy:linear", {}).name
        'legacy linear, batch 1'
    """
    given = {key: value for key, value in options.items() if value is not None}
    if name.startswith("legacy:"):
        _only(name, given, "batch")
        return legacy.graph(name.removeprefix("legacy:"), **given)
    if name.endswith(".json"):
        _only(name, given)
        return load_graph(name)
    if name not in zoo.names():
        networks, originals = ", ".join(zoo.names()), ", ".join(legacy.names())
        raise ValueError(
            f"{name!r} is no graph: give one of {networks}; legacy: and one of {originals}; or a .json file that "
            "poet.save_graph wrote"
        )
    try:
        return zoo.load(name, **given)
    except TypeError as error:
        raise ValueError(f"{name} does not have one of the options {', '.join(given)}: {error}") from None


def _only(name: str, given: Mapping[str, Any], *allowed: str) -> None:
    others = ", ".join(key for key in given if key not in allowed)
    if others:
        raise ValueError(f"{name} is given as it is and does not take {others}: leave it out")


def find_objective(text: str) -> Objective:
    """The objective `"energy"`, `"time"`, or weights of a joule and of a second as `"1:0.5"`.

    Raises:
        ValueError: If it is none of these.

    Example:
        >>> find_objective("1:0.5")
        Objective(energy=1.0, time=0.5)
    """
    energy, colon, time = text.partition(":")
    try:
        return Objective(float(energy), float(time)) if colon else Objective.of(text)
    except ValueError as error:
        raise ValueError(f"objective must be energy, time, or weights as 1:0.5, got {text!r} ({error})") from None


def find_model(name: str, options: Mapping[str, int]) -> tuple[Any, Any, Any]:
    """A built-in model by name, or what `module:function` returns: model, loss function, batch.

    Args:
        name: What was asked for; modules are found from the present folder too.
        options: Sizes of a built-in model.

    Raises:
        ValueError: If there is no such model or function.
        TypeError: If the function returns something else.
    """
    if ":" not in name:
        from poet.claims.models import MODELS

        if name not in MODELS:
            raise ValueError(f"{name!r} is no model: give {', '.join(MODELS)}, or module:function")
        return MODELS[name](**options)
    module, _, function = name.partition(":")
    made = _function(module, function)()
    if not isinstance(made, tuple) or len(made) != 3:
        raise TypeError(f"{name} returned a {type(made).__name__}; return (model, loss_fn, (inputs, targets))")
    return made


def _function(module: str, name: str) -> Callable[[], Any]:
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        found = getattr(import_module(module), name, None)
    finally:
        sys.path.remove(here)
    if not callable(found):
        raise ValueError(f"the module {module} has no function {name!r}")
    return found
