"""Statistics of normalisation taken from data, at once, in place of moving averages."""

import dataclasses
from typing import Any

from jax import Array

from .given import check_net
from .layers._composite import has_moving, is_walked
from .layers._layer import Layer, Params, as_array, as_data, layer, run_forward
from .programs import program

__all__ = ["calibrate"]


@layer
class _AtInference(Layer):
    """A layer that runs as at inference, whatever it is told."""

    net: Layer

    def init(self, key, input_shape):
        return self.net.init(key, input_shape)

    def forward(self, params, a_in, *, mask=None):
        return run_forward(self.net, params, a_in, mask=mask)


def calibrate(net: Layer, params: Params, x: Any, *, mask: Any = None) -> Params:
    """The parameters with the statistics of x, such as those of `BatchNorm`: exact ones instead of moving averages.

    x runs through the net as one batch: each layer with statistics uses those of x, and all others run as at inference (no
    dropout). A layer with a field ``momentum`` takes the statistics of x alone. Afterwards inference on x normalises as
    training on the whole of x did.

    Args:
        net: a network or a single layer.
        params: from ``net.init`` or ``fit``; the same for a net without such statistics.
        x: inputs (m, ...), as much of the training set as fits.
        mask: (m, T), True for the valid steps of sequences.

    Raises:
        ValueError: for something that is no layer, and what the layers refuse.
    """
    check_net(net)
    if not has_moving(net):
        return params

    def change(part: Layer) -> Layer:
        if is_walked(part):
            return part.mapped(change)  # pyright: ignore[reportAttributeAccessIssue]
        if type(part).moving is Layer.moving:
            return _AtInference(part)
        fields = {field.name for field in dataclasses.fields(part)}  # pyright: ignore[reportArgumentType]
        return dataclasses.replace(part, momentum=1.0) if "momentum" in fields else part  # pyright: ignore

    return program(_calibrated, change(net))(params, as_data("x", x), as_array(mask))


def _calibrated(net: Layer, params: Params, x: Array, mask: Any) -> Params:
    return net.moving(params, run_forward(net, params, x, train=True, mask=mask)[1])
