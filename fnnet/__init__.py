"""fnnet: neural networks in JAX whose backpropagation is written by hand.

Read it, check it against ``jax.grad``, change it.
"""

from . import datasets, dbn, diagnostics, initializers, rbm
from .activations import (
    Activation,
    elu,
    gelu,
    gelu_tanh,
    leaky_relu,
    linear,
    relu,
    sigmoid,
    silu,
    softmax,
    softplus,
    step,
    tanh,
)
from .backpropagation import Backprop, backprop, objective, value_and_grad
from .calibration import calibrate
from .collectives import Collective, Collectives, collectives
from .costs import Cost, Curvature, accuracy, cross_entropy, log_likelihood, quadratic
from .curvature import fisher_diagonal, ggn_diagonal, ggnvp, hutchinson_diagonal, hvp
from .devices import data_parallel
from .divergence import Diverged
from .gradcheck import Report, Row, assert_gradients, audit, check_gradient, check_layer, check_vjp, compare_gradients
from .interop import as_function, from_torch, manual_vjp, to_torch
from .kfac import Factors, kfac_factors
from .lanczos import Spectrum, spectrum
from .layers import (
    GRU,
    LSTM,
    RNN,
    Attention,
    BatchNorm,
    Bidirectional,
    Composite,
    Conv,
    ConvTranspose,
    Dense,
    Dropout,
    Embedding,
    ExampleKeys,
    Flatten,
    GlobalMeanPool,
    GroupNorm,
    Identity,
    Join,
    LastStep,
    Layer,
    LayerError,
    LayerNorm,
    MaxPool,
    MeanPool,
    Network,
    Parallel,
    Position,
    Recompute,
    Repeat,
    Residual,
    RMSNorm,
    Rule,
    Sends,
    Shard,
    Swapped,
    Tied,
    Upsample,
    add,
    concatenate,
    convolve,
    cross_correlate,
    example_keys,
    layer,
    length_mask,
    pad_full,
    rot180,
    unsample_max,
    unsample_mean,
)
from .optimizers import (
    CosineDecay,
    ExponentialDecay,
    StepDecay,
    adam,
    adamw,
    apply_updates,
    chain,
    clip,
    clip_by_global_norm,
    natural_gradient,
    sgd,
)
from .penalties import L1, L2
from .saving import load, save
from .shares import (
    GradientStatistics,
    clipped_value_and_grad,
    example_gradients,
    gradient_gram,
    gradient_norms,
    gradient_statistics,
    input_gradient,
)
from .summary import LayerSummary, Summary, summary
from .swaps import (
    Clip,
    DirectFeedback,
    EProp,
    FeedbackAlignment,
    KolenPollack,
    Noise,
    SignSymmetry,
    TargetPropagation,
)
from .sweep import Sweep, sweep
from .training import EarlyStopping, History, TrainingState, evaluate, fit

__version__ = "0.1.0"

__all__ = [
    # activations
    "Activation", "elu", "gelu", "gelu_tanh", "leaky_relu", "linear", "relu", "sigmoid", "silu", "softmax", "softplus",
    "step", "tanh",
    # costs
    "Cost", "Curvature", "accuracy", "cross_entropy", "log_likelihood", "quadratic",
    # layers
    "Attention", "BatchNorm", "Bidirectional", "Conv", "ConvTranspose", "Dense", "Dropout", "Embedding", "Flatten", "GRU",
    "GlobalMeanPool", "GroupNorm", "LSTM", "LastStep", "LayerNorm", "MaxPool", "MeanPool", "Network", "Position", "RMSNorm",
    "RNN", "Upsample",
    # composition
    "Composite", "Identity", "Join", "Parallel", "Recompute", "Repeat", "Residual", "Tied", "add", "concatenate",
    # an equation replaced
    "Clip", "DirectFeedback", "EProp", "FeedbackAlignment", "KolenPollack", "Noise", "Rule", "SignSymmetry", "Swapped",
    "TargetPropagation",
    # convolution and pooling in the notes' words
    "convolve", "cross_correlate", "pad_full", "rot180", "unsample_max", "unsample_mean",
    # sequences
    "length_mask",
    # the layer contract
    "ExampleKeys", "Layer", "LayerError", "Sends", "Shard", "example_keys", "layer",
    # backpropagation
    "Backprop", "as_function", "backprop", "manual_vjp", "objective", "value_and_grad",
    # curvature
    "Factors", "Spectrum", "fisher_diagonal", "ggn_diagonal", "ggnvp", "hutchinson_diagonal", "hvp", "kfac_factors",
    "spectrum",
    # many devices
    "Collective", "Collectives", "collectives", "data_parallel",
    # every example's share
    "GradientStatistics", "clipped_value_and_grad", "example_gradients", "gradient_gram", "gradient_norms",
    "gradient_statistics", "input_gradient",
    # what a network is made of
    "LayerSummary", "Summary", "summary",
    # weights of PyTorch's recurrent layers
    "from_torch", "to_torch",
    # manual against autodiff
    "Report", "Row", "assert_gradients", "audit", "check_gradient", "check_layer", "check_vjp", "compare_gradients",
    # training
    "Diverged", "EarlyStopping", "History", "L1", "L2", "Sweep", "TrainingState", "adam", "adamw", "apply_updates",
    "calibrate", "chain", "clip", "clip_by_global_norm", "evaluate", "fit", "load", "natural_gradient", "save",
    "sgd", "sweep",
    # learning-rate schedules
    "CosineDecay", "ExponentialDecay", "StepDecay",
    # modules
    "datasets", "dbn", "diagnostics", "initializers", "rbm",
]  # fmt: skip
