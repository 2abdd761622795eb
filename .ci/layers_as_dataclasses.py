"""For the reference: griffe, which reads the source, is told that ``@layer`` makes a dataclass, so that signatures and
defaults are shown."""

from typing import Any

import griffe

DATACLASS = griffe.Decorator(griffe.ExprName("dataclasses.dataclass"), lineno=None, endlineno=None)


class LayersAsDataclasses(griffe.Extension):
    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        modules = [pkg]
        for module in modules:
            modules += [inner for inner in module.modules.values() if not inner.is_alias]
            for found in module.classes.values():
                if not found.is_alias and any(d.callable_path.endswith(".layer") for d in found.decorators):
                    found.decorators.append(DATACLASS)
