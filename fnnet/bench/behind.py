"""Why a row is not first. A test holds the names against those that the results beside docs/benchmarks.md say are behind."""

DIGITS = "the price of digits: a nearly certain example keeps its cost and its δ, of which the plain form has 0"
BY_SLICES = (
    "the forward pass that is differentiated pools by slices, which `jax.grad` differentiates in half of the time; "
    "`net.apply` and `evaluate` pool in one operation and are level"
)
LIBRARY = "PyTorch's library convolves faster than XLA at these sizes (130 to 150 GFLOP/s here)"
STEPS = (
    "a step's product runs at 100 to 220 GFLOP/s with XLA, on one core where it is small; PyTorch's library multiplies "
    "faster (what was tried is above)"
)

LIMITS: dict[str, str] = {
    "Dense, sequences": (
        "gelu's derivative is computed from z again, for which `jax.grad` keeps another array: 6.0 MiB of temporaries for 3.4"
    ),
    "Dense, sequences, no bias": "forwards both are the same operations",
    "Dense, rows, no bias": "both sides make the same products",
    "Conv 3×3, stride 2": "one run on the first machine; 0.93 to 1.10 in five runs on the second",
    "Conv 5×5 of 20 channels": "forwards both are the same operations; one run on the first machine, 1.0 on the second",
    "Attention in blocks, T = 64": "two blocks of 32 are for memory; from 512 steps on blocks save time (docs/attention.md)",
    "Attention, T = 64": "forwards both are the same operations: 0.3 ms",
    "LSTM, T = 28": STEPS,
    "LSTM, T = 100": STEPS,
    "LSTM, T = 256": STEPS,
    "LSTM classifier, T = 28, m = 32": STEPS,
    "LSTM classifier, T = 28, m = 128": STEPS,
    "RBM 784-500, CD-1, m = 100": "one run on the first machine; 0.64 to 1.10 in six runs on the second, by run",
    "book's conv net, m = 10": BY_SLICES,
    "book's conv net, m = 32": f"{BY_SLICES}. {LIBRARY}",
    "book's conv net, m = 128": f"{BY_SLICES}. {LIBRARY}",
    "book's conv net, m = 512": BY_SLICES,
    "quadratic of softmax": "the pullback subtracts the mean twice, so that δ of an output near 1 does not cancel",
    "cross_entropy of softmax": DIGITS,
    "log_likelihood of softmax": f"{DIGITS}; each entry is compared with its example's label",
    "log_likelihood of sigmoid": "each entry is compared with its label, where `jax.grad` adds to one place: 0.02 ms",
    "784-100-10, m = 128": "0.2 ms, in which equal programs differ by a quarter",
    "DBN 784-500-500-2000-10, fine-tuning, m = 100": (
        "both sides make the same products; the copy of δ divided by m that each layer's BP4 takes is one pass more"
    ),
    "vocabulary of 32,768, positions=128": "0.10.2 stores all logits twice forwards, without the bias and with it",
    "Dropout": "forwards 0.93 to 0.95 of 20 µs, once",
}
