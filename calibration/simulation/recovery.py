"""What a simulated calibration found, against what was declared."""

from collections.abc import Iterator
from dataclasses import dataclass

from calibration.fit_components import Components
from calibration.simulation.truth import Truth
from calibration.tables import POOLED
from energymodel.profile import Estimate

# A coefficient has come back within this many standard errors, or this close.
STANDARD_ERRORS, CLOSE = 3.0, 0.03
# With a larger relative standard error, the windows do not tell it from the others.
LEAST_KNOWN = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovered:
    """One coefficient, declared and fitted."""

    name: str
    declared: float
    fitted: Estimate

    @property
    def identified(self) -> bool:
        """Whether the windows tell it from the other coefficients."""
        return self.fitted.stderr <= LEAST_KNOWN * abs(self.fitted.value)

    @property
    def inside(self) -> bool:
        """Within three standard errors or 3 % of what was declared."""
        off = abs(self.fitted.value - self.declared)
        return off <= max(STANDARD_ERRORS * self.fitted.stderr, CLOSE * abs(self.declared))


def recovered(found: Components, truth: Truth) -> tuple[Recovered, ...]:
    """Every fitted coefficient of the energy laws and the power law beside its declared value."""
    return tuple(_rows(found, truth))


def _rows(found: Components, truth: Truth) -> Iterator[Recovered]:
    # The static line is known best where it was measured, not at 0 degrees.
    yield Recovered(
        name="static_w_per_c", declared=truth.static_w_per_c, fitted=found.static.watts_per_c
    )
    yield Recovered(name="limit_share", declared=truth.limit_share, fitted=found.limit_share)
    yield Recovered(name="exponent", declared=truth.exponent, fitted=found.exponent)
    yield Recovered(name="hbm_byte_j", declared=truth.hbm_byte_j, fitted=found.hbm_byte_j)
    for name, fit in found.names.items():
        if fit.shared is not None or name in POOLED.values():
            continue
        for coefficient, value in truth.energy(name).items():
            if coefficient != "hbm_byte_j" and value > 0:
                fitted = fit.power.energy[coefficient]
                yield Recovered(name=f"{name}: {coefficient}", declared=value, fitted=fitted)
