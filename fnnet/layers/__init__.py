"""The layers: one file for each family, equations first, the dataclass that binds them last."""

from ._attention import Attention, Position
from ._cells import GRU, LSTM, RNN, gru_step, gru_step_error, lstm_step, lstm_step_error
from ._composite import Composite, Identity, Join, Network, Parallel, Residual, add, concatenate
from ._conv import Conv, ConvTranspose, convolve, cross_correlate, pad_full, rot180
from ._dense import Dense
from ._dropout import Dropout
from ._embedding import Embedding
from ._flatten import Flatten
from ._layer import ExampleKeys, Layer, LayerError, Sends, Shard, example_keys, layer
from ._norm import BatchNorm, GroupNorm, LayerNorm, RMSNorm
from ._pool import GlobalMeanPool, MaxPool, MeanPool, Upsample, unsample_max, unsample_mean
from ._sequence import Bidirectional, LastStep, length_mask
from ._shared import Recompute, Repeat, Tied
from ._swapped import Rule, Swapped, unswapped
from ._time import forward_in_time, state_errors, through_time

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "Attention",
    "BatchNorm",
    "Bidirectional",
    "Composite",
    "Conv",
    "ConvTranspose",
    "Dense",
    "Dropout",
    "Embedding",
    "ExampleKeys",
    "Flatten",
    "GlobalMeanPool",
    "GroupNorm",
    "Identity",
    "Join",
    "LastStep",
    "Layer",
    "LayerError",
    "LayerNorm",
    "MaxPool",
    "MeanPool",
    "Network",
    "Parallel",
    "Position",
    "RMSNorm",
    "Recompute",
    "Repeat",
    "Residual",
    "Rule",
    "Sends",
    "Shard",
    "Swapped",
    "Tied",
    "Upsample",
    "add",
    "concatenate",
    "convolve",
    "cross_correlate",
    "example_keys",
    "forward_in_time",
    "gru_step",
    "gru_step_error",
    "layer",
    "length_mask",
    "lstm_step",
    "lstm_step_error",
    "pad_full",
    "rot180",
    "state_errors",
    "through_time",
    "unsample_max",
    "unsample_mean",
    "unswapped",
]
