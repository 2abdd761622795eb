"""Hand-written rules of functions: right ones whose algebra is not autodiff's, and the mistakes that are made in them.

``RULES`` is the table. Each is a pair (forward, backward) as ``defvjp`` of ``jax.custom_vjp`` takes it; ``point(dtype)``
gives the arguments, ``decorated()`` the same as a ``custom_vjp`` function, and ``mistakes`` the wrong backward passes: the
leaf that has to fail first, and the words that its hint must contain.
"""

from . import algebra, attention, costs, elementwise, norms, places, sequences, structure
from .table import RULES, Mistake, Rule

__all__ = [
    "RULES",
    "Mistake",
    "Rule",
    "algebra",
    "attention",
    "costs",
    "elementwise",
    "norms",
    "places",
    "sequences",
    "structure",
]
