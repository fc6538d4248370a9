"""The path of the module whose forward is running, for the names of what it saves."""

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, final

import torch


@final
class ModuleNames:
    """Hooks on a model's modules, there only while somebody follows.

    Args:
        model: The model; held weakly.
        current: Returns the stack of paths of the calling thread, or None if it does not follow.
    """

    def __init__(self, model: torch.nn.Module, current: Callable[[], list[str] | None]) -> None:
        self._model, self._current = weakref.ref(model), current
        self._lock = threading.Lock()
        self._followers = 0
        self._handles: list[Any] = []

    @contextmanager
    def following(self) -> Iterator[None]:
        """Keep the hooks in place; may be nested and used by several threads."""
        with self._lock:
            self._followers += 1
            if self._followers == 1:
                self._attach()
        try:
            yield
        finally:
            with self._lock:
                self._followers -= 1
                if self._followers == 0:
                    self._detach()

    def _attach(self) -> None:
        model = self._model()
        if model is None:
            return
        for name, module in model.named_modules():
            if isinstance(module, torch.jit.ScriptModule):
                continue
            self._handles.append(module.register_forward_pre_hook(self._entering(name)))
            self._handles.append(module.register_forward_hook(self._leaving, always_call=True))

    def _detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _entering(self, name: str) -> Callable[..., None]:
        def enter(module: Any, inputs: Any) -> None:
            stack = self._current()
            if stack is not None:
                stack.append(name)

        return enter

    def _leaving(self, module: Any, inputs: Any, output: Any) -> None:
        stack = self._current()
        if stack:
            stack.pop()
