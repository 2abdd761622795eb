"""The exercises: the solutions are right, the stubs are not written yet, and each planted mistake is told."""

import ast
import re
import runpy
import sys
from pathlib import Path

import jax
import pytest

from .cases import thorough

FOLDER = Path(__file__).parent.parent / "examples" / "exercises"
SOLUTIONS = FOLDER / "solutions"
sys.path.append(str(FOLDER))
CHECK = runpy.run_path(str(FOLDER / "check.py"))
MISTAKES = {  # in a solution: what stands there, what is planted, what has to be said
    "sigmoid": ("a * (1 - a)", "-a * (1 - a)", "derivative: .*wrong sign"),
    "forward": ("a_in @ w.T + b", "a_in @ w.T", "b is left out"),
    "bp1": ("(a - y) * a * (1 - a)", "a - y", "the local derivative of logistic of `sigmoid.z.` is missing"),
    "bp2": ("(delta_above @ w) * a * (1 - a)", "delta_above @ w", "the local derivative of logistic .* is missing"),
    "bp3_bp4": ("a_in / len(delta)", "a_in", r"gradients\['w'\].*summed over the batch where the mean belongs"),
    "cross_entropy": (
        "sigmoid(z) - y",
        "(sigmoid(z) - y) * sigmoid(z) * (1 - sigmoid(z))",
        "still in it, but it cancels",
    ),
    "softmax": ("a * (da - jnp.sum(a * da, axis=-1, keepdims=True))", "a * (1 - a) * da", "only the diagonal"),
    "l2": ('"b": gradients["b"]', '"b": gradients["b"] + lam / n_examples * params["b"]', "biases are not punished"),
    "dropout": ("a * keep / (1 - rate)", "a * keep", "the units that stay are not scaled up"),
    "chain": ("deltas[0] * w[j + 1] * a[j]", "deltas[0] * w[j] * a[j]", "bias_gradients: 3 entries differ"),
    "gate": ('delta["a"] * (1 - g) + ', "", "propagate: .*left out: the path through a_in"),
    "convolution": ("rot180(w))", "w)", "input_error: .*w is rotated by 180°"),
    "max_pooling": ("spread(delta) / 4", "spread(delta)", "unsample_mean: .* = 4 too much"),
    "bptt": ("da_out[:, t] + from_later", "da_out[:, t]", "error: .*what later steps owe to this one"),
    "contrast": ("positive[name] - negative[name]", "negative[name] - positive[name]", "gradient.*wrong sign"),
}
FIRST = ["forward", "bp1", "dropout", "l2"]
BESIDES = [  # what the audit alone finds and does not explain
    ("sigmoid", "a * (1 - a)", "a", r"the factor 1 − σ\(z\) is missing"),
    ("forward", "a_in @ w.T + b", "a_in @ w.T - b", "b is subtracted"),
    ("bp1", "(a - y) * a * (1 - a)", "(a - y) * a", r"the factor 1 − a of σ'\(z\) is missing"),
    (
        "bp1",
        "(a - y) * a * (1 - a)",
        "(a - y) * a * (1 - a) / 5",
        r"a factor m \(the number of examples\) = 5 is missing",
    ),
    ("bp2", "a * (1 - a)", "z * (1 - z)", r"z stands where σ\(z\) belongs"),
    ("bp3_bp4", "delta.T @ a_in / len(delta)", "jnp.outer(delta.mean(0), a_in.mean(0))", "the product of the means"),
    ("l2", 'gradients["w"] + ', "", "the gradient of the old cost is left out"),
    ("dropout", "a * keep / (1 - rate)", "a * keep * (1 - rate)", "multiplied by 1 − rate, not divided"),
    ("chain", "* a[j] * (1 - a[j])", "", "the layers' own σ' are left out"),
    ("chain", "jnp.stack(deltas)", "deltas", r"expected one array \(4,\), got a list"),
    ("gate", "da_out * g * (1 - h**2)", "da_out * (1 - h**2)", r"error\['h'\]: .*the gate g is left out"),
    ("max_pooling", "spread(delta) * (a == spread(max_pool(a)))", "spread(delta)", "not the largest alone"),
    ("bptt", '@ params["w_h"]\n', '@ params["w_h"].T\n', "error: .*; a factor in `h @ .*` stands where its transpose"),
]


@pytest.fixture(autouse=True)
def as_a_learner_runs_it():
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        yield


def test_every_exercise_has_a_solution_and_a_mistake():
    stubs = [path.name for path in sorted(FOLDER.glob("[0-9]*.py"))]
    assert stubs == [path.name for path in sorted(SOLUTIONS.glob("*.py"))]
    assert [name[3:-3] for name in stubs] == list(CHECK["MARKS"]) == list(MISTAKES)


def test_nothing_is_written_yet(capsys):
    assert CHECK["main"]([], FOLDER) == len(MISTAKES)
    for line in capsys.readouterr().out.splitlines():
        assert "not written yet: " in line, line


def shape(path):
    """The file without the bodies of its functions below their docstrings."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            node.body = node.body[: ast.get_docstring(node) is not None] or [ast.Pass()]
    return ast.unparse(tree)


@pytest.mark.parametrize("name", MISTAKES)
def test_a_stub_has_its_solutions_shape(name):
    (stub,) = FOLDER.glob(f"[0-9][0-9]_{name}.py")
    assert shape(stub) == shape(SOLUTIONS / stub.name)


@pytest.mark.parametrize("name", [*FIRST, *thorough(*(name for name in MISTAKES if name not in FIRST))])
def test_the_solution_is_right(name):
    assert CHECK["mark"](name, SOLUTIONS) == ("right", "")


@pytest.mark.parametrize("name", [*FIRST, *thorough(*(name for name in MISTAKES if name not in FIRST))])
def test_a_mistake_is_told(name, tmp_path, capsys):
    (path,) = SOLUTIONS.glob(f"[0-9][0-9]_{name}.py")
    right, wrong, told = MISTAKES[name]
    assert right in path.read_text()
    (tmp_path / path.name).write_text(path.read_text().replace(right, wrong))
    assert CHECK["main"]([name], tmp_path) == 1
    assert re.match(f"{name:14} wrong: .*{told}", capsys.readouterr().out, re.DOTALL)


@pytest.mark.parametrize("mistake", [each if each[0] in FIRST else thorough(each)[0] for each in BESIDES], ids=" ".join)
def test_a_usual_mistake_is_explained(mistake, tmp_path):
    name, right, wrong, told = mistake
    (path,) = SOLUTIONS.glob(f"[0-9][0-9]_{name}.py")
    assert right in path.read_text()
    (tmp_path / path.name).write_text(path.read_text().replace(right, wrong))
    verdict, said = CHECK["mark"](name, tmp_path)
    assert verdict == "wrong"
    assert re.search(told, said), said


def test_a_missing_return_is_told(tmp_path):
    path = SOLUTIONS / "02_forward.py"
    (tmp_path / path.name).write_text(path.read_text().replace("return a_in @ w.T + b", "a_in @ w.T + b"))
    assert CHECK["mark"]("forward", tmp_path) == (
        "wrong",
        "ValueError: weighted_inputs returns None: `return` is missing",
    )


def test_an_error_inside_what_is_given_has_the_line_that_called_it(tmp_path):
    path = SOLUTIONS / "12_convolution.py"
    text = path.read_text().replace("cross_correlate(a, delta)", "cross_correlate(delta, a)")
    (tmp_path / path.name).write_text(text)
    line = next(i for i, told in enumerate(text.splitlines(), 1) if "cross_correlate(delta, a)" in told)
    assert CHECK["mark"]("convolution", tmp_path)[1].startswith(f"line {line} of 12_convolution.py: ")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["sigmund"], "expected names of exercises, got sigmund; they are sigmoid, forward"),
        (["forward", "--in", "nowhere"], r"expected a file \[0-9\]\[0-9\]_forward.py, got none in nowhere"),
    ],
)
def test_a_wrong_name_or_folder_is_told(arguments, told, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["check.py", *arguments])
    with pytest.raises(SystemExit):
        runpy.run_path(str(FOLDER / "check.py"), run_name="__main__")
    assert re.search(told, capsys.readouterr().err)


def test_an_error_of_the_learners_own_is_told_with_its_line(tmp_path):
    path = SOLUTIONS / "02_forward.py"
    (tmp_path / path.name).write_text(path.read_text().replace("a_in @ w.T + b", "a_in @ w + b"))
    verdict, told = CHECK["mark"]("forward", tmp_path)
    assert verdict == "wrong"
    assert told.startswith("line 12 of 02_forward.py: ")


def test_the_command_exits_with_1_where_something_is_left(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["check.py", "forward"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(FOLDER / "check.py"), run_name="__main__")
    assert stopped.value.code == 1
    monkeypatch.setattr(sys, "argv", ["check.py", "forward", "--in", str(SOLUTIONS)])
    runpy.run_path(str(FOLDER / "check.py"), run_name="__main__")
    assert capsys.readouterr().out.endswith("forward        right\n")
