"""Laws of loss over replay share, tokens, model size and number of pieces, fitted to what trials measured.

Sources: CMR, arXiv 2407.17467: at a fixed amount of text, L(R) = a R^s + b in the share R of the new language.
D-CPT, arXiv 2406.01375: L(N, D, r) = E + A / N^alpha + B r^eta / D^beta + C / (r + eps)^gamma in model size N, tokens D
and the share r of the text that is measured; one law for the old language and one for the new. Bits per byte are loss
over a constant, so the laws hold for them.

All of them are linear in some coefficients once the exponents are known: exponents are searched from several starts
(Huber loss with a delta of 0.001, as D-CPT has it), coefficients solved for exactly, without negative ones where the
law has none.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tsugiki.experiment.errors import ConfigError, DataError

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

_HUBER = 1e-3
_MOST_FARTHER = 4.0
"""A law is asked at most so many times beyond the largest size or amount of text that it was fitted to."""
_SPARE = 2
"""Points beyond the number of parameters that a fit needs."""


@dataclass(frozen=True)
class Law:
    """A law: columns that its coefficients multiply, for given exponents.

    Attributes:
        name: of the law.
        variables: what it is a function of, in order.
        exponents: name -> (lowest, highest, starts).
        columns: (exponents, variables [n, v]) -> [n, coefficients].
        coefficients: names.
        positive: coefficients that cannot be negative.
    """

    name: str
    variables: tuple[str, ...]
    exponents: Mapping[str, tuple[float, float, tuple[float, ...]]]
    columns: Callable[[Sequence[float], Array], Array]
    coefficients: tuple[str, ...]
    positive: bool = False


def cmr(*, of_replay: bool = False) -> Law:
    """CMR's L(R) = a R^s + b.

    Args:
        of_replay: ``share`` is that of the replayed language, 1 - R.
    """

    def columns(exponents: Sequence[float], x: Array) -> Array:
        import numpy as np

        share = np.maximum(1 - x[:, 0], 1e-6) if of_replay else x[:, 0]
        return np.stack([share ** exponents[0], np.ones(len(x))], axis=1)

    return Law("CMR", ("share",), {"s": (-3.0, 6.0, (-0.5, 0.5, 2.0))}, columns, ("a", "b"))


def dcpt(*, tokens: bool, parameters: bool, of_replay: bool = False) -> Law:
    """D-CPT's law, without the terms of what does not vary.

    Args:
        tokens: the amount of text varies.
        parameters: the model's size varies.
        of_replay: ``share`` is that of the other language, 1 - r.
    """
    exponents: dict[str, tuple[float, float, tuple[float, ...]]] = {
        "eta": (0.05, 3.0, (0.3, 1.0)),
        "gamma": (0.02, 3.0, (0.2, 1.0)),
        "eps": (1e-3, 1.0, (0.05,)),
    }
    variables = ["share"]
    if tokens:
        exponents["beta"] = (0.02, 2.0, (0.2, 0.6))
        variables.append("tokens")
    if parameters:
        exponents["alpha"] = (0.02, 2.0, (0.2, 0.6))
        variables.append("parameters")

    def columns(values: Sequence[float], x: Array) -> Array:
        import numpy as np

        named = dict(zip(exponents, values, strict=True))
        share = 1 - x[:, 0] if of_replay else x[:, 0]
        at = dict(zip(variables, x.T, strict=True))
        text = share ** named["eta"] / (at["tokens"] ** named["beta"] if tokens else 1.0)
        found = [np.ones(len(x)), text, (share + named["eps"]) ** -named["gamma"]]
        if parameters:
            found.append(at["parameters"] ** -named["alpha"])
        return np.stack(found, axis=1)

    return Law(
        "D-CPT",
        tuple(variables),
        exponents,
        columns,
        ("E", "B", "C", *(["A"] if parameters else [])),
        positive=True,
    )


def parabola(variable: str) -> Law:
    """A parabola in the logarithm: a best value between too little and too much (pieces, learning rate)."""

    def columns(exponents: Sequence[float], x: Array) -> Array:
        import numpy as np

        logarithm = np.log(x[:, 0])
        return np.stack([np.ones(len(x)), logarithm, logarithm**2], axis=1)

    return Law("parabola in the logarithm", (variable,), {}, columns, ("c0", "c1", "c2"))


@dataclass(frozen=True)
class Fit:
    """A fitted law.

    Attributes:
        law: which.
        exponents: by name.
        coefficients: by name.
        ranges: smallest and largest value of each variable among the points.
        residuals: what each point is above the fit of all points.
        left_out: what each point is above the fit of all others.
        draws: exponents and coefficients of refits to resampled residuals: [(exponents, coefficients)].
        scale: what variables are divided by, so that powers stay of ordinary size.
    """

    law: Law
    exponents: Mapping[str, float]
    coefficients: Mapping[str, float]
    ranges: Mapping[str, tuple[float, float]]
    residuals: tuple[float, ...]
    left_out: tuple[float, ...]
    draws: Sequence[tuple[Array, Array]]
    scale: Array

    @property
    def error(self) -> float:
        """Root mean square of what left-out points miss."""
        return float(sum(value**2 for value in self.left_out) / len(self.left_out)) ** 0.5

    def __call__(self, **variables: float) -> tuple[float, tuple[float, float]]:
        """The law at a place, with an interval of 95 %.

        Raises:
            ConfigError: it lies beyond what the fit supports.
        """
        import numpy as np

        self._check(variables)
        x = np.array([[variables[name] for name in self.law.variables]]) / self.scale
        value = self._at(list(self.exponents.values()), np.array(list(self.coefficients.values())), x)
        drawn = [self._at(list(exponents), coefficients, x) for exponents, coefficients in self.draws]
        low, high = np.percentile(drawn, [2.5, 97.5])
        return value, (float(low), float(high))

    def _at(self, exponents: Sequence[float], coefficients: Array, x: Array) -> float:
        return float((self.law.columns(exponents, x) @ coefficients)[0])

    def _check(self, variables: Mapping[str, float]) -> None:
        for name in self.law.variables:
            low, high = self.ranges[name]
            most = high * (_MOST_FARTHER if name in ("tokens", "parameters") else 1.0)
            if not low * (1 - 1e-9) <= variables[name] <= most * (1 + 1e-9):
                raise ConfigError(
                    f"the {self.law.name} law was not fitted there, and is not asked",
                    where=name, got=f"{variables[name]:.4g}", expected=f"{low:.4g} to {most:.4g}",
                    fix="measure trials that reach farther",
                )  # fmt: skip


def fit(
    law: Law,
    points: Sequence[Mapping[str, float]],
    losses: Sequence[float],
    *,
    resamples: int = 200,
    seed: int = 1234,
) -> Fit:
    """Fit a law to points.

    Args:
        law: see :func:`cmr`, :func:`dcpt`, :func:`parabola`.
        points: each variable by name.
        losses: loss, or bits per byte, of each point.
        resamples: refits to resampled residuals, for the intervals.
        seed: of the resampling.

    Raises:
        DataError: too few points, or too few values of a variable.
    """
    import numpy as np

    wanted = len(law.exponents) + len(law.coefficients)
    if len(points) < wanted + _SPARE:
        raise DataError(
            f"too few points for a fit of the {law.name} law", got=f"{len(points)} points",
            expected=f"{wanted + _SPARE} or more: it has {wanted} parameters", fix="measure more trials",
        )  # fmt: skip
    x = np.array([[point[name] for name in law.variables] for point in points], dtype=np.float64)
    y = np.array(losses, dtype=np.float64)
    for at, name in enumerate(law.variables):
        if len(set(x[:, at])) < 3:
            raise DataError(
                f"too few values of {name} for a fit of the {law.name} law", got=f"{len(set(x[:, at]))} values",
                expected="3 or more", fix=f"measure trials that differ in {name}",
            )  # fmt: skip
    scale = np.array(
        [
            1.0 if name == "share" else float(np.exp(np.log(x[:, at]).mean()))
            for at, name in enumerate(law.variables)
        ]
    )
    x = x / scale
    starts = list(itertools.product(*(bounds[2] for bounds in law.exponents.values())))
    exponents, coefficients = _best(law, x, y, starts)
    fitted = law.columns(list(exponents), x) @ coefficients
    near = [tuple(exponents)]
    left_out = []
    for at in range(len(y)):
        kept = np.arange(len(y)) != at
        others = _best(law, x[kept], y[kept], near)
        left_out.append(float(y[at] - (law.columns(list(others[0]), x[at : at + 1]) @ others[1])[0]))
    random = np.random.default_rng(seed)
    # Residuals are smaller than errors by the parameters that took some of them up.
    spread = (y - fitted) * (len(y) / (len(y) - wanted)) ** 0.5
    draws = [_best(law, x, fitted + random.choice(spread, len(y)), near) for _ in range(resamples)]
    return Fit(
        law,
        dict(zip(law.exponents, map(float, exponents), strict=True)),
        dict(zip(law.coefficients, map(float, coefficients), strict=True)),
        {
            name: (float(x[:, at].min() * scale[at]), float(x[:, at].max() * scale[at]))
            for at, name in enumerate(law.variables)
        },
        tuple(map(float, y - fitted)),
        tuple(left_out),
        draws,
        scale,
    )


def _best(law: Law, x: Array, y: Array, starts: Sequence[Sequence[float]]) -> tuple[Array, Array]:
    """Exponents and coefficients of the smallest loss that was found from any start."""
    import numpy as np
    from scipy.optimize import least_squares, nnls

    def coefficients(exponents: Sequence[float]) -> Array:
        columns = law.columns(exponents, x)
        found: Array = nnls(columns, y)[0] if law.positive else np.linalg.lstsq(columns, y, rcond=None)[0]
        return found

    if not law.exponents:
        return np.array([]), coefficients(())

    def residuals(exponents: Array) -> Array:
        found: Array = law.columns(list(exponents), x) @ coefficients(list(exponents)) - y
        return found

    bounds = np.array([(low, high) for low, high, _ in law.exponents.values()]).T
    found = [
        least_squares(residuals, np.clip(start, *bounds), bounds=bounds, loss="huber", f_scale=_HUBER)
        for start in starts
    ]
    best = min(found, key=lambda item: float(item.cost)).x
    return best, coefficients(list(best))


def critical_share(fitted: Fit, bound: float, **fixed: float) -> tuple[float, tuple[float, float]]:
    """The smallest replay share at which a law of English over it stays below a bound, with an interval of 95 %.

    Args:
        fitted: a law of the English bits per byte in ``share``, the share of English.
        bound: most bits per byte.
        fixed: the law's other variables.

    Raises:
        ConfigError: no share that was measured reaches the bound; or see :meth:`Fit.__call__`.
    """
    import numpy as np

    low, high = fitted.ranges["share"]
    fitted._check({"share": low, **fixed})
    shares = np.linspace(low, high, 2001)
    variables = {"share": shares, **{name: np.full(len(shares), value) for name, value in fixed.items()}}
    x = np.stack([variables[name] for name in fitted.law.variables], axis=1) / fitted.scale

    def first(exponents: Sequence[float], coefficients: Array) -> float | None:
        """The first share from which on the law stays below the bound."""
        above = np.flatnonzero(fitted.law.columns(exponents, x) @ coefficients > bound)
        if len(above) == 0:
            return float(low)
        return None if above[-1] == len(shares) - 1 else float(shares[above[-1] + 1])

    found = first(list(fitted.exponents.values()), np.array(list(fitted.coefficients.values())))
    if found is None:
        raise ConfigError(
            "no replay share that was measured keeps the bound",
            got=f"{bound:.4g} bits per byte",
            expected=f"a bound that is kept at some share from {low:.3g} to {high:.3g}",
            fix="measure larger shares, or allow more",
        )  # fmt: skip
    drawn = [first(list(exponents), coefficients) for exponents, coefficients in fitted.draws]
    # A refit that never keeps the bound is as far up as was measured.
    bounds = np.percentile([high if share is None else share for share in drawn], [2.5, 97.5])
    return found, (float(bounds[0]), float(bounds[1]))


def best_value(fitted: Fit) -> tuple[float, tuple[float, float]]:
    """Where a parabola in the logarithm is lowest, with an interval of 95 %.

    Raises:
        DataError: it has no lowest place among the values that were measured.
    """
    import numpy as np

    (name,) = fitted.law.variables
    low, high = fitted.ranges[name]

    def lowest(coefficients: Any) -> float | None:
        _, linear, square = coefficients
        if square <= 0:
            return None
        return float(np.exp(-linear / (2 * square)) * fitted.scale[0])

    found = lowest(list(fitted.coefficients.values()))
    if found is None or not low <= found <= high:
        raise DataError(
            f"no best {name} among the values that were measured",
            got="still better towards an end" if found is None else f"the parabola is lowest at {found:.4g}",
            expected=f"{low:.4g} to {high:.4g}", fix="measure farther",
        )  # fmt: skip
    drawn = [lowest(coefficients) for _, coefficients in fitted.draws]
    inside = [min(max(value, low), high) for value in drawn if value is not None] or [low, high]
    bounds = np.percentile(inside, [2.5, 97.5])
    return found, (float(bounds[0]), float(bounds[1]))
