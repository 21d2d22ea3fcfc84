"""``speculate`` as a table for people; conventions are those of ``render``."""

from typing import TYPE_CHECKING

from energymodel.render import (
    ENERGY,
    TIME,
    columns,
    digits,
    integer,
    line,
    percent,
    printable,
    quantity,
    stack,
    warnings,
)
from energymodel.speculation import Speculation

if TYPE_CHECKING:
    from rich.console import Group


def speculation(s: Speculation) -> "Group":
    """Energy of a token and time between tokens, with drafts and without, batch by batch."""
    table = columns(
        *(">batch", ">J/token", ">without", ">ratio", ">time/token", ">without", ">ratio"),
        *(">pays from, energy", ">time"),
    )
    for row in s.rows:
        table.add_row(
            integer(row.batch),
            quantity(row.energy_per_output_token_j, ENERGY),
            quantity(row.plain_energy_per_output_token_j, ENERGY),
            f"{row.energy_ratio:.2f}",
            quantity(row.itl_s, TIME),
            quantity(row.plain_itl_s, TIME),
            f"{row.itl_ratio:.2f}",
            _rate(row.break_even_acceptance_energy),
            _rate(row.break_even_acceptance_itl),
        )
    drafter = printable(s.speculative_model)
    shape = f"{integer(s.input_tokens)} input and {integer(s.output_tokens)} output tokens"
    even = s.break_even_batch
    energy = _where(even.energy, [r.batch for r in s.rows if r.energy_ratio < 1], s)
    time = _where(even.itl, [r.batch for r in s.rows if r.itl_ratio < 1], s)
    return stack(
        [
            line(f"{printable(s.model)} on {s.gpu}, drafts of {drafter}", "bold"),
            line(
                f"{s.num_speculative_tokens} drafted tokens, each accepted with probability "
                f"{s.acceptance_rate:g}: {digits(s.tokens_per_step)} tokens a step"
            ),
            line(f"requests of {shape}"),
            "",
            table,
            "",
            line(f"saves energy {energy}, time {time}"),
            *warnings(s.warnings),
        ]
    )


def _rate(acceptance: float | None) -> str:
    """The acceptance rate from which drafts pay."""
    return "never" if acceptance is None else percent(acceptance)


def _where(last: float | None, paying: list[int], s: Speculation) -> str:
    """Batches at which drafts pay; ``last`` as in ``BreakEven``."""
    if not paying:
        return "at no batch"
    start = "" if paying[0] == s.rows[0].batch else f"from a batch of {integer(paying[0])} "
    if last is None:
        return f"{start}on" if start else "at every batch"
    return f"{start}up to a batch of {digits(last)}"
