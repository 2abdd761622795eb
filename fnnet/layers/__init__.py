"""The layers: one file for each family, equations first, the dataclass that binds them last."""

from ._dense import Dense
from ._dropout import Dropout
from ._flatten import Flatten
from ._layer import ExampleKeys, Layer, LayerError, example_keys, layer

__all__ = ["Dense", "Dropout", "ExampleKeys", "Flatten", "Layer", "LayerError", "example_keys", "layer"]
