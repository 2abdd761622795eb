"""What a summary says of a network: shapes as they are computed, numbers as they are drawn."""

import jax
import pytest

import fnnet as fn

from .cases import LAYERS, gpt, gpt_block

KEY = jax.random.key(0)


@pytest.mark.parametrize("case", LAYERS, ids=repr)
def test_of_every_row(case):
    params = jax.eval_shape(lambda: case.layer.init(KEY, case.shape))
    found = fn.summary(case.layer, case.shape)
    assert found.parameters == sum(leaf.size for leaf in jax.tree.leaves(params))
    assert found.nbytes == 8 * found.parameters
    assert found.rows[0].input_shape == case.shape
    assert found.rows[-1].output_shape[:1] == case.layer.output_shape(case.shape)[:1] or len(found.rows) > 1


def test_of_shared_and_repeated_blocks():
    net = gpt(11, 8, [fn.Repeat(fn.Network(*gpt_block(8, fn.Attention(2))), 3)])
    found = fn.summary(net, (5,))
    rows = {row.name: row for row in found.rows}
    assert rows["2.0 Network"].times == 3
    assert rows["2 Repeat"].parameters == 3 * rows["2.0 Network"].parameters
    assert rows["2.0.0.1.1 Dense"][2:] == ((5, 8), (5, 24), 8 * 24 + 24, 1)
    assert not any(name.startswith("2.1 ") for name in rows)
    assert found.shared == rows["0 Embedding"].parameters == 88
    tops = sum(row.parameters for name, row in rows.items() if "." not in name)
    assert found.parameters == tops - found.shared
    assert str(found).endswith(
        f"{found.parameters:,} parameters, {8e-3 * found.parameters:.1f} kB; 88 of them in two places or more"
    )


def test_the_table():
    net = fn.Network(fn.Flatten(), fn.Residual(fn.Dense(6, fn.tanh)), fn.Dense(2, fn.softmax))
    assert str(fn.summary(net, (3, 2))) == (
        "layer            input   output  parameters\n"
        "-------------------------------------------\n"
        "0 Flatten        (3, 2)  (6,)             0\n"
        "1 Parallel       (6,)    (6,)            42\n"
        "  1.0 Identity   (6,)    (6,)             0\n"
        "  1.1 Network    (6,)    (6,)            42\n"
        "    1.1.0 Dense  (6,)    (6,)            42\n"
        "2 Dense          (6,)    (2,)            14\n"
        "56 parameters, 0.4 kB"
    )


def test_a_layer_that_cannot_take_what_comes():
    net = fn.Network(fn.Dense(3, fn.tanh), fn.Conv(2, 2, fn.relu))
    with pytest.raises(fn.LayerError, match=r"layer 1 Conv\(2, 2, relu\): expected inputs"):
        fn.summary(net, (4,))
