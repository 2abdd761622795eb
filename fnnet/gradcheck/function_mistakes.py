"""The mistakes of functions."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
from jax.tree_util import keystr, tree_leaves_with_path

from .mistakes import Failure
from .verdicts import Subject, wide


def of_function(subject: Subject, m: int, failure: Failure, source: str, path: Any, case: int) -> Failure:
    """What can be tried on a function that nothing is known about."""
    right = subject.best(case)[source].autodiff
    cotangents = jax.tree.leaves(subject.cases[case][1]) if source == "backward" else []
    incoming = wide(cotangents[0]) if len(cotangents) == 1 else None

    def ideas() -> Iterator[tuple[str, Any]]:
        if incoming is not None and incoming.shape == failure.reference.shape:
            yield "the local derivative is missing: this is the cotangent itself", incoming
            yield "the local derivative is applied twice", failure.reference**2 / incoming

    return dataclasses.replace(
        failure,
        m=m,
        incoming=incoming,
        per_example=source == "backward" and failure.reference.shape[:1] == (m,),
        has_mean=source != "backward",
        siblings={getattr(p[0], "key", keystr(p)): wide(leaf) for p, leaf in tree_leaves_with_path(right) if p != path},
        ideas=ideas,
    )
