"""Products, systems and factors of matrices."""

import jax.numpy as jnp
import numpy as np
from jax import lax

from .table import WIDE, add, on


def matmul(a, b):
    return a @ b, (a, b)


def matmul_back(r, u):
    a, b = r
    return jnp.einsum("ik,jk->ij", u, b), jnp.einsum("ij,ik->jk", a, u)


add(matmul, matmul_back, lambda draw: (draw(3, 3), draw(3, 3)), {
    "b not transposed": (on(0, matmul_back, lambda g, r, u: u @ r[1]), "args[0]", "transpose"),
    "a not transposed": (on(1, matmul_back, lambda g, r, u: r[0] @ u), "args[1]", "transpose"),
    "the wrong side": (on(0, matmul_back, lambda g, r, u: r[1].T @ u), "args[0]", ""),
    "u transposed": (on(0, matmul_back, lambda g, r, u: u.T @ r[1].T), "args[0]", "cotangent.*transpose"),
    "transposed": (on(1, matmul_back, lambda g, r, u: g.T), "args[1]", "transposed"),
})  # fmt: skip


def batched_matmul(a, b):
    return jnp.matmul(a, b), (a, b)


add(batched_matmul, lambda r, u: (u @ jnp.swapaxes(r[1], 1, 2), jnp.swapaxes(r[0], 1, 2) @ u),
    lambda draw: (draw(2, 3, 4), draw(2, 4, 3)))  # fmt: skip


def dense(x, w, b):
    return x @ w.T + b, (x, w)


def dense_back(r, u):
    x, w = r
    return u @ w, u.T @ x, jnp.sum(u, 0)


add(dense, dense_back, lambda draw: (draw(5, 4), draw(4, 4), draw(4)), {
    "w transposed": (on(0, dense_back, lambda g, r, u: u @ r[1].T), "args[0]", r"transpose|w\.T"),
    "dw transposed": (on(1, dense_back, lambda g, r, u: g.T), "args[1]", "transposed"),
    "the mean": (on(1, dense_back, lambda g, r, u: g / 5), "args[1]", "1/m = 1/5|factor"),
    "b not summed": (on(2, dense_back, lambda g, r, u: u), "args[2]", "not summed over"),
    "one example": (on(1, dense_back, lambda g, r, u: jnp.outer(u[0], r[0][0])),
        "args[1]", "only the first entry along axis 0"),
    "b is None": (lambda r, u: (*dense_back(r, u)[:2], None), "args[2]", "left out: 0 everywhere"),
    "x and b exchanged": (on(2, dense_back, lambda g, r, u: jnp.sum(r[0], 0)), "args[2]", ""),
})  # fmt: skip


def bilinear(x, w, y):
    return jnp.einsum("xi,ijk,xk->xj", x, w, y), (x, w, y)


def bilinear_back(r, u):
    x, w, y = r
    wy = jnp.einsum("ijk,xk->xij", w, y)
    return (
        jnp.einsum("xij,xj->xi", wy, u),
        jnp.einsum("xi,xj,xk->ijk", x, u, y),
        jnp.einsum("xjk,xj->xk", jnp.einsum("ijk,xi->xjk", w, x), u),
    )


add(bilinear, bilinear_back, lambda draw: (draw(3, 2), draw(2, 2, 2), draw(3, 2)), {
    "x for y": (on(1, bilinear_back, lambda g, r, u: jnp.einsum("xi,xj,xk->ijk", r[0], u, r[0])), "args[1]",
        r"args\[0\] stands where args\[2\] belongs"),
    "the last two axes": (on(1, bilinear_back, lambda g, r, u: jnp.swapaxes(g, 1, 2)), "args[1]", "transposed"),
})  # fmt: skip


def outer(a, b):
    return jnp.outer(a, b), (a, b)


add(outer, lambda r, u: (u @ r[1], r[0] @ u), lambda draw: (draw(3), draw(3)), {
    "u transposed": (lambda r, u: (r[1] @ u, r[0] @ u), "args[0]", "transpose"),
})  # fmt: skip


def kron(a, b):
    return jnp.kron(a, b), (a, b)


def kron_back(r, u):
    (n, k), (p, q) = (x.shape for x in r)
    blocks = u.reshape(n, p, k, q)
    return jnp.einsum("ipkq,pq->ik", blocks, r[1]), jnp.einsum("ipkq,ik->pq", blocks, r[0])


add(kron, kron_back, lambda draw: (draw(2, 3), draw(3, 2)), {
    "blocks read the other way": (on(1, kron_back, lambda g, r, u: jnp.einsum("piqk,ik->pq", u.reshape(3, 2, 2, 3), r[0])),
        "args[1]", ""),
})  # fmt: skip


def trace(a, b):
    return jnp.trace(a @ b), (a, b)


add(trace, lambda r, u: (u * r[1].T, u * r[0].T), lambda draw: (draw(3, 3), draw(3, 3)), {
    "not transposed": (lambda r, u: (u * r[1], u * r[0].T), "args[0]", "transpose"),
})  # fmt: skip


def quadratic_form(x, a):
    return jnp.einsum("xi,ij,xj->x", x, a, x), (x, a)


def quadratic_form_back(r, u):
    x, a = r
    ux = u[:, None] * x
    return ux @ (a + a.T), ux.T @ x


add(quadratic_form, quadratic_form_back, lambda draw: (draw(3, 4), draw(4, 4)), {
    "as if symmetric": (on(0, quadratic_form_back, lambda g, r, u: 2 * u[:, None] * r[0] @ r[1]), "args[0]", "transpose"),
    "one side only": (on(0, quadratic_form_back, lambda g, r, u: u[:, None] * r[0] @ r[1]), "args[0]", "left out"),
})  # fmt: skip


def solve(a, b):
    x = jnp.linalg.solve(a, b)
    return x, (a, x)


def solve_back(r, u):
    a, x = r
    v = jnp.linalg.solve(a.T, u)
    return -jnp.outer(v, x), v


add(solve, solve_back, lambda draw: (draw.regular(3), draw(3)), {
    "solved by A, not Aᵀ": (on(1, solve_back, lambda g, r, u: jnp.linalg.solve(r[0], u)), "args[1]", "transpose"),
    "dA by A, not Aᵀ": (on(0, solve_back, lambda g, r, u: -jnp.outer(jnp.linalg.solve(r[0], u), r[1])), "args[0]",
        "transpose"),
    "dA transposed": (on(0, solve_back, lambda g, r, u: g.T), "args[0]", "transposed"),
    "sign of dA": (on(0, solve_back, lambda g, r, u: -g), "args[0]", "^wrong sign$"),
    "multiplied, not solved": (on(1, solve_back, lambda g, r, u: r[0].T @ u), "args[1]", ""),
}, dtypes=WIDE)  # fmt: skip


def inverse(a):
    y = jnp.linalg.inv(a)
    return y, y


add(inverse, lambda y, u: (-y.T @ u @ y.T,), lambda draw: (draw.regular(3),), {
    "not transposed": (lambda y, u: (-y @ u @ y,), "args[0]", "transpose"),
    "sign": (lambda y, u: (y.T @ u @ y.T,), "args[0]", "^wrong sign$"),
}, dtypes=WIDE)  # fmt: skip


def log_determinant(a):
    return jnp.linalg.slogdet(a)[1], a


add(log_determinant, lambda a, u: (u * jnp.linalg.inv(a).T,), lambda draw: (draw.regular(3),), {
    "not transposed": (lambda a, u: (u * jnp.linalg.inv(a),), "args[0]", "transpose"),
}, dtypes=WIDE)  # fmt: skip


def gaussian(x, l):
    """−½‖L⁻¹x‖² − Σ ln L_ii, of a Cholesky factor; what is above its diagonal is not read."""
    z = lax.linalg.triangular_solve(l, x[:, None], left_side=True, lower=True)[:, 0]
    return -0.5 * z @ z - jnp.sum(jnp.log(jnp.diagonal(l))), (l, z)


def gaussian_back(r, u):
    l, z = r
    v = lax.linalg.triangular_solve(l, z[:, None], left_side=True, lower=True, transpose_a=True)[:, 0]
    return -u * v, u * (jnp.tril(jnp.outer(v, z)) - jnp.diag(1 / jnp.diagonal(l)))


add(gaussian, gaussian_back, lambda draw: (draw(3), np.tril(draw(3, 3), -1) + np.diag(draw.positive(3))), {
    "not the lower part": (on(1, gaussian_back, lambda g, r, u: u * (jnp.outer(-gaussian_back(r, 1.0)[0], r[1])
        - jnp.diag(1 / jnp.diagonal(r[0])))), "args[1]", ""),
    "no ln|L|": (on(1, gaussian_back, lambda g, r, u: g + u * jnp.diag(1 / jnp.diagonal(r[0]))), "args[1]",
        r"left out.*(diagonal|log)"),
    "½ forgotten": (on(0, gaussian_back, lambda g, r, u: 2 * g), "args[0]", "factor 2"),
}, dtypes=WIDE)  # fmt: skip


def cholesky(a):
    """Of (a + aᵀ)/2."""
    l = jnp.linalg.cholesky(a, symmetrize_input=True)
    return l, l


def cholesky_back(l, u):
    p = jnp.tril(l.T @ u)
    p = p - jnp.diag(jnp.diagonal(p)) / 2
    s = jnp.linalg.inv(l)
    g = s.T @ p @ s
    return ((g + g.T) / 2,)


def positive_definite(draw):
    a = draw(3, 3)
    return (a @ a.T + np.eye(3),)


add(cholesky, cholesky_back, positive_definite, {
    "not symmetric": (lambda l, u: (jnp.tril(2 * cholesky_back(l, u)[0]) - jnp.diag(jnp.diagonal(cholesky_back(l, u)[0])),),
        "args[0]", ""),
}, dtypes=WIDE)  # fmt: skip


def exponential(a):
    """Of a symmetric matrix, by its eigenvalues (A = Q Λ Qᵀ); Daleckii and Krein's formula on the way back."""
    a = (a + a.T) / 2
    values, q = jnp.linalg.eigh(a)
    return (q * jnp.exp(values)) @ q.T, (values, q)


def exponential_back(r, u):
    values, q = r
    d, e = values[:, None] - values, jnp.exp(values)
    near = jnp.eye(len(values), dtype=bool)
    slopes = jnp.where(near, e, (e[:, None] - e) / jnp.where(near, 1, d))
    g = q @ (slopes * (q.T @ u @ q)) @ q.T
    return ((g + g.T) / 2,)


add(exponential, exponential_back, lambda draw: (draw(3, 3),), {
    "as of numbers": (lambda r, u: ((r[1] * jnp.exp(r[0])) @ r[1].T @ (u + u.T) / 2,), "args[0]", ""),
}, dtypes=WIDE)  # fmt: skip


def largest_eigenvalue(a):
    """Of a symmetric matrix: dλ = vᵀ dA v."""
    a = (a + a.T) / 2
    v = jnp.linalg.eigh(a)[1][:, -1]
    return v @ a @ v, v


add(largest_eigenvalue, lambda v, u: (u * jnp.outer(v, v),), lambda draw: (draw(3, 3) + np.diag([0.0, 2.0, 5.0]),), {
    "v twice": (lambda v, u: (2 * u * jnp.outer(v, v),), "args[0]", "factor 2"),
}, dtypes=WIDE)  # fmt: skip


def least_squares(a, b):
    """(AᵀA)⁻¹Aᵀb."""
    x = jnp.linalg.solve(a.T @ a, a.T @ b)
    return x, (a, b, x)


def least_squares_back(r, u):
    a, b, x = r
    v = jnp.linalg.solve(a.T @ a, u)
    return jnp.outer(b - a @ x, v) - jnp.outer(a @ v, x), a @ v


add(least_squares, least_squares_back, lambda draw: (draw(5, 3), draw(5)), {
    "the residual left out": (on(0, least_squares_back, lambda g, r, u: -jnp.outer(
        r[0] @ jnp.linalg.solve(r[0].T @ r[0], u), r[2])), "args[0]", "left out.*and the one through"),
}, dtypes=WIDE)  # fmt: skip


def fixed_point(w, x):
    """z = tanh(W z + x), by the implicit function theorem on the way back."""
    z = jnp.zeros_like(x)
    for _ in range(40):
        z = jnp.tanh(w @ z + x)
    return z, (w, z)


def fixed_point_back(r, u, transposed=True):
    w, z = r
    d = 1 - z * z
    a = jnp.eye(len(z), dtype=z.dtype) - d[:, None] * w
    v = jnp.linalg.solve(a.T if transposed else a, u) * d
    return jnp.outer(v, z), v


add(fixed_point, fixed_point_back, lambda draw: (0.15 * draw(3, 3), draw(3)), {
    "one step only": (lambda r, u: (jnp.outer(u * (1 - r[1] ** 2), r[1]), u * (1 - r[1] ** 2)), "args[0]", ""),
}, dtypes=WIDE)  # fmt: skip


def rotated(q, v):
    """v turned by a unit quaternion q = (w, r): v + 2 r × (r × v + w v)."""
    w, r = q[0], q[1:]
    return v + 2 * jnp.cross(r, jnp.cross(r, v) + w * v), (q, v)


def rotated_back(res, u):
    q, v = res
    w, r = q[0], q[1:]
    t = jnp.cross(r, v) + w * v
    s = 2 * jnp.cross(u, r)
    return jnp.concatenate([(s @ v)[None], 2 * jnp.cross(t, u) + jnp.cross(v, s)]), u + w * s + jnp.cross(s, r)


add(rotated, rotated_back, lambda draw: (draw(4), draw(3)), {
    "turned on": (on(1, rotated_back, lambda g, r, u: rotated(r[0], u)[0]), "args[1]", "sign|transpose"),
    "v itself left out": (on(1, rotated_back, lambda g, r, u: g - u), "args[1]", r"left out"),
})  # fmt: skip


def broadcast(a, b, c):
    """a (n, 1) + b (1, k) ⊙ c ()."""
    return a + b * c, (a, b, c)


def broadcast_back(r, u):
    _, b, c = r
    return jnp.sum(u, 1, keepdims=True), c * jnp.sum(u, 0, keepdims=True), jnp.sum(u * b)


add(broadcast, broadcast_back, lambda draw: (draw(4, 1), draw(1, 4), draw()), {
    "over the wrong axis": (on(0, broadcast_back, lambda g, r, u: jnp.sum(u, 0)[:, None]), "args[0]", "wrong axis|transpose"),
    "not summed": (on(0, broadcast_back, lambda g, r, u: u), "args[0]", "not summed over"),
    "the mean": (on(2, broadcast_back, lambda g, r, u: jnp.mean(u * r[1])), "args[2]", "factor"),
})  # fmt: skip
