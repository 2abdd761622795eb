"""For the reference: griffe, which reads the source, is told that ``@layer`` makes a dataclass, so that signatures and defaults
are shown."""

from typing import Any

import griffe


class LayersAsDataclasses(griffe.Extension):
    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        modules = [pkg]
        for module in modules:
            modules += [m for m in module.modules.values() if not m.is_alias]
            for of_layer in module.classes.values():
                if not of_layer.is_alias and any(d.callable_path.rpartition(".")[2] == "layer" for d in of_layer.decorators):
                    of_layer.decorators.append(griffe.Decorator(griffe.ExprName("dataclasses.dataclass"), lineno=None, endlineno=None))
