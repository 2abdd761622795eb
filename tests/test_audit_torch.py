"""``torch.autograd.Function``s: planted mistakes are named, right ones raise no alarm; where PyTorch is installed."""

import pytest

from fnnet import audit
from fnnet.gradcheck.foreign import is_torch

torch = pytest.importorskip("torch")
Function = torch.autograd.Function


def draw(*shape, dtype=torch.float32):
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def function(forward, backward):
    """A class of torch.autograd.Function."""
    return type("Rule", (Function,), {"forward": staticmethod(forward), "backward": staticmethod(backward)})


def keeping(f):
    """f as a forward pass that keeps its arguments and its output."""

    def forward(ctx, *args):
        out = f(*args)
        ctx.save_for_backward(*args, out)
        return out

    return forward


def linear(change=lambda *gradients: gradients):
    def backward(ctx, g):
        x, w, _, _ = ctx.saved_tensors
        return change(g @ w.T, x.T @ g, g.sum(0))

    return function(keeping(lambda x, w, b: x @ w + b), backward)


def softmax(center=True, scale=1.0):
    def backward(ctx, g):
        _, p = ctx.saved_tensors
        return scale * p * (g - center * (p * g).sum(-1, keepdim=True))

    return function(keeping(lambda x: torch.softmax(x, -1)), backward)


def layer_norm(mean=True, correlation=True, gain=True):
    def forward(ctx, x, g):
        std = (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
        x_hat = (x - x.mean(-1, keepdim=True)) / std
        ctx.save_for_backward(x_hat, std, g)
        return g * x_hat

    def backward(ctx, dout):
        x_hat, std, g = ctx.saved_tensors
        u = dout * g if gain else dout
        du = u - mean * u.mean(-1, keepdim=True) - correlation * x_hat * (u * x_hat).mean(-1, keepdim=True)
        return du / std, (dout * x_hat).sum(0)

    return function(forward, backward)


def two(first=1, second=1):
    """sin and cos, two outputs."""

    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin(), x.cos()

    def backward(ctx, a, b):
        (x,) = ctx.saved_tensors
        return first * a * x.cos() - second * b * x.sin()

    return function(forward, backward)


def careless_alone(ctx, g):
    """Asks for the wrong argument's need."""
    x, y, _ = ctx.saved_tensors
    return g * y, g * x if ctx.needs_input_grad[0] else None


LINEAR, ROWS = (draw(5, 4), draw(4, 3), draw(3)), (draw(5, 4),)
MISTAKES = {
    "bias averaged": (linear(lambda x, w, b: (x, w, b / 5)), LINEAR, "args[2]"),
    "sign": (linear(lambda x, w, b: (x, -w, b)), LINEAR, "args[1]"),
    "no gradient": (linear(lambda x, w, b: (None, w, b)), LINEAR, "args[0]"),
    "another shape": (linear(lambda x, w, b: (x, w.T, b)), LINEAR, "args[1]"),
    "square, transposed": (linear(lambda x, w, b: (x, w.T, b)), (draw(5, 3), draw(3, 3), draw(3)), "args[1]"),
    "off by 1e-7": (linear(lambda x, w, b: ((1 + 1e-7) * x, w, b)), LINEAR, "args[0]"),
    "diagonal of the Jacobian": (softmax(center=False), ROWS, "args[0]"),
    "2 % too large": (softmax(scale=1.02), ROWS, "args[0]"),
    "mean left out": (layer_norm(mean=False), (draw(5, 4), draw(4)), "args[0]"),
    "x̂ mean left out": (layer_norm(correlation=False), (draw(5, 4), draw(4)), "args[0]"),
    "gain left out": (layer_norm(gain=False), (draw(5, 4), draw(4)), "args[0]"),
    "second output ignored": (two(second=0), ROWS, "args[0]"),
    "needs_input_grad": (
        function(keeping(lambda x, y: x * y), careless_alone),
        (draw(5, 4), draw(5, 4) + 1),
        "args[1]",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_planted_mistake_is_named(name):
    rule, args, wrong = MISTAKES[name]
    report = audit(rule, *args)
    assert {row.leaf for row in report.rows if row.verdict == "fail"} == {wrong}, report


def scaled_forward(ctx, x, factor, how="sum", mask=None):
    ctx.factor, ctx.mask = factor, mask
    out = factor * x if mask is None else factor * x * mask
    return getattr(out, how)(0)


def scaled_backward(ctx, g):
    g = g.expand(5, 4) / 5
    return (ctx.factor * g if ctx.mask is None else ctx.factor * g * ctx.mask), None, None, None


def in_place(ctx, x):
    x.clamp_(min=0)
    ctx.mark_dirty(x)
    ctx.save_for_backward(x)
    return x


def of_relu(ctx, g):
    (x,) = ctx.saved_tensors
    g = g.clone()
    g[x <= 0] = 0
    return g


def largest(ctx, x):
    values, places = x.max(-1)
    ctx.save_for_backward(places)
    ctx.mark_non_differentiable(places)
    ctx.n = x.shape[-1]
    return values, places


def of_largest(ctx, g, _):
    (places,) = ctx.saved_tensors
    return torch.nn.functional.one_hot(places, ctx.n).to(g.dtype) * g[:, None]


def lazily(ctx, a, b):
    """Without zeros for outputs that are not used."""
    (x,) = ctx.saved_tensors
    parts = [g * d for g, d in ((a, x.cos()), (b, -x.sin())) if g is not None]
    return sum(parts)


def needed(ctx, g):
    x, y, _ = ctx.saved_tensors
    return (g * y if ctx.needs_input_grad[0] else None), (g * x if ctx.needs_input_grad[1] else None)


def in_float32_only(x):
    if x.dtype != torch.float32:
        raise TypeError("float32 only")
    return x.tanh()


class SetUp(Function):
    """The newer form: forward without a context."""

    @staticmethod
    def forward(x, n):
        return x**n

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0])
        ctx.n = inputs[1]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return ctx.n * ctx.saved_tensors[0] ** (ctx.n - 1) * g, None


def dropped(ctx, x):
    ctx.kept = torch.rand_like(x) < 0.7
    return x * ctx.kept


def kept_lazily(ctx, x):
    ctx.save_for_backward(x)
    ctx.set_materialize_grads(False)
    return x.sin(), x.cos()


of_tanh = lambda ctx, g: g * (1 - ctx.saved_tensors[1] ** 2)  # noqa: E731
RIGHT = {
    "linear": (linear(), LINEAR),
    "softmax": (softmax(), ROWS),
    "layer norm": (layer_norm(), (draw(5, 4), draw(4))),
    "two outputs": (two(), ROWS),
    "arguments that are no tensors": (function(scaled_forward, scaled_backward), (draw(5, 4), 3.0, "mean")),
    "a mask of booleans": (function(scaled_forward, scaled_backward), (draw(5, 4), 2, "mean", draw(5, 4) > 0)),
    "in place": (function(in_place, of_relu), ROWS),
    "an output of integers": (function(largest, of_largest), ROWS),
    "no zeros for unused outputs": (function(kept_lazily, lazily), ROWS),
    "only what is needed": (function(keeping(lambda x, y: x * y), needed), (draw(5, 4), draw(5, 4) + 1)),
    "float32 only": (function(keeping(in_float32_only), of_tanh), ROWS),
    "backward in float32": (
        function(keeping(torch.tanh), lambda ctx, g: of_tanh(ctx, g).float()),
        ROWS,
    ),
    "a context that is set up": (SetUp, (draw(5, 4), 3)),
    "float64": (softmax(), (draw(5, 4, dtype=torch.float64),)),
    "bfloat16": (softmax(), (draw(5, 4, dtype=torch.bfloat16),)),
    "a number": (function(keeping(torch.tanh), of_tanh), (torch.tensor(0.3),)),
    "a parameter": (softmax(), (torch.nn.Parameter(draw(5, 4)),)),
    "random numbers": (function(dropped, lambda ctx, g: g * ctx.kept), ROWS),
    "a function that calls one": (lambda x, w: two().apply(x @ w)[0].sum(), (draw(5, 4), draw(4, 3))),
    "a large tensor": (softmax(), (draw(40, 30),)),
}


@pytest.mark.parametrize("name", RIGHT)
def test_right_functions_raise_no_alarm(name):
    rule, args = RIGHT[name]
    report = audit(rule, *args)
    assert report.ok, report
    assert report.rows
    assert not [row for row in report.rows if row.verdict == "vacuous"]


def test_tensors_and_random_numbers_are_left_as_they_were():
    x, state = draw(5, 4), torch.random.get_rng_state()
    before = x.clone()
    audit(function(in_place, of_relu), x)
    audit(function(dropped, lambda ctx, g: g * ctx.kept), x)
    assert torch.equal(x, before)
    assert x.grad is None
    assert torch.equal(torch.random.get_rng_state(), state)


def test_reference_and_intended():
    wrong_inside = softmax(scale=1.02)
    slow = lambda x: torch.softmax(x, -1)  # noqa: E731
    assert audit(softmax(), *ROWS, reference=slow).ok
    assert not audit(wrong_inside, *ROWS, reference=slow).ok
    assert "of the reference" in audit(softmax(), *ROWS, reference=slow).judge
    straight = function(lambda ctx, x: x.round(), lambda ctx, g: g)
    assert [row.verdict for row in audit(straight, *ROWS, intended=lambda x: x).rows] == ["intended"]
    assert "surrogate of a flat function" in audit(straight, *ROWS).rows[0].hint


def test_points_and_static_arguments():
    rule = function(keeping(lambda x: x**2), lambda ctx, g: 2 * g)
    assert audit(rule, torch.ones(3), points=()).ok
    assert not audit(rule, torch.ones(3)).ok
    assert not audit(rule, torch.ones(3), points=[(draw(3),)]).ok
    mask = function(lambda ctx, x, m: (setattr(ctx, "m", m), x * m)[1], lambda ctx, g: (g * ctx.m, None))
    assert audit(mask, draw(3), draw(3), static_argnums=1).ok
    assert not audit(mask, draw(3), draw(3)).ok


@pytest.mark.parametrize(
    ("f", "args", "message"),
    [
        (torch.nn.Linear(2, 3), (draw(1, 2),), "Linear is a module, whose gradients are autograd's"),
        (softmax(), (torch.arange(3),), "expected an argument of Rule with a tensor of floats, got none"),
        (softmax(), (draw(3).to(torch.complex64),), "expected real tensors for Rule, got complex ones"),
        (lambda x: x.detach(), (draw(3),), "no output of <lambda> has a derivative"),
    ],
)
def test_what_cannot_be_audited_is_said(f, args, message):
    with pytest.raises(ValueError, match=message):
        audit(f, *args)


def test_torch_is_recognised():
    assert is_torch(softmax())
    assert is_torch(lambda x: x, (draw(3),))
    assert is_torch(torch.nn.Linear(2, 3))
    assert not is_torch(lambda x: x, ([1.0], {"a": 3}))
