"""PyTorch, eager and by ``torch.compile``."""
# pyright: reportMissingImports=false

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

import fnnet as fn

from ..problems import GRADIENT, RATE, STEP, Problem
from .shared import channels_first, channels_when_flattened, check, is_network


def torch_calls(problem: Problem, name: str, compiled: bool) -> dict[str, Callable[..., Any]]:
    import torch

    if not is_network(problem):
        raise NotImplementedError
    net, cost, params, x, y, m, _ = problem.inputs
    module = torch_module(net, params, channels_when_flattened(net, x.shape[1:]))
    inputs, targets = (torch.tensor(np.asarray(a)) for a in (x, y))
    if inputs.ndim == 4:
        inputs = inputs.permute(0, 3, 1, 2).contiguous()
    targets = targets.long() if cost is fn.log_likelihood else targets
    optimizer = torch.optim.SGD(module.parameters(), lr=RATE)
    rows = torch.tensor(np.asarray(next(iter(problem.kinds[STEP].values())).given[3])).long()
    if compiled:
        torch._dynamo.reset()  # or the networks before count towards its limit of compilations
    forward: Any = torch.compile(module) if compiled else module

    def value(x, y):
        z = forward(x)
        if cost is fn.cross_entropy:
            return torch.nn.functional.binary_cross_entropy_with_logits(z, y, reduction="sum") / len(x)
        return torch.nn.functional.cross_entropy(z.flatten(0, -2), y.flatten(), reduction="sum") / len(x)

    def gradient():
        module.zero_grad()
        value(inputs[:m], targets[:m]).backward()
        return ()

    def step():
        for of_step in rows:
            optimizer.zero_grad()
            value(inputs[of_step], targets[of_step]).backward()
            optimizer.step()
        return ()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check(problem, name, value(inputs[:m], targets[:m]).detach())
        gradient()
    return {GRADIENT: gradient, STEP: step}


def torch_module(net: Any, params: Any, images: tuple[int, ...]) -> Any:
    import torch
    from torch import nn

    tensor = lambda a: torch.tensor(np.asarray(a))  # noqa: E731

    def set_to(module, **leaves):
        module.load_state_dict({name: tensor(leaf) for name, leaf in leaves.items()}, strict=False)
        return module

    class Last(nn.Module):
        def forward(self, a):
            return a[:, -1]

    class Cell(nn.Module):
        def __init__(self, cell, p):
            super().__init__()
            kind = getattr(nn, type(cell).__name__)
            self.cell = set_to(kind(p["w_x"].shape[1], cell.n, batch_first=True), **fn.to_torch(cell, p))

        def forward(self, a):
            return self.cell(a)[0]

    class Attend(nn.Module):
        def __init__(self, heads):
            super().__init__()
            self.heads = heads

        def forward(self, a):
            m, steps, width = a.shape
            parts = a.view(m, steps, 3, self.heads, width // 3 // self.heads).permute(2, 0, 3, 1, 4)
            o = nn.functional.scaled_dot_product_attention(*parts, is_causal=True)
            return o.transpose(1, 2).reshape(m, steps, width // 3)

    class Positions(nn.Module):
        def __init__(self, w):
            super().__init__()
            self.w = nn.Parameter(tensor(w))

        def forward(self, a):
            return a + self.w

    class Skip(nn.Module):
        def __init__(self, branch):
            super().__init__()
            self.branch = branch

        def forward(self, a):
            return a + self.branch(a)

    activations = {fn.sigmoid: nn.Sigmoid, fn.relu: nn.ReLU, fn.tanh: nn.Tanh, fn.gelu: nn.GELU}

    def parts_of(layer: Any, p: Any, last: bool) -> list[Any]:
        match layer:
            case fn.Network():
                return [
                    part for i, (inner, q) in enumerate(zip(layer, p, strict=True))
                    for part in parts_of(inner, q, last and i == len(layer) - 1)
                ]  # fmt: skip
            case fn.Parallel() if isinstance(layer.layers[0], fn.Identity):
                return [Skip(nn.Sequential(*parts_of(layer.layers[1], p[1], False)))]
            case fn.Dense():
                module = nn.Linear(p["w"].shape[1], layer.n_out, layer.bias)
                bias = {"bias": p["b"]} if layer.bias else {}
                own = [set_to(module, weight=channels_first(p["w"], images), **bias)]
            case fn.Conv():
                w, along = p["w"].transpose(3, 2, 0, 1), {"stride": layer.stride, "padding": layer.padding}
                module = nn.Conv2d(w.shape[1], w.shape[0], w.shape[2:], bias=layer.bias, **along)
                own = [set_to(module, weight=w, **({"bias": p["b"]} if layer.bias else {}))]
            case fn.MaxPool():
                return [nn.MaxPool2d(layer.size)]
            case fn.Flatten():
                return [nn.Flatten()]
            case fn.LayerNorm():
                return [set_to(nn.LayerNorm(len(p["g"]), layer.eps), weight=p["g"], bias=p["b"])]
            case fn.BatchNorm():
                return [set_to(nn.BatchNorm2d(len(p["g"]), layer.eps, layer.momentum), weight=p["g"], bias=p["b"])]
            case fn.GlobalMeanPool():
                return [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
            case fn.LSTM() | fn.GRU():
                return [Cell(layer, p)]
            case fn.LastStep():
                return [Last()]
            case fn.Embedding():
                return [set_to(nn.Embedding(layer.tokens, layer.n), weight=p["w"])]
            case fn.Position():
                return [Positions(p["w"])]
            case fn.Attention():
                return [Attend(layer.heads)]
            case _:
                raise NotImplementedError
        follows = not last and layer.activation is not fn.linear
        return [*own, activations[layer.activation]()] if follows else own

    inner, expanded = (net.net, net.expanded(params)) if isinstance(net, fn.Tied) else (net, params)
    module = nn.Sequential(*parts_of(inner, expanded, True))
    if isinstance(net, fn.Tied):
        module[-1].weight = module[0].weight
    return module


def torch_cell(problem: Problem) -> dict[str, Callable[..., Any]]:
    """A recurrent layer's outputs and gradients for a given ∂C/∂h."""
    import torch

    if not isinstance(problem.inputs[0], fn.RNN | fn.LSTM | fn.GRU):
        raise NotImplementedError
    layer, params, x, da = problem.inputs
    module = getattr(torch.nn, type(layer).__name__)(x.shape[-1], layer.n, batch_first=True)
    module.load_state_dict({name: torch.tensor(np.asarray(a)) for name, a in fn.to_torch(layer, params).items()})
    inputs, errors = torch.tensor(np.asarray(x), requires_grad=True), torch.tensor(np.asarray(da))

    def gradient():
        module.zero_grad()
        inputs.grad = None
        module(inputs)[0].backward(errors)
        return ()

    return {GRADIENT: gradient}


def torch_eager(problem: Problem) -> dict[str, Callable[..., Any]]:
    return torch_calls(problem, "PyTorch", False) if is_network(problem) else torch_cell(problem)


def torch_compiled(problem: Problem) -> dict[str, Callable[..., Any]]:
    return torch_calls(problem, "torch.compile", True)
