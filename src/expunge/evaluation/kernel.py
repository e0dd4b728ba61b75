"""Kernel distance between two sets of pictures (KID): whether pictures degrade, beyond what any one of them shows."""

from __future__ import annotations

import torch
from torch import Tensor

_ROWS = 1024
"""Rows of the kernel matrices that are held at once."""


def kernel_distances(before: Tensor, after: Tensor) -> Tensor:
    """Each pair's part `(n)` of the squared maximum mean discrepancy between two sets of features `(n d)`, n at least 2.

    With k(a, b) = (a.b / d + 1)^3, x of `before` and y of `after`, the part of pair i is

        c_i = 1 / (n - 1) * sum over j != i of  k(x_i, x_j) + k(y_i, y_j) - k(x_i, y_j) - k(x_j, y_i),

    and the mean of all c_i is the unbiased estimate. Pairs of one prompt and seed depend on each other, so no x_i is compared
    with its own y_i; estimates for independent sets, torchmetrics' among them, do that too, and would find less than nothing
    between pictures that hardly changed.

    Source: Gretton et al. (2012), JMLR 13:723-773, lemma 6, equation 4; the kernel: Binkowski et al. (2018), arXiv 1801.01401.
    """
    x, y = before.double(), after.double()
    n, d = x.shape
    found = []
    for start in range(0, n, _ROWS):
        rows = slice(start, start + _ROWS)
        within = _kernel(x[rows], x, d) + _kernel(y[rows], y, d)
        across = _kernel(x[rows], y, d) + _kernel(y[rows], x, d)
        h = within - across
        found.append(h.sum(1) - h.diagonal(start))
    return torch.cat(found) / (n - 1)


def _kernel(a: Tensor, b: Tensor, d: int) -> Tensor:
    return (a @ b.T / d + 1) ** 3
