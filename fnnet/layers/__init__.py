"""The layers: one file for each family, equations first, the dataclass that binds them last."""

from ._conv import Conv, ConvTranspose, convolve, cross_correlate, pad_full, rot180
from ._dense import Dense
from ._dropout import Dropout
from ._flatten import Flatten
from ._layer import ExampleKeys, Layer, LayerError, example_keys, layer
from ._pool import GlobalMeanPool, MaxPool, MeanPool, Upsample, unsample_max, unsample_mean

__all__ = [
    "Conv",
    "ConvTranspose",
    "Dense",
    "Dropout",
    "ExampleKeys",
    "Flatten",
    "GlobalMeanPool",
    "Layer",
    "LayerError",
    "MaxPool",
    "MeanPool",
    "Upsample",
    "convolve",
    "cross_correlate",
    "example_keys",
    "layer",
    "pad_full",
    "rot180",
    "unsample_max",
    "unsample_mean",
]
