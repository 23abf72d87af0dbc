"""The loops of methods that decide for each element how much of each delta it takes. Float64 inside, one rounding at the end.

Shapes: `reference` and `out` (elements), `deltas` (sources, elements); all contiguous float32.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

Array = np.ndarray[Any, Any]

_ABS = np.uint32(0x7FFFFFFF)
_EPS = 1e-8
_LEAST = 1e-6


@njit(nogil=True, cache=True)
def nearswap(reference: Array, delta: Array, t: float, out: Array) -> None:
    """out = reference + min(1, t / max(|delta|, 1e-6)) · delta."""
    for i in range(out.size):
        d = np.float64(delta[i])
        share = min(1.0, t / max(abs(d), _LEAST))
        out[i] = np.float32(np.float64(reference[i]) + share * d)


@njit(nogil=True, cache=True)
def count_sharing(deltas: Array, epsilon: np.float32, shared: Array, alone: Array) -> None:
    """Add to shared[k] and alone[k] how many elements source k changes together with others, and by itself."""
    for i in range(deltas.shape[1]):
        count, last = 0, 0
        for k in range(deltas.shape[0]):
            if abs(deltas[k, i]) > epsilon:
                count += 1
                last = k
        if count == 1:
            alone[last] += 1
        elif count > 1:
            for k in range(deltas.shape[0]):
                shared[k] += abs(deltas[k, i]) > epsilon


@njit(nogil=True, cache=True)
def ram(reference: Array, deltas: Array, epsilon: np.float32, factors: Array, out: Array) -> None:
    """A change that one source alone makes counts factors[k] times; changes that several make are averaged."""
    for i in range(out.size):
        total, count, last = 0.0, 0, 0
        for k in range(deltas.shape[0]):
            if abs(deltas[k, i]) > epsilon:
                total += np.float64(deltas[k, i])
                count += 1
                last = k
        if count == 1:
            total *= factors[last]
        elif count > 1:
            total /= count
        out[i] = np.float32(np.float64(reference[i]) + total)


@njit(nogil=True, cache=True)
def variance(deltas: Array, out: Array) -> int:
    """The variance of each element over the sources (divided by their number); returns how many are not zero."""
    sources, changed = deltas.shape[0], 0
    for i in range(out.size):
        mean = 0.0
        for k in range(sources):
            mean += np.float64(deltas[k, i])
        mean /= sources
        square = 0.0
        for k in range(sources):
            square += (np.float64(deltas[k, i]) - mean) ** 2
        out[i] = np.float32(square / sources)
        changed += out[i] != 0
    return changed


@njit(nogil=True, cache=True)
def energies(deltas: Array, bits: Array, pattern: int, ties: int, sums: Array) -> None:
    """Add to sums[k] Σ delta² over the elements whose pattern is above `pattern`, or equal to it among the first `ties`."""
    lowest = np.uint32(pattern)
    for i in range(bits.size):
        b = bits[i] & _ABS
        if b > lowest or (b == lowest and i < ties):
            for k in range(deltas.shape[0]):
                sums[k] += np.float64(deltas[k, i]) ** 2


@njit(nogil=True, cache=True)
def sce(reference: Array, deltas: Array, bits: Array, pattern: int, ties: int, weights: Array, out: Array) -> None:
    """out = reference + Σ w·delta / max(Σ w, 1e-6) over the sources that agree with the sign of the sum, where an element is
    selected as in `energies`; elsewhere the reference."""
    lowest = np.uint32(pattern)
    for i in range(out.size):
        b, change = bits[i] & _ABS, 0.0
        if b > lowest or (b == lowest and i < ties):
            total = 0.0
            for k in range(deltas.shape[0]):
                total += np.float64(deltas[k, i])
            sign = 1.0 if total >= 0.0 else -1.0
            mixed = divisor = 0.0
            for k in range(deltas.shape[0]):
                d = np.float64(deltas[k, i])
                if d * sign > 0.0:
                    mixed += weights[k] * d
                    divisor += weights[k]
            change = mixed / max(divisor, _LEAST)
        out[i] = np.float32(np.float64(reference[i]) + change)


@njit(nogil=True, cache=True)
def divergence(reference: Array, delta: Array, columns: int, out: Array) -> None:
    """Of each row the Kullback-Leibler divergence of softmax(reference + delta) from softmax(reference), each plus 1e-8.

    It is never below zero; what rounding takes below is set to it.
    """
    for r in range(out.size):
        begin, end = r * columns, (r + 1) * columns
        high_p = high_q = -math.inf
        for i in range(begin, end):
            q = np.float64(reference[i])
            high_p, high_q = max(high_p, q + np.float64(delta[i])), max(high_q, q)
        sum_p = sum_q = 0.0
        for i in range(begin, end):
            q = np.float64(reference[i])
            sum_p += math.exp(q + np.float64(delta[i]) - high_p)
            sum_q += math.exp(q - high_q)
        total = 0.0
        for i in range(begin, end):
            q = np.float64(reference[i])
            p_share = math.exp(q + np.float64(delta[i]) - high_p) / sum_p + _EPS
            total += p_share * math.log(p_share / (math.exp(q - high_q) / sum_q + _EPS))
        out[r] = max(total, 0.0)


@njit(nogil=True, cache=True)
def importance(delta: Array, rows: Array, columns: int, out: Array) -> None:
    """|delta| · the divergence of its row."""
    for r in range(rows.size):
        for i in range(r * columns, (r + 1) * columns):
            out[i] = np.float32(abs(np.float64(delta[i])) * rows[r])


@njit(nogil=True, cache=True)
def take_from(reference: Array, delta: Array, scores: Array, threshold: float, out: Array) -> None:
    """The whole delta where the score reaches the threshold, else the reference."""
    for i in range(out.size):
        taken = np.float64(delta[i]) if np.float64(scores[i]) >= threshold else 0.0
        out[i] = np.float32(np.float64(reference[i]) + taken)
