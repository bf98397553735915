"""The mean of all gradients, and what each solver makes of it, in forms other than those of `goco_mpi.core.methods`.

Everybody is at the same parameters: ``x`` has equal rows.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence

import numpy as np

from goco_mpi.core.shares import Share
from goco_mpi.core.stacked.base import Array, Finished, Step

EPS = float(np.finfo(np.float64).eps)


class OnMean(Step):
    """What is done with the mean gradient alone."""

    def __init__(self, x: Array, shares: Sequence[Share], momentum: float | None) -> None:
        self.x = x
        self.shares = shares
        self.momentum = momentum
        self.rests = False
        self.size = 0.0

    def advance(self, g: Array, finished: Finished, eta: float, t: int) -> None:
        """Go on by one round."""
        mean = g.mean(axis=0)
        if t == 0:
            self.size = float(np.linalg.norm(mean))
        if not self.rests:
            self.x = np.tile(self.follow(self.x[0], mean, eta), (len(self.x), 1))

    @abstractmethod
    def follow(self, at: Array, mean: Array, eta: float) -> Array:
        """Return where the next gradient is taken after this one."""

    def scale(self, at: Array, eta: float) -> float:
        """Return how large the terms of the gradient at ``at`` are."""
        return max(self.size, float(np.linalg.norm(at)) / eta)

    def stops(self, gradient: Array, at: Array, eta: float) -> bool:
        """Stop for good where the gradient is rounding."""
        self.rests = float(np.linalg.norm(gradient)) <= 8.0 * EPS * self.scale(at, eta)
        return self.rests


class StackedDescentOnMean(OnMean):
    """x <- x - eta mean G."""

    def follow(self, at: Array, mean: Array, eta: float) -> Array:
        """Go downhill."""
        return at - eta * mean


class StackedNesterov(OnMean):
    """In terms of the velocity v = x+ - x: y = x + beta v."""

    def __init__(self, x: Array, shares: Sequence[Share], momentum: float | None) -> None:
        super().__init__(x, shares, momentum)
        self.carried = np.zeros_like(x[0])  # y - x
        self.theta = 1.0

    def follow(self, at: Array, mean: Array, eta: float) -> Array:
        """Go downhill and on."""
        velocity = self.carried - eta * mean
        weight = self.momentum
        if weight is None:
            theta = 1.0 if mean @ velocity > 0.0 else self.theta
            self.theta = 0.5 + math.sqrt(0.25 + theta**2)
            weight = (theta - 1.0) / self.theta
        self.carried = weight * velocity
        return np.asarray(at - eta * mean + self.carried)


class StackedKrylov(OnMean):
    """Conjugate gradients on a quadratic loss as what they are: the minimum over all points that were measured.

    With S the steps between these points and Y the changes of the gradient over them, S'Y c = -S'g gives the minimum
    x + S c and its gradient g + Y c, from any of them.
    """

    def __init__(self, x: Array, shares: Sequence[Share], momentum: float | None) -> None:
        super().__init__(x, shares, momentum)
        self.points: list[Array] = []
        self.gradients: list[Array] = []
        self.base: Array = x[0]
        self.direction = np.zeros_like(x[0])
        self.lengths: list[float] = []

    def follow(self, at: Array, mean: Array, eta: float) -> Array:
        """Go to the minimum, and along the next direction."""
        gradient = self.to_minimum(at, mean)
        self.direction = self.conjugate(-gradient)
        trial = max(self.lengths[-2:], default=eta)
        if self.stops(gradient, self.base, eta):
            return self.base
        return np.asarray(self.base + trial * self.direction)

    def to_minimum(self, at: Array, mean: Array) -> Array:
        """Go to the minimum over all points measured, this one included; return the gradient there."""
        self.points.append(at)
        self.gradients.append(mean)
        before, self.base = self.base, at
        if len(self.points) == 1:
            return mean
        s, y, gram = self._steps()
        c = np.linalg.solve(gram, -s @ mean)
        self.base = at + c @ s
        self.lengths.append(float(np.linalg.norm(self.base - before) / np.linalg.norm(self.direction)))
        return np.asarray(mean + c @ y)

    def conjugate(self, vector: Array) -> Array:
        """Return what of ``vector`` is conjugate to all steps so far."""
        if len(self.points) == 1:
            return vector
        s, y, gram = self._steps()
        return np.asarray(vector - np.linalg.solve(gram, y @ vector) @ s)

    def _steps(self) -> tuple[Array, Array, Array]:
        s, y = np.diff(self.points, axis=0), np.diff(self.gradients, axis=0)
        lengths = np.linalg.norm(s, axis=1)[:, None]
        s, y = s / lengths, y / lengths
        return s, y, 0.5 * (s @ y.T + y @ s.T)


class StackedPreconditioned(StackedKrylov):
    """The same with directions from the mean of the inverse Hessians, by explicit inverses.

    Round 0 goes to the mean of the minima, round 1 measures there; then even rounds find a direction, odd ones measure.
    """

    def __init__(self, x: Array, shares: Sequence[Share], momentum: float | None) -> None:
        super().__init__(x, shares, momentum)
        self.inverses: list[Array] = []
        for share in shares:
            if share.weight == 0.0:
                self.inverses.append(np.zeros((x.shape[1], x.shape[1])))
                continue
            h = share.hessian(x[0]) / share.weight
            c = min(max(share.n_params / share.n_rows - 0.25, 0.0), 1.0) if share.n_rows else 0.0
            self.inverses.append(np.asarray(np.linalg.inv(h + c * np.diag(np.diag(h))), dtype=np.float64))
        self.needed = True
        self.inverse = sum(s.weight * p for s, p in zip(shares, self.inverses, strict=True)) / len(shares)
        self.gradient = np.zeros_like(x[0])

    def needs_gradient(self, t: int) -> bool:
        """Tell whether a round measures."""
        return self.needed

    def advance(self, g: Array, finished: Finished, eta: float, t: int) -> None:
        """Go on by one round."""
        if self.rests:
            return
        if t == 0:
            step = np.mean([p @ row for p, row in zip(self.inverses, g, strict=True)], axis=0)
            at = self.x[0] - step
        elif t % 2:
            if t == 1:
                self.size = float(np.linalg.norm(g.mean(axis=0)))
            self.gradient = self.to_minimum(self.x[0], g.mean(axis=0))
            at = self.base
            self.stops(self.gradient, at, eta)
        else:
            self.direction = self.conjugate(-self.inverse @ self.gradient)
            at = self.base + max(self.lengths[-2:], default=1.0) * self.direction
        self.needed = t % 2 == 0 and not self.rests
        self.x = np.tile(at, (len(self.x), 1))


class StackedNonlinear(OnMean):
    """Nonlinear conjugate gradients: Hestenes and Stiefel's factor, a secant for a line search."""

    def __init__(self, x: Array, shares: Sequence[Share], momentum: float | None) -> None:
        super().__init__(x, shares, momentum)
        self.base: Array = x[0]
        self.gradient: Array | None = None
        self.direction = np.zeros_like(x[0])
        self.trial = self.before = 0.0
        self.best: tuple[float, Array, Array] = (math.inf, x[0], x[0])
        self.setbacks = 0

    def follow(self, at: Array, mean: Array, eta: float) -> Array:
        """Take the secant step, and turn."""
        norm = float(np.linalg.norm(mean))
        if norm <= self.best[0]:
            self.best = (norm, at, mean)
        if self.gradient is None:
            return self._begin(at, mean, eta)
        if norm > 100.0 * self.best[0]:
            self.setbacks += 1
            return self._begin(self.best[1], self.best[2], eta)
        p, t, change = self.direction, self.trial, mean - self.gradient
        if p @ change <= 8.0 * EPS * np.linalg.norm(p) * self.scale(self.base, eta):
            self.trial = 4.0 * t
            return np.asarray(self.base + self.trial * p)
        a = t * float(np.clip(-(self.gradient @ p) / (p @ change), 0.1, 4.0))
        self.base = self.base + a * p
        self.gradient = (1.0 - a / t) * self.gradient + (a / t) * mean
        beta = max(0.0, float(self.gradient @ change) / float(p @ change))
        self.direction = -self.gradient + beta * p
        if self.direction @ self.gradient >= 0.0:
            self.direction = -self.gradient
        self.trial, self.before = max(a, self.before), a
        return self._try(eta)

    def _begin(self, at: Array, gradient: Array, eta: float) -> Array:
        self.base, self.gradient, self.direction = at, gradient, -gradient
        self.trial, self.before = eta / 2.0**self.setbacks, 0.0
        return self._try(eta)

    def _try(self, eta: float) -> Array:
        assert self.gradient is not None
        if self.stops(self.gradient, self.base, eta):
            return self.base
        return np.asarray(self.base + self.trial * self.direction)


def stacked_conjugate_gradients(x: Array, shares: Sequence[Share], momentum: float | None) -> OnMean:
    """Return the form that fits the loss."""
    return (StackedKrylov if shares[0].quadratic else StackedNonlinear)(x, shares, momentum)


class StackedLbfgs(OnMean):
    """L-BFGS by its matrix: one update for each of the last hundred pairs.

    H <- (1 - s y' / s'y) H (1 - y s' / s'y) + s s' / s'y , from H = s'y / y'y of the last pair
    """

    def __init__(self, x: Array, shares: Sequence[Share], momentum: float | None) -> None:
        super().__init__(x, shares, momentum)
        self.base: Array = x[0]
        self.gradient: Array | None = None
        self.direction = np.zeros_like(x[0])
        self.t = 1.0
        self.pairs: list[tuple[Array, Array]] = []

    def follow(self, at: Array, mean: Array, eta: float) -> Array:
        """Take the trial and turn, or come back halfway."""
        if self.gradient is not None:
            s, y = at - self.base, mean - self.gradient
            if s @ y > 1e-10 * np.linalg.norm(s) * np.linalg.norm(y):
                self.pairs = [*self.pairs, (s, y)][-100:]
            down, up = -float(self.gradient @ self.direction), float(mean @ self.direction)
            if up > 0.9 * down:
                self.t *= float(np.clip(down / (down + up), 0.1, 0.5))
                return np.asarray(self.base + self.t * self.direction)
        self.base, self.gradient, self.t = at, mean, 1.0
        self.direction = -self._inverse(eta) @ mean
        return at if self.stops(mean, at, eta) else np.asarray(at + self.direction)

    def _inverse(self, eta: float) -> Array:
        n = self.base.size
        if not self.pairs:
            return eta * np.eye(n)
        s, y = self.pairs[-1]
        h: Array = float(s @ y) / float(y @ y) * np.eye(n)
        for s, y in self.pairs:
            rho = 1.0 / float(s @ y)
            hy = h @ y
            h = h - rho * (np.outer(s, hy) + np.outer(hy, s)) + rho * (1.0 + rho * float(y @ hy)) * np.outer(s, s)
        return np.asarray(h)
