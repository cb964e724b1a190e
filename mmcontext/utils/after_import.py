"""Callbacks for when another package has been imported, without importing it."""
import importlib.abc
import importlib.util
import sys
from types import ModuleType
from typing import Callable, Dict, List

Callback = Callable[[ModuleType], None]


class _Loader(importlib.abc.Loader):
    """A module's own loader, followed by the callbacks."""

    def __init__(self, loader: importlib.abc.Loader, callbacks: List[Callback]) -> None:
        self._loader = loader
        self._callbacks = callbacks

    def __getattr__(self, name: str):
        return getattr(self._loader, name)

    def create_module(self, spec):
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        # As if there had been no wrapper.
        module.__loader__ = module.__spec__.loader = self._loader
        for callback in self._callbacks:
            callback(module)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the modules with callbacks, by asking the other finders."""

    def __init__(self) -> None:
        self.waiting: Dict[str, List[Callback]] = {}

    def find_spec(self, fullname, path=None, target=None):
        callbacks = self.waiting.pop(fullname, None)
        if callbacks is None:
            return None
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            self.waiting[fullname] = callbacks
            return None
        spec.loader = _Loader(spec.loader, callbacks)
        return spec


_FINDER = _Finder()


def after_import(name: str, callback: Callback) -> None:
    """Call a function with a module as soon as it is imported; immediately if it already is.

    Args:
        name: Full name of the module.
        callback: The function.
    """
    module = sys.modules.get(name)
    if module is not None and not getattr(module.__spec__, '_initializing', False):
        callback(module)
        return
    if _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)
    _FINDER.waiting.setdefault(name, []).append(callback)
