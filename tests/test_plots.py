"""Pictures: what they show, on axes that are given or new, in print and on a dark screen."""

import jax
import numpy as np
import pytest

import fnnet as fn
from fnnet import diagnostics
from fnnet.layers._composite import is_walked

from .cases import FEW, thorough

plots = pytest.importorskip("fnnet.plots")
plt = pytest.importorskip("matplotlib.pyplot")

KEY = jax.random.key(0)
NET = fn.Network(fn.Flatten(), fn.Dense(8, fn.sigmoid), fn.Dense(10, fn.softmax))
PARAMS = NET.init(KEY, (28, 28, 1))


@pytest.fixture
def data(digits):
    """The embedded digits, in the parameters' dtype."""
    return tuple((x.astype(float), y) for x, y in digits)


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def swept(data, seeds=3, **given):
    train, test = data
    options = {"epochs": 4, "batch_size": 50, "optimizers": [fn.sgd(1.0)], "validation": test, "progress": False}
    return fn.sweep(NET, fn.log_likelihood, train, keys=jax.random.split(KEY, seeds), **options, **given)


def curves(ax):
    return {line.get_label(): line for line in ax.lines if not line.get_label().startswith("_")}


@pytest.mark.thorough
def test_learning_curves_of_many_networks(data):
    runs = swept(data)
    ax = plots.learning_curves(runs, of="accuracy")
    own = 100 * runs.validation_accuracy[0, 0].mean(axis=0)
    best = own.argmax()
    validation = curves(ax)[f"validation (best {own[best]:.4g} %, epoch {best + 1})"]
    np.testing.assert_allclose(validation.get_ydata(), own)
    np.testing.assert_allclose(curves(ax)["training"].get_ydata(), 100 * runs.accuracy[0, 0].mean(axis=0))
    assert len(ax.collections) == 2  # a band for each
    (turning,) = [line for line in ax.lines if line.get_marker() == "o"]
    assert (turning.get_xdata()[0], turning.get_ydata()[0]) == (best + 1, own[best])


@pytest.mark.thorough
def test_networks_that_diverged_are_left_out(data):
    runs = swept(data)
    runs.validation_cost[0, 0, 1, 2:] = np.nan
    ax = plots.learning_curves(runs._replace(cost=runs.validation_cost))
    validation = next(line for name, line in curves(ax).items() if name.startswith("validation, 2 of 3 networks (best"))
    np.testing.assert_allclose(validation.get_ydata(), runs.validation_cost[0, 0, [0, 2]].mean(axis=0))


@pytest.mark.thorough
def test_a_label_stands_before_the_lines_names(data):
    ax = plots.learning_curves(swept(data), label="η 1")
    plots.learning_curves(swept(data, monitor_training=False), of="accuracy", label="alone", ax=ax)
    names = list(curves(ax))
    assert names[0].startswith("η 1, validation (best ")
    assert names[1] == "η 1, training"
    assert names[2].startswith("alone (best ")


def test_learning_speed():
    sizes = np.array([[1.0, 0.1], [0.5, 0.0]])
    ax = plots.learning_speed(sizes, epochs=[0, 10], labels=["first", "last"])
    assert (ax.get_yscale(), ax.get_xlabel(), ax.get_ylabel()) == ("log", "epoch", "size of δ (cost per unit of z)")
    assert curves(ax)["first"].get_xdata().tolist() == [0, 10]
    np.testing.assert_array_equal(curves(ax)["last"].get_ydata(), [0.1, np.nan])
    assert "layer 1" in curves(plots.learning_speed(sizes))
    with pytest.raises(ValueError, match=r"learning_speed: expected sizes \(times, layers\), got \(2,\)"):
        plots.learning_speed(sizes[0])
    with pytest.raises(ValueError, match="learning_speed: expected labels for 2 layers, got 1"):
        plots.learning_speed(sizes, labels=["first"])


def test_histograms(data):
    (x, _), _ = data
    ax = plots.histograms(diagnostics.histograms(PARAMS, bins=7))
    assert [label.get_text() for label in ax.get_yticklabels()] == ["layer 1", "layer 2"]
    ax = plots.histograms(diagnostics.histograms(diagnostics.activations(NET, PARAMS, x)), labels=["x", "a", "y"])
    assert [label.get_text() for label in ax.get_yticklabels()] == ["x", "a", "y"]
    heights = [stairs.get_data().values - row for row, stairs in enumerate(ax.patches)]
    np.testing.assert_allclose([height.max() for height in heights], 0.9, rtol=1e-6)
    with pytest.raises(ValueError, match=r"histograms: expected values in at least one layer, got none"):
        plots.histograms(diagnostics.histograms(({}, {})))


def test_spectra():
    values = np.array([[3.0, 1.0], [5.0, 2.0], [4.0, 0.0]])
    ax = plots.spectra(values, label="layer 0")
    assert curves(ax)["layer 0"].get_ydata().tolist() == [4, 1]
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_yscale()) == ("rank", "singular value", "log")
    assert plots.spectra(values).get_legend() is None
    with_nan = np.concatenate([values, [[np.nan, 1.0]]])
    assert curves(plots.spectra(with_nan, label="left out"))["left out"].get_ydata().tolist() == [4, 1]
    for wrong in (values[0], np.zeros((0, 2)), with_nan[3:]):
        with pytest.raises(ValueError, match=r"spectra: expected finite singular values \(m, k\), got"):
            plots.spectra(wrong)


def test_misclassified(data):
    _, (x, y) = data
    scores = np.asarray(NET.apply(PARAMS, x))
    wrong = scores.argmax(axis=1) != y
    ax = plots.misclassified(NET, PARAMS, (x, y), most=5)
    assert ax.get_title() == f"{wrong.sum()} of 100 images taken for something else"
    surest = np.flatnonzero(wrong)[scores[wrong].max(axis=1).argmax()]
    assert ax.texts[0].get_text() == f"{scores[surest].argmax()}, is {y[surest]}"
    assert len(ax.texts) == 5
    with pytest.raises(ValueError, match=r"misclassified: expected images and a label for each, got .* \(100, 10\)"):
        plots.misclassified(NET, PARAMS, (x, np.eye(10)[y]))
    with pytest.raises(
        ValueError, match=r"digits: expected images \(m, H, W, 1\) or \(m, H, W\), got \(100, 28, 28, 3\)"
    ):
        plots.digits(np.repeat(x, 3, axis=3))
    ax = plots.misclassified(NET, PARAMS, (x, scores.argmax(axis=1)))
    assert ax.get_title() == "0 of 100 images taken for something else"


@pytest.mark.thorough
@pytest.mark.parametrize("style", ["dark_background", *thorough("default")])
def test_print_and_dark_screens(style, data, tmp_path):
    """Nothing is drawn in the colour of what it stands on; and a given ax is the one that is returned."""
    _, test = data
    with plt.style.context(style):
        figure, axes = plt.subplots(2, 3, figsize=(12, 7))
        drawn = [
            plots.learning_curves(swept(data, seeds=1), ax=axes[0, 0]),
            plots.learning_speed(np.array([[1.0, 0.1], [0.5, 0.01]]), ax=axes[0, 1]),
            plots.histograms(diagnostics.histograms(PARAMS), ax=axes[0, 2]),
            plots.spectra(diagnostics.singular_values(NET, PARAMS, test[0][:5], layer=1), ax=axes[1, 0]),
            plots.misclassified(NET, PARAMS, test, ax=axes[1, 1]),
            plots.digits(test[0][:16], test[1][:16], ax=axes[1, 2]),
        ]
        assert all(a is b for a, b in zip(drawn, axes.flat, strict=True))
        paper = np.array(plt.matplotlib.colors.to_rgb(axes[0, 0].get_facecolor()))
        marks = [artist.get_color() for ax in axes.flat for artist in (*ax.lines, *ax.texts, ax.title)]
        assert min(np.abs(paper - plt.matplotlib.colors.to_rgb(mark)).max() for mark in marks) > 0.25
        figure.savefig(tmp_path / f"{style}.png")


class TestAlignment:
    def watched(self, epochs=3):
        angles = np.linspace(100, 20, epochs)[:, None] * [1.0, np.nan, 0.5]
        return diagnostics.Alignment(angles + 1, np.ones_like(angles), angles, np.ones_like(angles))

    def test_a_line_for_each_layer_that_has_an_angle(self):
        watched = self.watched()
        ax = plots.alignment(watched, labels=["first", "dropout", "last"])
        assert list(curves(ax)) == ["first", "last", "no relation (90°)"]
        np.testing.assert_array_equal(curves(ax)["last"].get_ydata(), watched.gradient_angle[:, 2])
        np.testing.assert_array_equal(curves(ax)["last"].get_xdata(), [1, 2, 3])
        assert set(curves(ax)["no relation (90°)"].get_ydata()) == {90}
        assert plots.alignment(watched, of="error", ax=plt.figure().add_subplot()) is plt.gca()
        np.testing.assert_array_equal(curves(plt.gca())["layer 0"].get_ydata(), watched.error_angle[:, 0])

    def test_bad_input(self):
        once = jax.tree.map(lambda a: a[0], self.watched())
        for given, options, message in (
            (self.watched(), {"of": "cost"}, "alignment: expected of='gradient' or of='error', got 'cost'"),
            (
                once,
                {},
                r"alignment: expected angles \(epochs, layers\), got angles of shape \(3,\); give history.watched",
            ),
            (None, {}, r"alignment: expected angles \(epochs, layers\), got None"),
            (self.watched(), {"labels": ["a"]}, "alignment: expected labels for 3 layers, got 1"),
        ):
            with pytest.raises(ValueError, match=message):
                plots.alignment(given, **options)


class TestNetwork:
    @pytest.mark.parametrize("case", FEW, ids=repr)
    def test_a_box_for_each_layer(self, case):
        ax = plots.network(case.layer, case.shape)
        ax.figure.canvas.draw()
        rows = fn.summary(case.layer, case.shape).rows
        boxes = [row for row in rows if not is_walked(row.layer) and not isinstance(row.layer, fn.Identity)]
        shown = [text.get_text() for text in ax.texts]
        assert [name.split(",")[0] for name in shown if name[:1].isdigit() and " " in name and "param" not in name] == [
            row.name for row in boxes
        ]

    def test_branches_repetitions_and_what_is_shared(self):
        block = fn.Residual(fn.LayerNorm(), fn.Dense(8, fn.gelu), fn.Dense(4, fn.linear))
        layers = fn.Embedding(6, 4), fn.Repeat(block, 3), fn.Dense(6, fn.softmax, bias=False)
        ax = plots.network(fn.Tied(fn.Network(*layers), "0.w", "2.w"), (5,))
        shown = {text.get_text() for text in ax.texts}
        assert shown >= {"× 3", "+", "one w", "5×4", "5×8", "5×6", "2 Dense, softmax", "24 parameters", "$x$", "cost"}
        assert ax.get_title() == f"{24 + 3 * (8 + 40 + 36)} parameters"

    def test_a_layer_that_cannot_take_what_comes(self):
        with pytest.raises(fn.LayerError, match="layer 0 Conv"):
            plots.network(fn.Network(fn.Conv(2, 2, fn.relu)), (4,))
