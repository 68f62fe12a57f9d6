"""Modules of erniekit that are not rehearsed. Others only name them, or need what the other machine may lack.

They hold the configuration (pydantic), pictures (Pillow) and Paddle's processes on gloo.
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

_ABSENT = (
    "erniekit.config.schema",
    "erniekit.data.media.images",
    "erniekit.data.media.item",
    "erniekit.data.media.patches",
    "erniekit.distributed.gloo",
)
# Packages of which single modules are used, without what the package itself imports.
_BARE = ("erniekit.config",)


class _Absent:
    """Stands for a class or function of such a module: it can be named, and nothing else."""

    def __init__(self, name: str) -> None:
        self.__dict__["_name"] = name

    def _fail(self) -> NoReturn:
        raise AttributeError(f"{self.__dict__['_name']} is not part of the rehearsal")

    def __getattr__(self, name: str) -> Any:
        self._fail()

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        self._fail()


class _AbsentModule(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Absent(f"{self.__name__}.{name}")


def leave_out() -> None:
    """Put empty modules in their place. Before they are imported."""
    import erniekit

    for name in (*_ABSENT, *_BARE):
        if name in sys.modules:
            raise RuntimeError(f"{name} is imported already")
        module = ModuleType(name) if name in _BARE else _AbsentModule(name)
        module.__spec__ = ModuleSpec(name, None)
        if name in _BARE:
            module.__path__ = [str(Path(erniekit.__file__).parent / name.rpartition(".")[2])]
        sys.modules[name] = module
