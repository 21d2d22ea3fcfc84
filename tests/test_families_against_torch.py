"""Every family against transformers: parameters, FLOP of prefill and decode, cache bytes.

The cases are in the files ``cases_*.py``, how torch is asked in ``torch_counts``.
"""

import pytest
from family_cases import Case, cases

import models_zoo
from energymodel.model import model_from_config

counts = pytest.importorskip("torch_counts", reason="needs torch and transformers")

CASES = cases()


def checked(what: str) -> pytest.MarkDecorator:
    """The cases in which ``what`` is compared."""
    chosen = [c for c in CASES if what not in c.skip]
    return pytest.mark.parametrize("case", chosen, ids=lambda c: c.name)


@checked("parameters")
def test_parameters_are_those_of_the_class(case: Case) -> None:
    assert counts.spec(case.full).param_count == counts.param_count(case.full, case.auto)


@checked("parameters")
def test_weight_bytes_are_those_of_the_tensors(case: Case) -> None:
    tensors = counts.build(case.full, "meta", case.auto).bfloat16().parameters()
    assert counts.spec(case.full).weight_bytes() == sum(p.nbytes for p in tensors)


@checked("prefill")
@pytest.mark.parametrize("tokens", [1, 11])
def test_prefill_flop_are_those_of_torch(case: Case, tokens: int) -> None:
    ours = counts.our_prefill(counts.spec(case.full), tokens)
    assert counts.torch_prefill(case, tokens) == ours


@checked("decode")
@pytest.mark.parametrize("context", [3, 9])
def test_decode_flop_are_those_of_torch(case: Case, context: int) -> None:
    ours = counts.our_decode(counts.spec(case.full), context)
    assert counts.torch_decode(case, context) == ours


@checked("cache")
def test_cache_bytes_are_those_of_the_real_cache(case: Case) -> None:
    # A window of 4 is not yet full after 3 tokens.
    model, tokens = counts.spec(case.full), 3
    expected = tokens * model.kv_bytes_per_token() + model.state_bytes()
    assert counts.cache_bytes(case, tokens) == expected


def architectures() -> dict[str, dict[str, object]]:
    """The zoo without models that differ in name only."""
    found: dict[str, tuple[str, dict[str, object]]] = {}
    for name in models_zoo.names():
        config = models_zoo.find(name)
        assert config is not None
        key = repr(sorted((k, repr(v)) for k, v in config.items() if not k.startswith("_")))
        found.setdefault(key, (name, config))
    return dict(found.values())


ZOO = architectures()


@pytest.mark.parametrize("name", ZOO)
def test_zoo_parameters_are_those_of_the_class(name: str) -> None:
    config = ZOO[name]
    fields = config.get("text_config", config)
    spec, _ = model_from_config(config, name)
    assert spec.param_count == counts.param_count(fields)
