"""Gradients written in NumPy: planted mistakes are named, right but unusual code is not, what is given stays as it was."""

import time
from types import SimpleNamespace

import numpy as np
import pytest

from fnnet import audit

RANDOM = np.random.default_rng(7)


def draw(*shape):
    return RANDOM.standard_normal(shape)


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def probabilities(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def affine(x, w, b):
    return x.reshape(len(x), -1) @ w + b, (x, w, b)


def affine_backward(dout, cache):
    x, w, _ = cache
    return (dout @ w.T).reshape(x.shape), x.reshape(len(x), -1).T @ dout, dout.sum(0)


def columns(x, k):
    """im2col of (m, h, w, c): (m, h', w', k k c)."""
    m, h, w, c = x.shape
    windows = [x[:, i : i + h - k + 1, j : j + w - k + 1] for i in range(k) for j in range(k)]
    return np.concatenate(windows, -1).reshape(m, h - k + 1, w - k + 1, k * k * c)


def conv(x, w):
    k = w.shape[0]
    cols = columns(x, k)
    return cols @ w.reshape(-1, w.shape[-1]), (x.shape, cols, w)


def conv_backward(dout, cache, flip=False, first_only=False, shift=0):
    shape, cols, w = cache
    k, dx = w.shape[0], np.zeros(shape)
    dcols = dout @ w.reshape(-1, w.shape[-1]).T
    h, v = dout.shape[1:3]
    for n, (i, j) in enumerate((i, j) for i in range(k) for j in range(k)):
        part = dcols[..., n * shape[-1] : (n + 1) * shape[-1]]
        i, j = (k - 1 - i, k - 1 - j) if flip else (i, j)
        if n == 0 or not first_only:
            dx[:, i : i + h, j : j + v] += np.roll(part, shift, 1)
    return dx, np.tensordot(cols, dout, ([0, 1, 2], [0, 1, 2])).reshape(w.shape)


def batchnorm(x, gamma, beta, param):
    mean, var = x.mean(0), x.var(0)
    param["running_mean"] = 0.9 * param["running_mean"] + 0.1 * mean
    x_hat = (x - mean) / np.sqrt(var + param["eps"])
    return gamma * x_hat + beta, (x_hat, gamma, np.sqrt(var + param["eps"]))


def batchnorm_backward(dout, cache, mean=True, correlation=True, gain=True):
    x_hat, gamma, std = cache
    u = dout * gamma if gain else dout
    dx = (u - mean * u.mean(0) - correlation * x_hat * (u * x_hat).mean(0)) / std
    return dx, (dout * x_hat).sum(0), dout.sum(0)


def softmax_loss(z, y):
    p, m = probabilities(z), len(z)
    dz = p.copy()
    dz[np.arange(m), y] -= 1
    return -np.log(p[np.arange(m), y]).mean(), dz / m


def rnn_step(x, h, wx, wh, b):
    out = np.tanh(x @ wx + h @ wh + b)
    return out, (x, h, wx, wh, out)


def rnn_step_backward(dout, cache, slope=True, transposed=False, stale=False):
    x, h, wx, wh, out = cache
    dz = dout * (1 - out**2) if slope else dout
    return dz @ wx.T, dz @ (wh if transposed else wh.T), x.T @ dz, (out if stale else h).T @ dz, dz.sum(0)


def lstm_step(x, h, c, wx, wh, b):
    n = h.shape[1]
    z = x @ wx + h @ wh + b
    i, f, o, g = sigmoid(z[:, :n]), sigmoid(z[:, n : 2 * n]), sigmoid(z[:, 2 * n : 3 * n]), np.tanh(z[:, 3 * n :])
    new = f * c + i * g
    return o * np.tanh(new), new, (x, h, c, wx, wh, i, f, o, g, new)


def lstm_step_backward(dh, dc, cache, through_h=True, forget=True, swapped=False):
    x, h, c, wx, wh, i, f, o, g, new = cache
    if through_h:
        dc = dc + dh * o * (1 - np.tanh(new) ** 2)
    parts = [dc * g * i * (1 - i), dc * c * f * (1 - f), dh * np.tanh(new) * o * (1 - o), dc * i * (1 - g**2)]
    if swapped:
        parts[0], parts[1] = parts[1], parts[0]
    dz = np.concatenate(parts, 1)
    return dz @ wx.T, dz @ wh.T, dc * f if forget else dc, x.T @ dz, h.T @ dz, dz.sum(0)


def attention(q, k, v):
    p = probabilities(q @ k.T / np.sqrt(q.shape[1]))
    return p @ v, (q, k, v, p)


def attention_backward(do, cache, scale=True, center=True, transposed=True):
    q, k, v, p = cache
    dp = do @ v.T
    ds = p * (dp - center * (p * dp).sum(1, keepdims=True))
    ds = ds / np.sqrt(q.shape[1]) if scale else ds
    return ds @ k, (ds.T if transposed else ds) @ q, p.T @ do


def max_pool(x, size):
    m, n = x.shape
    windows = x.reshape(m, n // size, size)
    return windows.max(-1), (windows, windows.argmax(-1))


def max_pool_backward(dout, cache, even=False):
    windows, places = cache
    dx = np.zeros(windows.shape)
    if even:
        dx += dout[..., None] / windows.shape[-1]
    else:
        np.put_along_axis(dx, places[..., None], dout[..., None], -1)
    return dx.reshape(len(dx), -1)


def embedding(x, w):
    return w[x], (x, w)


def embedding_backward(dout, cache, add=True):
    x, w = cache
    dw = np.zeros_like(w)
    if add:
        np.add.at(dw, x, dout)
    else:
        dw[x] += dout
    return dw


X, W, B = draw(5, 3, 2), draw(6, 4), draw(4)
IMAGE, KERNEL = draw(2, 5, 5, 2), draw(3, 3, 2, 3)
NORMED = draw(6, 4), draw(4), draw(4), {"running_mean": np.zeros(4), "eps": 1e-5, "mode": "train"}
STEP = draw(5, 4), draw(5, 3), draw(4, 3), draw(3, 3), draw(3)
CELL = draw(5, 4), draw(5, 3), draw(5, 3), draw(4, 12), draw(3, 12), draw(12)
HEAD = draw(4, 3), draw(4, 3), draw(4, 3)
WORDS = np.array([[0, 2, 2], [1, 2, 4]]), draw(5, 3)
LABELS = np.array([0, 2, 1, 2, 0])


def changed(backward, place, change):
    """backward with one of its gradients changed."""

    def wrong(dout, cache):
        parts = list(backward(dout, cache))
        parts[place] = change(parts[place])
        return tuple(parts)

    return wrong


def with_(backward, **how):
    return lambda *args: backward(*args, **how)


MISTAKES = {
    "affine: bias averaged": ((affine, changed(affine_backward, 2, lambda g: g / 5)), (X, W, B), {"args[2]"}),
    "affine: weights' sign": ((affine, changed(affine_backward, 1, np.negative)), (X, W, B), {"args[1]"}),
    "affine: 2 % too large": ((affine, changed(affine_backward, 0, lambda g: 1.02 * g)), (X, W, B), {"args[0]"}),
    "affine: off by 1e-8": ((affine, changed(affine_backward, 0, lambda g: (1 + 1e-8) * g)), (X, W, B), {"args[0]"}),
    "affine: bias zero": ((affine, changed(affine_backward, 2, np.zeros_like)), (X, W, B), {"args[2]"}),
    "affine: not reshaped": (
        (affine, changed(affine_backward, 0, lambda g: g.reshape(5, 6))),
        (X, W, B),
        {"args[0]"},
    ),
    "conv: kernel flipped": ((conv, with_(conv_backward, flip=True)), (IMAGE, KERNEL), {"args[0]"}),
    "conv: one tap only": ((conv, with_(conv_backward, first_only=True)), (IMAGE, KERNEL), {"args[0]"}),
    "conv: off by one": ((conv, with_(conv_backward, shift=1)), (IMAGE, KERNEL), {"args[0]"}),
    "conv: kernel transposed": (
        (conv, changed(conv_backward, 1, lambda g: g.swapaxes(0, 1))),
        (IMAGE, KERNEL),
        {"args[1]"},
    ),
    "norm: mean left out": ((batchnorm, with_(batchnorm_backward, mean=False)), NORMED, {"args[0]"}),
    "norm: x̂ term left out": ((batchnorm, with_(batchnorm_backward, correlation=False)), NORMED, {"args[0]"}),
    "norm: gain left out": ((batchnorm, with_(batchnorm_backward, gain=False)), NORMED, {"args[0]"}),
    "loss: not divided by m": (
        lambda z, y: (softmax_loss(z, y)[0], 5 * softmax_loss(z, y)[1]),
        (draw(5, 3), LABELS),
        {""},
    ),
    "loss: targets left out": (
        lambda z, y: (softmax_loss(z, y)[0], probabilities(z) / 5),
        (draw(5, 3), LABELS),
        {""},
    ),
    "rnn: slope left out": (
        (rnn_step, with_(rnn_step_backward, slope=False)),
        STEP,
        {f"args[{i}]" for i in range(5)},
    ),
    "rnn: w_h transposed": ((rnn_step, with_(rnn_step_backward, transposed=True)), STEP, {"args[1]"}),
    "rnn: h for h before": ((rnn_step, with_(rnn_step_backward, stale=True)), STEP, {"args[3]"}),
    "lstm: path of h left out": (
        (lstm_step, with_(lstm_step_backward, through_h=False)),
        CELL,
        {f"args[{i}]" for i in range(6)},
    ),
    "lstm: forget gate left out": ((lstm_step, with_(lstm_step_backward, forget=False)), CELL, {"args[2]"}),
    "lstm: gates swapped": (
        (lstm_step, with_(lstm_step_backward, swapped=True)),
        CELL,
        {"args[0]", "args[1]", "args[3]", "args[4]", "args[5]"},
    ),
    "attention: scale": ((attention, with_(attention_backward, scale=False)), HEAD, {"args[0]", "args[1]"}),
    "attention: diagonal": ((attention, with_(attention_backward, center=False)), HEAD, {"args[0]", "args[1]"}),
    "attention: ds not transposed": ((attention, with_(attention_backward, transposed=False)), HEAD, {"args[1]"}),
    "pool: spread evenly": (
        (lambda x: max_pool(x, 2), with_(max_pool_backward, even=True)),
        (draw(3, 6),),
        {"args[0]"},
    ),
    "embedding: repeated words once": ((embedding, with_(embedding_backward, add=False)), WORDS, {"args[1]"}),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_planted_mistake_is_named(name):
    rule, args, wrong = MISTAKES[name]
    report = audit(rule, *args)
    assert {row.leaf for row in report.rows if row.verdict == "fail"} == wrong, report


class Affine:
    """State in attributes, gradients that are set."""

    def __init__(self, dtype="float64"):
        self.W, self.b = draw(4, 3).astype(dtype), np.zeros(3, dtype)
        self.dW = self.db = None

    def forward(self, x):
        self.x = x
        return x @ self.W + self.b

    def backward(self, dout):
        self.dW, self.db = self.x.T @ dout, dout.sum(0)
        return dout @ self.W.T


class Accumulates(Affine):
    """Gradients that are added to what was there."""

    def __init__(self):
        super().__init__()
        self.dW, self.db = draw(4, 3), draw(3)

    def backward(self, dout):
        self.dW += self.x.T @ dout
        self.db = self.db + dout.sum(0)
        return dout @ self.W.T


class InDicts:
    def __init__(self):
        self.parameters, self.gradients = {"W": draw(4, 3), "slope": 0.2}, {}

    def __call__(self, x):
        self.x = x
        self.z = x @ self.parameters["W"]
        return np.where(self.z > 0, self.z, self.parameters["slope"] * self.z)

    def backward(self, dout):
        slope = self.parameters["slope"]
        self.gradients["slope"] = (dout * np.minimum(self.z, 0)).sum()
        dz = dout * np.where(self.z > 0, 1, slope)
        self.gradients["W"] = self.x.T @ dz
        return dz @ self.parameters["W"].T


class Views:
    """All parameters in one vector, the arrays views of it."""

    def __init__(self):
        self.theta = draw(15)
        self.W, self.b = self.theta[:12].reshape(4, 3), self.theta[12:]

    def forward(self, x):
        self.x = x
        return x @ self.theta[:12].reshape(4, 3) + self.theta[12:]

    def backward(self, dout):
        self.dW, self.db = self.x.T @ dout, dout.sum(0)
        return dout @ self.W.T


class Relu:
    """Writes into what it is given."""

    def forward(self, x):
        self.negative = x < 0
        x[self.negative] = 0
        return x

    def backward(self, dout):
        dout[self.negative] = 0
        return dout


class Dropout:
    """Draws from NumPy's global random numbers."""

    def forward(self, x):
        self.kept = np.random.rand(*x.shape) < 0.7  # noqa: NPY002
        return x * self.kept / 0.7

    def backward(self, dout):
        return dout * self.kept / 0.7


class OwnGenerator(Dropout):
    def __init__(self):
        self.random = np.random.default_rng(3)

    def forward(self, x):
        self.kept = self.random.random(x.shape) < 0.7
        return x * self.kept / 0.7


class MeanSquares:
    """A cost: backward takes nothing."""

    def forward(self, a, y):
        self.difference = a - y
        return np.mean(self.difference**2)

    def backward(self):
        return 2 * self.difference / self.difference.size


class Static:
    """In the manner of PyTorch."""

    @staticmethod
    def forward(ctx, x, n):
        ctx.save_for_backward(x)
        ctx.n = n
        return x**n

    @staticmethod
    def backward(ctx, dout):
        (x,) = ctx.saved_tensors
        return ctx.n * x ** (ctx.n - 1) * dout, None


class First:
    """The first layer: its backward returns nothing."""

    def __init__(self):
        self.w, self.grad_w = draw(4, 3), None

    def forward(self, x):
        self.x = x
        return np.tanh(x @ self.w)

    def backward(self, dout):
        self.grad_w = self.x.T @ (dout * (1 - np.tanh(self.x @ self.w) ** 2))


def in_float32(x):
    return np.tanh(x.astype(np.float32)), np.tanh(x)


def two_layers(params, x, y):
    (w, b), v = params
    h = np.tanh(x @ w + b)
    return ((h @ v - y) ** 2).sum()


def two_layers_gradient(params, x, y):
    (w, b), v = params
    h = np.tanh(x @ w + b)
    d = 2 * (h @ v - y)
    dz = (d @ v.T) * (1 - h**2)
    return [[x.T @ dz, dz.sum(0)], h.T @ d]  # lists where the parameters have tuples


DATA, NAMES = draw(6, 4), ("dx", "dw", "db")
RIGHT = {
    "cache first": ((affine, lambda cache, dout: affine_backward(dout, cache)), (X, W, B)),
    "cache last": ((affine, affine_backward), (X, W, B)),
    "float32": ((affine, affine_backward), tuple(a.astype("float32") for a in (X, W, B))),
    "convolution": ((conv, conv_backward), (IMAGE, KERNEL)),
    "a dict of settings that is written to": ((batchnorm, batchnorm_backward), NORMED),
    "value and gradient in one": (softmax_loss, (draw(5, 3), LABELS)),
    "a list of gradients": ((rnn_step, lambda g, cache: list(rnn_step_backward(g, cache))), STEP),
    "two outputs": ((lstm_step, lstm_step_backward), CELL),
    "an array of integers": ((embedding, embedding_backward), WORDS),
    "one gradient, no tuple": ((lambda x: max_pool(x, 2), max_pool_backward), (draw(3, 6),)),
    "a number that is no array": ((max_pool, max_pool_backward), (draw(3, 6), 2)),
    "no residuals": ((np.matmul, lambda g, x, w: (g @ w.T, x.T @ g)), (draw(3, 4), draw(4, 2))),
    "its own output": ((np.tanh, lambda g, out: g * (1 - out**2)), (draw(3, 4),)),
    "a dict by names": ((affine, lambda g, cache: dict(zip(NAMES, affine_backward(g, cache), strict=True))), (X, W, B)),
    "nested parameters": ((two_layers, two_layers_gradient), ((((draw(4, 3), draw(3))), draw(3, 2)), DATA, draw(6, 2))),
    "a value of shape (1, 1)": ((lambda w: (w.T @ w), lambda w: 2 * w), (draw(3, 1),)),
    "a list of numbers": ((lambda p: np.sum(np.asarray(p) ** 3), lambda p: 3 * np.asarray(p) ** 2), ([1.0, -2.0, 0.5],)),
    "gradients in attributes": (Affine(), (DATA,)),
    "parameters in float32": (Affine("float32"), (DATA,)),
    "gradients are added up": (Accumulates(), (DATA,)),
    "parameters and gradients in dicts": (InDicts(), (DATA,)),
    "parameters are views": (Views(), (DATA,)),
    "writes into its input": (Relu(), (DATA,)),
    "global random numbers": (Dropout(), (DATA,)),
    "random numbers of its own": (OwnGenerator(), (DATA,)),
    "a cost": (MeanSquares(), (DATA, draw(6, 4))),
    "static methods": (Static, (DATA, 3)),
    "no gradient of the input": (First(), (DATA,)),
    "rounds to float32": ((in_float32, lambda g, t: g * (1 - t**2)), (DATA,)),
    "large and small": ((lambda x: (np.log(x), x), lambda g, x: g / x), (10.0 ** np.linspace(-8, 8, 9),)),
    "static arguments first": (
        ((lambda x, n: (x**n, x)), (lambda n, x, g: (n * x ** (n - 1) * g,))), (DATA, 3),
    ),
    "a kink": ((lambda x: (np.maximum(x, 0), x), lambda g, x: g * (x >= 0)), (np.array([-1.0, 0.0, 2.0]),)),
}  # fmt: skip
RIGHT["methods of other names"] = ((lambda one: (one.forward, one.backward))(Affine()), (DATA,))
STATIC = {"static arguments first": 1}
GLUE = {"parameters and gradients in dicts": {"parameters.W": "gradients.W", "parameters.slope": "gradients.slope"}}


@pytest.mark.parametrize("name", RIGHT)
def test_right_code_raises_no_alarm(name):
    rule, args = RIGHT[name]
    report = audit(rule, *args, gradients=GLUE.get(name), static_argnums=STATIC.get(name, ()))
    assert report.ok, report
    assert not [row for row in report.rows if row.verdict == "vacuous"]


def held(obj):
    return {k: v.copy() if isinstance(v, np.ndarray) else v for k, v in vars(obj).items()}


@pytest.mark.parametrize(
    "layer", [Affine("float32"), Accumulates(), Views(), OwnGenerator()], ids=lambda a: type(a).__name__
)
def test_what_is_given_is_left_as_it_was(layer):
    x, before, state = DATA.copy(), held(layer), np.random.get_state()[1].copy()  # noqa: NPY002
    audit(layer, x)
    after = held(layer)
    assert before.keys() == after.keys()
    assert all(
        np.array_equal(before[k], after[k]) if isinstance(before[k], np.ndarray) else before[k] is after[k]
        for k in before
    )
    assert not isinstance(layer, Affine) or layer.W.dtype == before["W"].dtype
    np.testing.assert_array_equal(x, DATA)
    np.testing.assert_array_equal(state, np.random.get_state()[1])  # noqa: NPY002


def test_what_is_given_is_left_as_it_was_after_an_exception():
    class Breaks(Affine):
        def backward(self, dout):
            self.W += 1
            raise RuntimeError("no")

    layer = Breaks()
    before = layer.W.copy()
    with pytest.raises(
        ValueError, match=r"Breaks could be called in none of the usual ways; as backward\(g\): RuntimeError: no"
    ):
        audit(layer, DATA)
    np.testing.assert_array_equal(layer.W, before)
    assert set(vars(layer)) == {"W", "b", "dW", "db"}


def test_a_backward_that_is_not_written_is_named():
    class Unwritten(Affine):
        def backward(self, dout):
            raise NotImplementedError("next week")

    message = r"audit: write the backward of Unwritten first, it raised NotImplementedError: next week"
    with pytest.raises(ValueError, match=message):
        audit(Unwritten(), DATA)


def test_wrong_parameters_of_objects_are_named():
    class Wrong(Affine):
        def backward(self, dout):
            dx = super().backward(dout)
            self.db = dout.mean(0)
            return dx

    report = audit(Wrong(), DATA)
    assert [row.leaf for row in report.rows if row.verdict == "fail"] == ["b"]
    report = audit(Wrong(), DATA, gradients={"W": "dW"})
    assert report.ok
    assert [row.leaf for row in report.rows] == ["args[0]", "W"]

    class Stale(Accumulates):
        def backward(self, dout):
            self.dW += 2 * self.x.T @ dout
            return dout @ self.W.T

    report = audit(Stale(), DATA, gradients={"W": "dW"})
    assert [(row.leaf, row.hint) for row in report.rows if row.verdict == "fail"] == [("W", "a constant factor 2")]


def test_how_it_was_called_is_said():
    assert "called as backward(g, residuals)" in audit((affine, affine_backward), X, W, B).judge
    assert "called as" not in audit((affine, lambda cache, g: affine_backward(g, cache)), X, W, B).judge
    assert "of args[1] no gradient was given" in audit(MeanSquares(), DATA, draw(6, 4)).judge


def test_a_gradient_that_holds_only_at_the_given_point():
    square = draw(3, 3)
    symmetric = square + square.T
    rule = (lambda a, x: (a @ x, (a, x))), (lambda cache, g: (np.outer(g, cache[1]), cache[0] @ g))
    report = audit(rule, symmetric, draw(3))
    assert [row.leaf for row in report.rows if row.verdict == "fail"] == ["args[1]"]
    assert "right at the given point, wrong at a point near by" in report.rows[0].hint
    assert audit(rule, symmetric, draw(3), points=()).ok
    assert not audit(rule, symmetric, draw(3), points=[(square, draw(3))]).ok


@pytest.mark.parametrize(
    ("rule", "x", "hint"),
    [
        ((lambda w: 0.5 * w @ w + np.sum(np.sin(w)), lambda w: np.cos(w)), np.zeros(4), "at a point near by"),
        ((lambda w: np.sum((w - 1) ** 4), lambda w: (w - 1) ** 3), np.ones(4), "at a point near by"),
        (((lambda x: (x * x, x)), (lambda x, g: 2 * x * np.clip(g, -5, 5))), draw(3, 4), "not linear in the cotangent"),
    ],
    ids=["a penalty at 0", "at a minimum", "a clipped cotangent"],
)
def test_what_the_given_point_hides_of_the_first_argument(rule, x, hint):
    report = audit(rule, x)
    assert not report.ok, report
    assert hint in report.rows[0].hint


def test_a_cotangent_is_not_the_input():
    """Both drawn with the same usual seed would make the two interchangeable."""
    for seed in range(3):
        x = np.random.default_rng(seed).standard_normal((4, 3))
        assert audit((lambda x: (np.maximum(0, x), x), lambda g, x: g * (x > 0)), x).ok
        report = audit((lambda x: (np.maximum(0, x), x), lambda g, x: g * (g > 0)), x)
        assert "right at the given point" not in report.rows[0].hint
        assert not report.ok


def test_intended_and_reference():
    straight_through = (lambda x: (np.round(x), None)), (lambda _, g: g)
    report = audit(straight_through, DATA, intended=lambda x: x)
    assert report.ok
    assert [row.verdict for row in report.rows] == ["intended"]
    report = audit(straight_through, DATA)
    assert not report.ok
    assert "surrogate of a flat function" in report.rows[0].hint
    fast = (lambda x: (np.tanh(x), x)), (lambda x, g: g * (1 - np.tanh(x) ** 2))
    assert audit(fast, DATA, reference=np.tanh).ok
    report = audit(fast, DATA, reference=np.sin)
    assert {row.equation for row in report.rows if row.verdict == "fail"} == {"forward", "backward"}


def test_a_reference_of_another_shape():
    for option in ("reference", "intended"):
        with pytest.raises(ValueError, match=r"to give what <lambda> gives, shapes \[\(6, 4\)\], got \[\(2, 4\)\]"):
            audit((lambda x: (np.tanh(x), x), lambda x, g: g), DATA, **{option: lambda x: x[:2]})


def test_lists_of_numbers():
    assert audit((lambda x: x[0] * x[1], lambda x: [x[1], x[0]]), [2.0, 3.0]).ok
    assert not audit((lambda x: x[0] * x[1], lambda x: [x[0], x[1]]), [2.0, 3.0]).ok


def test_none_counts_as_zero():
    report = audit((lambda x, mask: (x * mask, (x, mask)), lambda cache, g: (g * cache[1], None)), DATA, draw(6, 4))
    assert [row.leaf for row in report.rows if row.verdict == "fail"] == ["args[1]"]
    assert "static_argnums=" in report.rows[0].hint
    rule = (lambda x, mask: (x * mask, mask)), (lambda mask, g: (g * mask,))
    assert audit(rule, DATA, draw(6, 4), static_argnums=1).ok


@pytest.mark.parametrize(
    ("f", "args", "message"),
    [
        (
            (affine, lambda cache, g: affine_backward(g, cache)[:2]),
            (X, W, B),
            r"returned 2 gradients for 3 arguments .*args\[2\]",
        ),
        (
            (affine, lambda cache, g: {"dx": g, "dv": g}),
            (X, W, B),
            r"dict of gradients with the keys dx, dv, .*\(x, w, b\)",
        ),
        (Affine, (X,), None),
        (lambda x: 2 * x, (DATA,), r"does not return \(value, gradient\); give a pair"),
        (
            SimpleNamespace(backward=np.tanh),
            (DATA,),
            "an object with the methods forward and backward, got SimpleNamespace",
        ),
        (
            type("Needs", (), {"__init__": lambda self, n: None}),
            (DATA,),
            r"got the class Needs; write audit\(Needs\(\.\.\.\), \.\.\.\)",
        ),
        (
            (lambda x: (np.tanh(x) + 0j, x), lambda x, g: g),
            (DATA,),
            "expected real outputs of NumPy code, got complex ones",
        ),
        (
            (lambda x: (np.random.default_rng().random() * x, x), lambda x, g: g),
            (DATA,),
            "two calls of .* seed it inside",
        ),
        (
            (lambda x: (np.tanh(x.astype("float16")), x), lambda x, g: g),
            (DATA,),
            "no independent judge: .* give reference=",
        ),
        ((lambda x: (np.log(-np.abs(x)), x), lambda x, g: g), (DATA,), "the function is not finite at this point"),
        (
            (lambda x: (x * 1.0, x), lambda x, g: g),
            (np.arange(3),),
            "expected an argument or a parameter .* with an array of floats",
        ),
    ],
)
def test_what_cannot_be_audited_is_said(f, args, message):
    if message is None:
        assert audit(f, DATA).ok  # a class that takes nothing
        return
    with pytest.raises(ValueError, match=message):
        audit(f, *args)


class Keeps(Affine):
    """What forward keeps, and its derivatives, under names like those of parameters."""

    mean = False

    def forward(self, x):
        self.x, self.out = x, x @ self.W + self.b
        return self.out

    def backward(self, dout):
        self.dout, self.dW, self.db = dout, self.x.T @ dout, dout.mean(0) if self.mean else dout.sum(0)
        self.dx = dout @ self.W.T
        return self.dx


class KeepsMean(Keeps):
    mean = True


class Stack:
    """Layers in a list."""

    def __init__(self, *layers):
        self.layers = list(layers)

    def forward(self, x):
        for layer in self.layers:
            x = layer.forward(x)
        return x

    def backward(self, dout):
        for layer in reversed(self.layers):
            dout = layer.backward(dout)
        return dout


class Tensor:
    def __init__(self, data):
        self.data, self.grad = data, np.zeros_like(data)


class OfTensors:
    """Parameters that carry their gradients, held twice."""

    def __init__(self):
        self.weight, self.bias = Tensor(draw(4, 3)), Tensor(np.zeros(3))
        self.parameters = [self.weight, self.bias]

    def forward(self, x):
        self.x = x
        return x @ self.weight.data + self.bias.data

    def backward(self, dout):
        self.weight.grad += self.x.T @ dout
        self.bias.grad += dout.mean(0)
        return dout @ self.weight.data.T


class InDict(Affine):
    """Gradients in a dict, by the names of the attributes."""

    def backward(self, dout):
        self.grads = {"x": dout @ self.W.T, "W": self.x.T @ dout, "b": dout.mean(0)}
        return self.grads["x"]


class InLists:
    def __init__(self):
        self.params, self.grads = [draw(4, 3), np.zeros(3)], [None, None]

    def forward(self, x):
        self.x = x
        return x @ self.params[0] + self.params[1]

    def backward(self, dout):
        self.grads = [self.x.T @ dout, dout.mean(0)]
        return dout @ self.params[0].T


class Hidden:
    def __init__(self):
        self._W = draw(4, 3)

    def forward(self, x):
        self.x = x
        return x @ self._W

    def backward(self, dout):
        self._dW = 2 * self.x.T @ dout
        return dout @ self._W.T


@pytest.mark.parametrize(
    ("layer", "audited", "wrong"),
    [
        (Keeps(), {"args[0]", "W", "b"}, set()),
        (KeepsMean(), {"args[0]", "W", "b"}, {"b"}),
        (
            Stack(Keeps(), KeepsMean()),
            {"args[0]", *(f"layers.{i}.{name}" for i in range(2) for name in "Wb")},
            {"layers.1.b"},
        ),
        (OfTensors(), {"args[0]", "weight.data", "bias.data"}, {"bias.data"}),
        (InDict(), {"args[0]", "W", "b"}, {"b"}),
        (InLists(), {"args[0]", "params.0", "params.1"}, {"params.1"}),
        (Hidden(), {"args[0]", "_W"}, {"_W"}),
    ],
    ids=lambda a: type(a).__name__,
)
def test_parameters_are_found_and_what_forward_keeps_is_none(layer, audited, wrong):
    if isinstance(layer, Stack):
        layer.layers[1].W, layer.layers[1].b = draw(3, 2), np.zeros(2)
    for _ in range(2):  # also after it was used
        report = audit(layer, DATA)
        assert {row.leaf for row in report.rows} == audited, report
        assert {row.leaf for row in report.rows if row.verdict == "fail"} == wrong, report
        layer.backward(np.ones_like(layer.forward(DATA)))


class Updates(Affine):
    def backward(self, dout):
        da = dout @ self.W.T
        self.W -= 0.1 * self.x.T @ dout
        self.b -= 0.1 * dout.sum(0)
        return da


def test_parameters_without_a_gradient_are_no_pass():
    report = audit(Updates(), DATA)
    assert {row.leaf for row in report.rows if row.verdict == "vacuous"} == {"W", "b"}
    with pytest.raises(AssertionError, match=r'no gradient of it was found: say where it is kept, gradients={"W"'):
        report.raise_if_failed()


class Late:
    """Parameters that are made when the size of the input is known, and inputs that pile up."""

    def __init__(self):
        self.parameters, self.gradients, self.inputs = {"W": None}, {}, []

    def forward(self, x):
        if self.parameters["W"] is None:
            self.parameters, self.gradients = {"W": draw(x.shape[1], 3)}, {"W": np.zeros((x.shape[1], 3))}
        self.inputs.append(x)
        return x @ self.parameters["W"]

    def backward(self, dout):
        for x in self.inputs:
            self.gradients["W"] += x.T @ dout
        return dout @ self.parameters["W"].T


def test_parameters_that_the_first_call_makes():
    layer = Late()
    for f in (layer, (layer.forward, layer.backward)):
        with pytest.raises(ValueError, match=r"only after the first call of forward; call it once, empty"):
            audit(f, DATA)
    assert layer.inputs == []  # looking at it left it as it was
    layer.forward(DATA)
    layer.inputs.clear()
    assert {row.leaf for row in audit(layer, DATA).rows} == {"args[0]", "parameters.W"}


def test_parameters_that_are_not_there():
    with pytest.raises(ValueError, match="expected an array of floats in V of Affine, found NoneType"):
        audit(Affine(), DATA, gradients={"V": "dV"})
    with pytest.raises(ValueError, match="expected the gradient of W in grad of Affine after backward, found NoneType"):
        audit(Affine(), DATA, gradients={"W": "grad"})


def test_paths_lead_through_lists_and_objects():
    layer = Affine()
    net = SimpleNamespace(layers=[layer], forward=layer.forward, backward=layer.backward)
    report = audit(net, DATA, gradients={"layers.0.W": "layers.0.dW"})
    assert report.ok
    assert [row.leaf for row in report.rows] == ["args[0]", "layers.0.W"]


def test_it_is_quick():
    start = time.perf_counter()
    assert audit((affine, affine_backward), draw(10, 12), draw(12, 15), draw(15)).ok
    assert time.perf_counter() - start < 1  # 0.15 s on an idle machine
