"""``python -m fnnet.bench``: its gradients, what it prints and writes, and that no row's program has grown.

The figures are those of programs of the full size, which are compiled and not run. `python -m tests.test_bench` writes them
anew for the version of JAX it runs on.
"""

import functools
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import fnnet as fn
from fnnet.bench import cases, measure, run, tables
from fnnet.bench.behind import LIMITS
from fnnet.bench.cases import CASES, Case
from fnnet.bench.command import keeping, main
from fnnet.bench.peers import peers
from fnnet.bench.problems import GRADIENT, HAND, SAME, STEP

from .cases import assert_agree, thorough

FILE = Path(__file__).parent / "data" / "bench.json"
PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.md"
FIGURES = json.loads(FILE.read_text()) if FILE.exists() else {}
CHEAP = ("LayerNorm", "Dense, rows", "784-100-10, m = 10")
ROWS = [case for case in CASES if case.quick]
EACH = [case if case.name in CHEAP else thorough(case)[0] for case in ROWS]
by_row = pytest.mark.parametrize("case", EACH, ids=lambda case: case.name)


@functools.cache
def program(case: Case, name: str) -> measure.Compiled:
    """Value and gradient of a row, compiled as without the tests' settings."""
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        return measure.compiled(case.problem(False, jnp.float32).kinds[GRADIENT][name])


def figures(case: Case) -> dict[str, float]:
    found = program(case, HAND)
    return {"temporaries": found.temporaries, "flops": found.flops}


@by_row
def test_a_row_needs_no_more_than_it_did(case):
    known = FIGURES.get(jax.__version__)
    if known is None:
        pytest.skip(f"no figures of JAX {jax.__version__}: python -m tests.test_bench writes them")
    for name, figure in figures(case).items():
        assert figure <= 1.02 * known[case.name][name] + 1024, name


@by_row
def test_no_more_operations_than_jax_grad(case):
    """Of the same forward pass, but for the rows that say why."""
    factor, reason = case.more
    assert (factor == 1) == (not reason)
    hand, autodiff = program(case, HAND), program(case, SAME)
    assert hand.flops <= 1.02 * factor * autodiff.flops + 1024
    if factor > 1:
        assert hand.flops > 1.02 * autodiff.flops, "it no longer needs its reason"


@by_row
def test_the_gradients_agree_and_an_equal_network_is_not_compiled_again(case):
    with jax.numpy_dtype_promotion("standard"):
        assert run.checked(case, True) <= run.TOLERANCE
        with jax.enable_x64(False):
            assert run.compilations(case, True) == 0


class TestTheCommand:
    def test_it_prints_and_writes_what_it_says(self, tmp_path, capsys):
        path = tmp_path / "results.json"
        for _ in range(2):
            with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
                assert main(["--quick", "rmsnorm", "quadratic of linear", "--json", str(path)]) == 0
        printed = capsys.readouterr().out
        assert printed.count("GFLOP/s") == 2
        assert printed.count("RMSNorm      ") == printed.count("quadratic of linear      ") == 2
        assert "2 rows in" in printed
        document = json.loads(path.read_text())
        assert document["machine"]["jax"] == jax.__version__
        first, second = document["runs"]
        assert [row["name"] for row in second["rows"]] == ["RMSNorm", "quadratic of linear"]
        assert first["quick"]
        for row in first["rows"]:
            assert row["deviation"] <= 1e-10
            by_hand, *others = row["kinds"][GRADIENT].values()
            assert by_hand["ms"] > 0
            assert "ratio" not in by_hand
            assert all(len(other["ratio"]) == 3 for other in others)
            assert all(f.keys() >= {"temporaries", "flops", "bytes", "products"} for f in (by_hand, *others))

    def test_a_wrong_gradient_fails(self, monkeypatch, capsys, tmp_path):
        def wrong(delta, a):
            return 1.001 * jnp.einsum("...j,...k->jk", delta, a) / len(delta)

        monkeypatch.setattr("fnnet.layers._dense.weight_gradient", wrong)
        planted = fn.Dense(5, fn.tanh)
        row = cases.layer("planted", "layers", lambda: planted, (4, 3), (4, 3))
        monkeypatch.setattr(cases, "CASES", [row])
        path = tmp_path / "results.json"
        assert main(["--quick", "--json", str(path)]) == 1
        printed = capsys.readouterr().out
        assert "planted" in printed
        assert "FAILED: off by" in printed
        assert " ms " not in printed.split("FAILED")[1]
        (row,) = json.loads(path.read_text())["runs"][0]["rows"]
        assert row["failed"]
        assert row["kinds"] == {}

    def test_a_word_of_no_case(self, capsys):
        with pytest.raises(SystemExit):
            main(["nothing like it"])
        assert "expected a part of a case's name or group, got 'nothing like it'" in capsys.readouterr().err

    def test_the_cases_are_listed(self, capsys):
        assert main(["--list"]) == 0
        assert capsys.readouterr().out.count("\n") == len(CASES) == len({case.name for case in CASES})

    def test_a_file_of_another_machine_is_left_alone(self, tmp_path):
        path = tmp_path / "results.json"
        path.write_text(text := json.dumps({"schema": 1, "machine": {"processor": "another"}, "runs": []}))
        with pytest.raises(
            ValueError, match=r"expected results.json to hold runs of .*, got \{'processor': 'another'\}"
        ):
            keeping(path)
        assert path.read_text() == text


SAME_THERE = (
    "784-100-10, m = 10",
    "book's conv net, m = 10",
    "LSTM classifier, T = 28, m = 32",
    "GPT of 4×128, written out",
)


@pytest.mark.thorough
@pytest.mark.parametrize("name", [*SAME_THERE, "GRU classifier, T = 28, m = 32", "ResNet with BatchNorm, m = 32"])
def test_peers_train_the_same_network(name):
    """The costs of the steps are those by hand."""
    for module in ("flax", "equinox", "optax"):
        pytest.importorskip(module)
    case = next(case for case in CASES if case.name == name)
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        problem = case.problem(True, jnp.float32)
        found = peers(problem, say=pytest.fail)[STEP]
        hand = problem.kinds[STEP][HAND]
        _, costs = jax.jit(hand.run)(*hand.given)
        names = ["Flax + optax", *["Equinox + optax"] * ("ResNet" not in name)]
        assert found.keys() >= {*names, "jax.grad, Python loop"}
        for peer in names:
            assert_agree(found[peer]()[1], costs, 1e-4)


def test_a_peer_that_fails_is_left_out(monkeypatch):
    def broken(problem):
        raise RuntimeError("no compiler\nand more")

    said = []
    monkeypatch.setattr(
        "fnnet.bench.peers.LIBRARIES", [("a library", (), broken), ("none", ("no_such_module",), broken)]
    )
    assert peers(None, said.append) == {GRADIENT: {}, STEP: {}}
    assert said == ["a library is left out: RuntimeError: no compiler"]


def results(*runs):
    """A machine's, each run with a ratio to jax.grad and one to a peer."""
    rows = [
        {"name": "a row", "group": "layers", "kinds": {GRADIENT: {
            HAND: {"ms": ms, "products": 2e7, "temporaries": 2**21},
            SAME: {"ms": 9.0, "ratio": [0.1, ratio, 9.0], "temporaries": 2**22},
            "a library": {"ms": 9.0, "ratio": [0.1, peer, 9.0]},
        }}}
        for ms, ratio, peer in runs
    ]  # fmt: skip
    failed = {"name": "a wrong row", "group": "layers", "failed": True, "kinds": {}}
    limits = {"gemm_gflops": 100.0, "memory_gb_s": 20.0}
    dated = [{"date": f"2026-01-0{i} 10:00", "limits": limits, "rows": [row, failed]} for i, row in enumerate(rows, 1)]
    return {"machine": {"processor": "one", "cores": 2, "device": "cpu", "jax": "0.1"}, "runs": dated}


def test_the_tables_give_ranges_over_runs_and_machines():
    page = "".join(f"<!-- bench: {name} -->\nold\n<!-- end -->\n" for name in ("machines", "layers", "peers"))
    found = tables.updated(page, [results((1.0, 1.2, 3.0), (2.0, 1.4, 2.5)), results((0.5, 0.9, 2.0))]).replace(
        tables.TO, " to "
    )
    assert "old" not in found
    assert "| A | one, 2 cores | 0.1 | 2026-01-01 to 2026-01-02 | 100 | 20 |" in found
    assert "| a row | A | 1 to 2 | 1.20 to 1.40 |  |  |  |  | 2.00 / 4.00 | 10 to 20 % |" in found
    assert "| a row | B | 0.5 | 0.90 |  |  |  |  | 2.00 / 4.00 | 40 % |" in found
    assert "| a row | A | 2.50 to 3.00, – |" in found
    assert "wrong" not in found


def test_a_row_that_is_behind_in_every_run_is_named():
    def run(ratio, upper):
        of = results((1.0, ratio, 3.0))
        of["runs"][0]["rows"][0]["kinds"][GRADIENT][SAME]["ratio"] = [0.1, ratio, upper]
        return of

    slow, noisy, near = run(0.9, 0.95), run(0.9, 1.1), run(0.98, 0.99)
    both = {**slow, "runs": [*slow["runs"], *noisy["runs"]]}
    assert tables.behind([noisy, near, both]) == {}
    assert tables.behind([noisy, slow]) == {"a row": {(GRADIENT, SAME): "B 0.90"}}
    assert "| a row | value and gradient | `jax.grad`, same forward | B 0.90 |  |" in tables.not_first([noisy, slow])


def test_each_row_that_is_behind_has_its_reason():
    assert tables.behind(tables.documents(PAGE.parent / "benchmarks")).keys() == LIMITS.keys()


def test_the_page_says_what_the_results_say():
    page = PAGE.read_text()
    assert page == tables.updated(page, tables.documents(PAGE.parent / "benchmarks"))


def test_results_of_other_structures_are_not_compared():
    with pytest.raises(ValueError, match=r"expected results of the shapes \{'': \(2,\)\}, got \{'': \(3,\)\}"):
        measure.deviation(jnp.zeros(3), jnp.zeros(2))


def test_products_of_loops_and_choices():
    a = jnp.ones((4, 4))

    def f(a):
        a = jax.lax.scan(lambda a, _: (a @ a, None), a, length=3)[0]
        return jax.lax.cond(a[0, 0] > 0, lambda a: a @ a @ a, lambda a: a @ a, a), a @ a

    kept = jax.make_jaxpr(lambda a: f(a)[0])(a).jaxpr
    assert measure.products(kept) == 4 * 2 * 4**3


if __name__ == "__main__":
    from . import conftest

    jax.config.update("jax_compilation_cache_dir", None)
    print(f"with {' '.join(conftest.FLAGS)}", file=sys.stderr)
    FIGURES[jax.__version__] = {case.name: figures(case) for case in ROWS}
    FILE.write_text(json.dumps(FIGURES, indent=1, ensure_ascii=False) + "\n")
