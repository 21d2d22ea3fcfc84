"""The table of steps against the exact path, on steps that it was not made from."""

from typing import Any

import numpy as np
import pytest

from energymodel import power, step_table
from energymodel.costs import demand, with_engine
from energymodel.deployment import Deployment
from energymodel.engines import engine_of
from energymodel.find_model import find_model
from energymodel.model import ModelSpec
from energymodel.one_step import TableLoad
from energymodel.power import StepLoad
from energymodel.profile import load
from energymodel.step_parts import parts_of, probes, window_probes, windows_of
from energymodel.step_table import PLAIN, StepTable, step_loads, step_sums
from energymodel.steps import Chunks, Decodes, Floats, Steps

PROFILE, DEPLOYMENT = load("h200"), Deployment()
STATIC_W = 125.0
MODELS = (
    "Llama-3.1-8B-Instruct", "Qwen3-30B-A3B", "gpt-oss-20b", "gemma-3-12b-it",
    "DeepSeek-V2-Lite-Chat", "granite-4.0-h-tiny", "bert-base-uncased",
)  # fmt: skip


def random_steps(size: int, seed: int, *, decodes: bool) -> Steps:
    """Up to 40 decoding sequences and 4 chunks, every one of another length."""
    random = np.random.default_rng(seed)
    each = random.integers(1, 40, size) if decodes else np.zeros(size, np.int64)
    chunks = np.where((random.random(size) < 0.5) | (each == 0), random.integers(1, 5, size), 0)
    d, c = np.repeat(np.arange(size), each), np.repeat(np.arange(size), chunks)
    goes_on = (random.random(c.size) < 0.2) & decodes
    return Steps(
        weight=np.ones(size),
        chunks=Chunks(
            step=c,
            tokens=random.lognormal(6.0, 1.0, c.size).clip(1, 4000).astype(np.int64),
            context=np.where(goes_on, random.integers(1, 20_000, c.size), 0),
            count=np.ones(c.size, np.int64),
            last=(random.random(c.size) < 0.9).astype(np.int64),
            bin=np.zeros(c.size, np.int64),
        ),
        decodes=Decodes(
            step=d,
            context=random.lognormal(7.0, 1.0, d.size).clip(1, 30_000).round(),
            count=np.ones(d.size, np.int64),
            bin=np.zeros(d.size, np.int64),
        ),
    )


def seconds_and_joules(found: StepLoad) -> tuple[Floats, Floats]:
    p = PROFILE.power
    cap_w = p.limit_share.value * PROFILE.gpu.power_limit_w
    clock = power.limited_clock(found, STATIC_W, p.exponent.value, cap_w)
    seconds = found.fixed_s + found.clocked_s / clock
    return seconds, seconds * power.mean_power_w(found, clock, STATIC_W, p.exponent.value)


def exact(model: ModelSpec, steps: Steps) -> StepLoad:
    engine = engine_of(DEPLOYMENT).time(model, DEPLOYMENT, steps, PROFILE, PLAIN)
    return with_engine(demand(model, DEPLOYMENT, steps, PROFILE, PLAIN.bins).load(), engine)[0]


def table_of(name: str) -> StepTable:
    found = step_table.step_table(find_model(name)[0], DEPLOYMENT, PROFILE)
    assert found is not None
    return found


@pytest.mark.parametrize("name", MODELS)
def test_the_table_agrees_with_the_exact_path(name: str) -> None:
    table = table_of(name)
    steps = random_steps(500, 1, decodes=table.model.kind == "decoder")
    true = seconds_and_joules(exact(table.model, steps))
    found = seconds_and_joules(step_loads(table, step_sums(steps, table.windows)))
    for a, b in zip(found, true, strict=True):
        error = np.abs(a / b - 1)
        # Measured: medians to 0.2 %, 99th percentiles to 1.1 %.
        assert np.median(error) < 3e-3
        assert np.quantile(error, 0.99) < 2e-2


@pytest.mark.parametrize("name", ["Llama-3.1-8B-Instruct", "gpt-oss-20b"])
def test_operations_with_times_of_the_table_add_up_to_its_loads(name: str) -> None:
    table = table_of(name)
    steps = random_steps(200, 2, decodes=True)
    sums = step_sums(steps, table.windows)
    made = step_table.demand(table, steps, PLAIN.bins)
    whole = with_engine(made.load(), step_table.engine_times(table, sums))[0]
    for a, b in zip(
        seconds_and_joules(whole), seconds_and_joules(step_loads(table, sums)), strict=True
    ):
        assert np.abs(a / b - 1).max() < 2e-3


@pytest.mark.parametrize("flags", [{}, {"enforce_eager": True}, {"detokenize": True}])
def test_what_the_engine_adds_is_not_interpolated(flags: dict[str, Any]) -> None:
    model, deployment = find_model("Qwen3-30B-A3B")[0], Deployment(**flags)
    table = step_table.step_table(model, deployment, PROFILE)
    assert table is not None
    steps = random_steps(300, 3, decodes=True)
    found = step_table.engine_times(table, step_sums(steps, table.windows))
    true = engine_of(deployment).time(model, deployment, steps, PROFILE, PLAIN)
    np.testing.assert_allclose(found.outside_s, true.outside_s, rtol=1e-3)
    np.testing.assert_allclose(found.launch_s, true.launch_s, rtol=1e-3, atol=1e-9)
    np.testing.assert_allclose(found.gap_s, true.gap_s, rtol=1e-3, atol=1e-9)


def test_one_step_at_a_time_is_the_same() -> None:
    table = table_of("gpt-oss-20b")
    steps = random_steps(100, 4, decodes=True)
    sums = step_sums(steps, table.windows)
    found = step_loads(table, sums)
    true = np.stack([found.fixed_s, found.clocked_s, found.core_j, found.hbm_j], axis=1)
    price = TableLoad(table)
    c = steps.chunks
    for row in range(steps.size):
        chunks = [
            (int(t), int(x), int(n), 0)
            for t, x, n in zip(
                c.tokens[c.step == row],
                c.context[c.step == row],
                c.last[c.step == row],
                strict=True,
            )
        ]
        visible = tuple(sums.visible[:, row])
        assert price(int(sums.decoding[row]), visible, chunks) == pytest.approx(
            tuple(true[row]), rel=1e-6
        )


@pytest.mark.parametrize("name", MODELS)
def test_every_operation_that_does_anything_is_in_one_part(name: str) -> None:
    model = find_model(name)[0]
    windows = windows_of(model)

    def lower(steps: Steps) -> tuple[object, ...]:
        return engine_of(DEPLOYMENT).lower(
            model, DEPLOYMENT, steps, np.ones(1, np.int64), PLAIN.bins
        )

    ops = lower(probes())
    parts = parts_of(ops, lower(window_probes(windows)), windows)  # type: ignore[arg-type]
    assert parts is not None
    found = [*parts.tokens, *parts.sampled, *parts.prompts]
    found += [index for indices in parts.decode.values() for index in indices]
    active = [i for i, op in enumerate(ops) if op.hbm_bytes.any()]  # type: ignore[attr-defined]
    assert sorted(found) == active


def test_windows_have_parts_of_their_own() -> None:
    table = table_of("gpt-oss-20b")
    assert table.windows == (None, 128)
    assert sorted(window for window, _ in table.decode) == [0, 1]


def test_an_encoder_decoder_has_no_table() -> None:
    model = find_model("flan-t5-base")[0]
    assert step_table.step_table(model, DEPLOYMENT, PROFILE) is None
