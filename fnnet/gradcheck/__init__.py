"""Manual against autodiff: which equation of which layer is wrong, for which leaf, where, and what kind of mistake it is.

``sides`` computes both sides, ``verdicts`` judges a difference, ``mistakes`` explains one, ``rows`` puts the three together,
``report`` shows it; ``network`` and ``function`` have what people call.
"""

from .audit import assert_gradients, audit, check_gradient, check_vjp
from .network import check_layer, compare_gradients
from .report import Report, Row

__all__ = [
    "Report",
    "Row",
    "assert_gradients",
    "audit",
    "check_gradient",
    "check_layer",
    "check_vjp",
    "compare_gradients",
]
