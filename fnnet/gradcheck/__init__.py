"""Manual against autodiff: which equation of which layer is wrong, for which leaf, where, and what kind of mistake it is.

``sides`` computes both sides, ``verdicts`` judges a difference, ``mistakes`` explains one, ``report`` shows it, and
``checks`` has the functions that people call.
"""

from .checks import check_gradient, check_layer, check_vjp, compare_gradients
from .report import Report, Row

__all__ = ["Report", "Row", "check_gradient", "check_layer", "check_vjp", "compare_gradients"]
