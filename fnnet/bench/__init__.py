"""``python -m fnnet.bench``: what backpropagation by hand costs beside ``jax.grad``, and beside other libraries.

A row is a layer, a cost or a network. Correctness comes first, in float64; then the forward pass, value and gradient, and a
step of training in a compiled scan: by hand, by ``jax.grad`` of the same forward pass, and by ``jax.grad`` of a plain one.
Nothing of fnnet imports this package.
"""
