"""Which module is running while a step is recorded."""

import sys
from typing import Any, final

from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from poet.trace_call import TraceError
from poet.trace_record import Recorder


@final
class ModulePaths:
    """A context in which a recorder knows the module that is running."""

    def __init__(self, recorder: Recorder, model: nn.Module) -> None:
        self._recorder = recorder
        self._names = {id(module): name or type(module).__name__ for name, module in model.named_modules()}
        self._hooks: list[Any] = []
        self._handled: Any = None

    def __enter__(self) -> None:
        self._handled = sys.exc_info()[1]
        # global hooks: hooks on the modules themselves would switch off torch's fast paths, and so change the numbers
        self._hooks = [
            register_module_forward_pre_hook(self._enter),
            register_module_forward_hook(self._leave, always_call=True),
        ]

    def __exit__(self, *error: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _enter(self, module: nn.Module, _args: Any) -> None:
        name = self._names.get(id(module))
        if name is None:
            return
        if self._recorder.phase == "backward":
            raise TraceError(
                f"module {name!r} runs again in the backward pass (torch.utils.checkpoint?): recomputation is what a "
                "schedule decides, so remove the checkpointing from the model"
            )
        self._recorder.modules.append(name)

    def _leave(self, module: nn.Module, _args: Any, _result: Any) -> None:
        modules = self._recorder.modules
        if id(module) in self._names and modules:
            name = modules.pop()
            if sys.exc_info()[1] is not self._handled and self._recorder.failed is None:
                self._recorder.failed = name
