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
    assert counts.cache_bytes(case, tokens) == counts.our_cache_bytes(model, tokens)


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
# Types that transformers does not know, and the one whose class builds the same tensors.
CLASSES = {"internlm2": "llama", "kimi_k2": "deepseek_v3"}


@pytest.mark.parametrize("name", ZOO)
def test_zoo_parameters_are_those_of_the_class(name: str) -> None:
    config = ZOO[name]
    spec, _ = model_from_config(config, name)
    fields = config if spec.towers else config.get("text_config", config)
    known = {"model_type": CLASSES.get(str(fields["model_type"]), fields["model_type"])}
    if config["model_type"] == "qwen3_omni_moe":
        pytest.skip("the class has a part that speaks, and the file none that hears")
    # The class of T5 ties its head until it loads a checkpoint whose head differs.
    untied = spec.encoder is not None and not spec.tie_word_embeddings
    own_head = spec.embedding_param_count if untied else 0
    assert spec.param_count == own_head + counts.param_count(
        {**fields, **known}, counts.auto_class(spec)
    )
