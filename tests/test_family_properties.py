"""What holds of every family: more work costs more, a window or a router never adds any."""

from dataclasses import fields, is_dataclass, replace
from typing import TypeVar

import numpy as np
import pytest
from family_cases import Case, cases
from step_builders import decode, prefill

from energymodel.blocks import Moe, SoftmaxAttention, leaves
from energymodel.deployment import Deployment
from energymodel.model import ModelSpec, model_from_config
from energymodel.ops import Op, lower
from energymodel.steps import Steps

CASES = cases()
EACH = pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
T = TypeVar("T")


def spec(case: Case) -> ModelSpec:
    return model_from_config(case.full, "test")[0]


def cost(model: ModelSpec, steps: Steps, prompt: int) -> np.ndarray:
    """(FLOP, bytes) of one step; ``prompt`` is what each request brought along."""
    ops = lower(model, Deployment(), steps, np.array([prompt]))
    flop = sum(op.count * op.flop.item() for op in ops)
    return np.array([flop, sum(op.count * op.hbm_bytes.item() for op in ops)])


def generates(model: ModelSpec) -> bool:
    return model.kind != "encoder"


@EACH
def test_more_tokens_cost_more(case: Case) -> None:
    model = spec(case)
    costs = [cost(model, prefill(n), n) for n in (1, 2, 7, 40, 90)]
    assert (np.diff(costs, axis=0) > 0).all()


@EACH
def test_a_longer_context_never_costs_less(case: Case) -> None:
    model = spec(case)
    if not generates(model):
        pytest.skip("an encoder keeps no context")
    contexts = (3, 4, 9, 50)
    costs = [cost(model, decode(n), min(contexts)) for n in contexts]
    attention = [c for layer in model.layers for b in layer.blocks for c in leaves(b)]
    chunked = any(isinstance(b, SoftmaxAttention) and b.chunk_size for b in attention)
    if not chunked:  # the first token of a piece of Llama 4 sees itself alone
        assert (np.diff(costs, axis=0) >= 0).all()


@EACH
def test_more_sequences_cost_more_and_share_the_weights(case: Case) -> None:
    model = spec(case)
    one, many = ((decode(9, n), 9) if generates(model) else (prefill(9, 0, n), 9) for n in (1, 5))
    single, batch = cost(model, *one), cost(model, *many)
    assert (batch > single).all()
    assert batch[1] < 5 * single[1]


@EACH
def test_more_layers_cost_more(case: Case) -> None:
    model = spec(case)
    deeper = replace(model, text=replace(model.text, layers=model.text.layers * 2))
    assert (cost(deeper, prefill(8), 8) > cost(model, prefill(8), 8)).all()
    assert deeper.kv_bytes_per_token() == 2 * model.kv_bytes_per_token()
    assert deeper.state_bytes() == 2 * model.state_bytes()
    assert deeper.weight_bytes() > model.weight_bytes()


# --- windows --------------------------------------------------------------------------------------


def unwindowed(value: T) -> T:
    """The same, with every attention over everything."""
    if isinstance(value, tuple):
        return tuple(unwindowed(v) for v in value)  # type: ignore[return-value]
    if not is_dataclass(value) or isinstance(value, type):
        return value
    inner = {f.name: unwindowed(getattr(value, f.name)) for f in fields(value) if f.init}
    if isinstance(value, SoftmaxAttention):
        inner |= {"sliding_window": None, "chunk_size": None}
    return replace(value, **inner)  # type: ignore[type-var]


WINDOWED = [c for c in CASES if unwindowed(spec(c).text) != spec(c).text]


@pytest.mark.parametrize("case", WINDOWED, ids=lambda c: c.name)
@pytest.mark.parametrize("tokens", [1, 4, 5, 60])
def test_a_window_never_costs_more_than_none(case: Case, tokens: int) -> None:
    model = spec(case)
    full = replace(model, text=unwindowed(model.text))
    steps = [prefill(tokens), *([decode(tokens)] if generates(model) else [])]
    for step in steps:
        # Like layers are summed together, so that the last bit may differ.
        most = cost(full, step, tokens) * (1 + 1e-12)
        assert (cost(model, step, tokens) <= most).all()


@pytest.mark.parametrize("case", WINDOWED, ids=lambda c: c.name)
def test_a_window_that_is_full_saves(case: Case) -> None:
    model = spec(case)
    full = replace(model, text=unwindowed(model.text))
    far = 60_000  # beyond every default
    steps = decode(far) if generates(model) else prefill(far)
    assert (cost(model, steps, far) < cost(full, steps, far)).any()


# --- experts --------------------------------------------------------------------------------------

ROUTED = [
    c
    for c in CASES
    if any(isinstance(p, Moe) for layer in spec(c).layers for b in layer.blocks for p in leaves(b))
]


def experts(model: ModelSpec) -> list[Moe]:
    """The distinct routed blocks of a model."""
    found = (p for layer in model.layers for b in layer.blocks for p in leaves(b))
    return list(dict.fromkeys(p for p in found if isinstance(p, Moe)))


@pytest.mark.parametrize("case", ROUTED, ids=lambda c: c.name)
@pytest.mark.parametrize("tokens", [1, 2, 5, 1000])
def test_bytes_of_experts_lie_between_the_chosen_ones_and_all(case: Case, tokens: int) -> None:
    model = spec(case)
    ops: list[Op] = [op for op in lower(model, Deployment(), prefill(tokens)) if op.kind == "moe"]
    assert len(ops) >= len(experts(model)) > 0
    for op in ops:
        shape = {name: np.asarray(value).item() for name, value in op.shape.items()}
        each = op.weight_bytes.item() / shape["experts_touched"]
        assert shape["top_k"] * (1 - 1e-9) <= shape["experts_touched"] <= shape["num_experts"]
        assert op.weight_bytes.item() >= shape["top_k"] * each * (1 - 1e-9)
    if tokens == 1:  # one token is routed to its top k and to nothing else
        assert all(
            op.shape["experts_touched"].item() == pytest.approx(op.shape["top_k"]) for op in ops
        )


@pytest.mark.parametrize("case", ROUTED, ids=lambda c: c.name)
def test_a_token_is_multiplied_with_some_of_the_parameters(case: Case) -> None:
    model = spec(case)
    tables = model.embedding_param_count
    assert 0 < model.active_param_count < model.param_count + tables
    for moe in experts(model):
        [routed] = [w for w in moe.weights(model.hidden_size) if w.name == "experts"]
        assert routed.active_params * moe.num_experts == routed.params * moe.num_experts_per_tok
