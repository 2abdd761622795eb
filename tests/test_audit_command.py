"""``python -m fnnet.audit``: what it prints, writes and exits with; and ``fn.audit`` stays a function."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import fnnet as fn
from fnnet.gradcheck import command
from fnnet.shell import run

MODULE = """
import jax
import jax.numpy as jnp
import numpy as np
import fnnet as fn


def rule(backward):
    f = jax.custom_vjp(lambda x: jnp.tanh(x))
    f.defvjp(lambda x: (jnp.tanh(x), jnp.tanh(x)), backward)
    return f


right = rule(lambda y, g: (g * (1 - y**2),))
wrong = rule(lambda y, g: (g * (1 - y),))
through = rule(lambda y, g: (g,))
identity = lambda x: x
plain = jnp.tanh
sigmoid = fn.sigmoid


def affine(x, w, b):
    return x @ w + b, (x, w)


def affine_backward(cache, g):
    x, w = cache
    return g @ w.T, x.T @ g, g.sum(0)


def chosen(params, labels, kind):
    return jnp.mean(getattr(jnp, kind)(params["z"])[jnp.arange(len(labels)), labels]), None


def gather(params, labels, power):
    return params["w"][labels] ** power, (params["w"], labels)


def gather_backward(power, residuals, g):
    w, labels = residuals
    return {"w": jnp.zeros_like(w).at[labels].add(power * w[labels] ** (power - 1) * g)}, None


def value(p):
    return np.sum(p**2)


def gradient(p):
    return 2 * p


def breaks(x):
    raise RuntimeError("no")


class Net:
    inner = right
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "rules_of_mine.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("rules_of_mine", None)
    importlib.invalidate_caches()
    return "rules_of_mine"


@pytest.mark.parametrize(
    ("rule", "likes", "status"),
    [
        ("sigmoid", ["f32[4,8]"], 0),
        ("right", ["f32[4,8]"], 0),
        ("wrong", ["f32[4,8]"], 1),
        ("Net.inner", ["f64[3]"], 0),
        ("affine,affine_backward", ["f32[5,4]", "f32[4,3]", "f32[3]"], 0),
        ("value,gradient", ["f64[3]"], 0),
        ("gather,gather_backward --static 2", ['{"w": "f32[5,2] > 0"}', "i32[4] < 5", "3"], 0),
        ("through --intended rules_of_mine:identity", ["f32[4]"], 0),
        ("through --reference rules_of_mine:plain --points 0", ["f32[4]"], 1),
        ("right --points 2 --seed 3", ["f32[4]"], 0),
    ],
)
def test_it_exits_with_the_verdict(module, rule, likes, status, capsys):
    rule, *options = rule.split()
    likes = [part for like in likes for part in ("--like", like)]
    assert command.main([f"{module}:{rule}", *likes, *options]) == status
    shown = capsys.readouterr()
    assert "backward" in shown.out or "gradient" in shown.out
    assert ("isolated" in shown.out) == (status == 1)  # the whole table where something is wrong
    assert not shown.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere:f"], "nowhere cannot be imported: ModuleNotFoundError: No module named 'nowhere'"),
        (["right"], "expected \"module:function\", got 'right'"),
        (["rules_of_mine:nope"], "rules_of_mine has no nope; it has rule, right, wrong"),
        (
            ["rules_of_mine:right", "--like", "f99[3]"],
            "--like 'f99[3]' is neither an array such as f32[4,8] (of f64, f32, ",
        ),
        (["rules_of_mine:right", "--like", "f32[3] < 2"], "--like 'f32[3] < 2': real numbers are bounded by > 0 only"),
        (["rules_of_mine:right", "--like", "i32[3] > 2"], "--like 'i32[3] > 2': whole numbers have an upper bound"),
        (["rules_of_mine:right", "--like", "i32[3]"], "expected an argument of "),
        (
            ["rules_of_mine:breaks", "--like", "f32[3]"],
            "fnnet.audit: rules_of_mine:breaks raised RuntimeError: no",
        ),
    ],
)
def test_what_cannot_be_audited_is_said(module, arguments, message, capsys):
    assert command.main(arguments) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert not shown.out


def test_it_writes_json_and_markdown(module, tmp_path, capsys):
    files = tmp_path / "report.json", tmp_path / "report.md"
    assert (
        command.main([f"{module}:wrong", "--like", "f32[3]", "--json", str(files[0]), "--markdown", str(files[1])]) == 1
    )
    written = json.loads(files[0].read_text(encoding="utf-8"))
    assert written["ok"] is False
    assert written["rows"][0]["verdict"] == "fail"
    assert written["rows"][0]["chained"] is None
    assert "manual" in written["rows"][0]["note"]
    assert "| fail |" in files[1].read_text(encoding="utf-8")
    capsys.readouterr()
    assert command.main([f"{module}:right", "--like", "f32[3]", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["ok"] is True
    assert command.main([f"{module}:right", "--like", "f32[3]", "--markdown", "-"]) == 0
    assert capsys.readouterr().out.startswith("| layer |")


@pytest.mark.parametrize(
    ("text", "dtype", "shape"),
    [("f32[4,8]", "float32", (4, 8)), (" bf16 [ 3 ] ", "bfloat16", (3,)), ("f64[]", "float64", ()), ("bool[2]", "bool", (2,)),
     ("u8[2]", "uint8", (2,)), ("c64[2]", "complex64", (2,))],
)  # fmt: skip
def test_arguments_like_these(text, dtype, shape):
    a = command._argument(text, iter(np.random.SeedSequence(0).spawn(1)))
    assert (str(a.dtype), a.shape) == (dtype, shape)


def test_arguments_of_other_kinds():
    seeds = iter(np.random.SeedSequence(0).spawn(9))
    assert command._argument("3", seeds) == 3
    assert command._argument('"tanh"', seeds) == "tanh"
    assert jax.dtypes.issubdtype(command._argument("key[]", seeds).dtype, jax.dtypes.prng_key)
    nested = command._argument('{"w": ["f32[2]", 1], "n": None}', seeds)
    assert nested["w"][0].shape == (2,)
    assert nested["w"][1] == 1
    assert np.all(command._argument("i32[50] < 3", seeds) < 3)
    assert np.all(command._argument("f32[50] > 0", seeds) > 0)


def test_from_the_shell(module, tmp_path):
    paths = os.pathsep.join([str(Path(fn.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    run = [sys.executable, "-W", "error", "-m", "fnnet.audit", f"{module}.py:wrong", "--like", "f32[3]"]
    done = subprocess.run(run, cwd=tmp_path, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "args[0]" in done.stdout
    done = subprocess.run(
        [*run[:5], "--like"], cwd=tmp_path, env={**os.environ, "PYTHONPATH": paths}, capture_output=True
    )
    assert done.returncode == 2


def test_who_stops_reading_gets_no_traceback(monkeypatch):
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as closed, monkeypatch.context() as patched:
        patched.setattr("sys.stdout", closed)
        with pytest.raises(SystemExit, match="141"):
            run(lambda: print("a table"))


def test_the_function_is_not_shadowed_by_the_module():
    audit = fn.audit
    module = importlib.import_module("fnnet.audit")
    assert module is fn.audit is audit
    assert callable(audit)
