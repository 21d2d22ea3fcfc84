"""Components of tiny transformers models: found, recorded, and nothing of the model left out."""

import json
import re
import warnings
from functools import cache
from importlib import resources

import pytest
from component_builders import BATCH, CONFIGS, PROMPT, config

from energymodel.errors import InputError
from energymodel.find_model import FoundConfig

torch = pytest.importorskip("torch", reason="needs torch")
transformers = pytest.importorskip("transformers", reason="needs transformers")

from calibration.components.find import Piece, Recording, components_of, record  # noqa: E402
from calibration.components.model import (  # noqa: E402
    Loaded,
    Run,
    component_config,
    hf_config,
    load,
    model_kind,
    passes,
)
from calibration.components.pieces import Phase, phases_of  # noqa: E402

DECODER = {
    "embedding", "attention", "attention_projections", "mlp", "norm", "residual", "other", "head",
}  # fmt: skip
MIXTURE = DECODER - {"mlp"} | {"moe"}
ENCODER = DECODER - {"other", "head"}
EXPECTED = {
    "llama": {"prefill": DECODER, "decode": DECODER},
    "gemma3_text": {"prefill": DECODER, "decode": DECODER},
    "qwen3_moe": {"prefill": MIXTURE, "decode": MIXTURE},
    "mixtral": {"prefill": MIXTURE, "decode": MIXTURE},
    "bert": {"encode": ENCODER | {"head"}},
    "modernbert": {"encode": ENCODER | {"other"}},
    "t5": {"encode": ENCODER, "decode": DECODER},
    "bart": {"encode": ENCODER, "decode": DECODER},
}
LAYERS = 3
TOKENS, WIDTH, INNER = BATCH * PROMPT, 64, 96


@cache
def tiny(family: str) -> Loaded:
    return load(FoundConfig(name=family, where=family, config=config(family)), device="cpu")


@cache
def runs(family: str) -> dict[str, Run]:
    return passes(tiny(family), batch=BATCH, prompt=PROMPT, device="cpu")


@cache
def phases(family: str) -> dict[str, Phase]:
    return {p.name: p for p in phases_of(tiny(family).model, runs(family))}


@cache
def recorded(family: str) -> dict[str, Recording]:
    return {phase: record(tiny(family).model, run) for phase, run in runs(family).items()}


def pieces(family: str, phase: str) -> dict[str, Piece]:
    return {p.component: p for p in phases(family)[phase].pieces}


@pytest.mark.parametrize("family", CONFIGS)
def test_every_phase_has_its_components_in_every_layer(family: str) -> None:
    assert set(phases(family)) == set(EXPECTED[family])
    for phase, expected in EXPECTED[family].items():
        found = pieces(family, phase)
        assert set(found) == expected | {"whole"}
        assert phases(family)[phase].pieces[0].component == "whole"
        for component in expected - {"embedding", "other", "head"}:
            assert found[component].layers == LAYERS
        assert {p.component: p.part_of for p in found.values() if p.part_of} == {
            "attention_projections": "attention"
        }


@pytest.mark.parametrize("family", CONFIGS)
def test_no_parameter_is_left_out_and_none_is_in_two_components(family: str) -> None:
    model = tiny(family).model
    names = components_of(model)
    covered = [id(p) for n in names for p in set(model.get_submodule(n).parameters())]
    assert set(covered) == {id(p) for p in model.parameters()}
    inside = [n for n in names if any(n.startswith(f"{other}.") for other in names)]
    assert inside == []


@pytest.mark.parametrize("family", CONFIGS)
def test_every_weight_is_in_a_component_that_some_phase_calls(family: str) -> None:
    model = tiny(family).model
    called = {
        call.name for r in recorded(family).values() for some in r.calls.values() for call in some
    }
    weights = [p for n in components_of(model) if n in called
               for p in model.get_submodule(n).parameters()]  # fmt: skip
    assert {id(p) for p in weights} == {id(p) for p in model.parameters()}


@pytest.mark.parametrize("family", CONFIGS)
def test_flop_of_components_are_those_of_the_whole(family: str) -> None:
    for phase in phases(family).values():
        whole, *parts = phase.pieces
        assert whole.flop > 0
        assert sum(p.flop for p in parts if p.part_of is None) == whole.flop


def test_flop_by_hand() -> None:
    found = pieces("llama", "prefill")
    assert found["mlp"].flop == LAYERS * 3 * 2 * TOKENS * WIDTH * INNER
    assert found["head"].flop == 2 * BATCH * WIDTH * 128  # logits of the last token alone
    projections = 2 * TOKENS * WIDTH * (64 + 32 + 32 + 64)
    assert found["attention_projections"].flop == LAYERS * projections
    core = 4 * 4 * 16 * PROMPT * PROMPT * BATCH  # 4 heads of 16
    assert found["attention"].flop == LAYERS * (projections + core)
    core = 4 * 4 * 16 * (PROMPT + 1) * BATCH  # the new token sees itself and the cached ones
    found = pieces("llama", "decode")
    assert found["attention"].flop - found["attention_projections"].flop == LAYERS * core
    expert, router = 3 * 2 * WIDTH * 32, 2 * WIDTH * 8
    assert pieces("qwen3_moe", "prefill")["moe"].flop == LAYERS * TOKENS * (2 * expert + router)


def test_what_is_outside_of_modules_is_a_component_too() -> None:
    found = pieces("llama", "prefill")
    assert found["residual"].parts == ("6 add",)
    assert set(found["other"].parts) == {"1 arange", "1 add"}  # positions
    assert found["norm"].parts == ("7 LlamaRMSNorm",)
    assert set(pieces("bert", "encode")["mlp"].parts) == {"6 Linear", "3 GELUActivation"}
    assert set(pieces("bert", "encode")["attention"].parts) == {"3 BertSelfAttention", "3 Linear"}


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "qwen3_moe", "t5", "bart"])
def test_a_pass_can_be_repeated_and_its_cache_stays(family: str) -> None:
    run = runs(family)["decode"]
    with torch.inference_mode():
        first = run().logits
        for piece in phases(family)["decode"].pieces:
            piece.call()
        assert torch.equal(run().logits, first)


def test_decode_is_the_step_that_follows_the_prompt() -> None:
    model = tiny("llama").model
    torch.manual_seed(0)
    run = passes(tiny("llama"), batch=BATCH, prompt=PROMPT, device="cpu")["decode"]
    torch.manual_seed(0)
    ids = torch.randint(0, 128, (BATCH, PROMPT))
    with torch.inference_mode():
        expected = model(input_ids=torch.cat((ids, ids[:, :1]), dim=1), use_cache=False).logits
        torch.testing.assert_close(run().logits[:, -1], expected[:, -1], atol=0.02, rtol=0.05)


@pytest.mark.parametrize("family", ["llama", "mixtral", "t5"])
def test_recorded_inputs_are_those_of_the_pass(family: str) -> None:
    phase = "decode"
    (head,) = recorded(family)[phase].calls["head"]
    with torch.inference_mode():
        logits = runs(family)[phase]().logits
        assert torch.equal(head.function(*head.args, **head.kwargs), logits)
    inputs = [call.args[0] for call in recorded(family)[phase].calls["norm"]]
    assert len({x.data_ptr() for x in inputs}) == len(inputs)


@pytest.mark.parametrize("family", ["llama", "qwen3_moe", "bert", "t5", "bart"])
def test_replaying_leaves_recorded_inputs_as_they_were(family: str) -> None:
    for phase in phases(family).values():
        for piece in phase.pieces:
            piece.call()
    for recording in recorded(family).values():
        held = [
            x
            for some in recording.calls.values()
            for call in some
            for x in torch.utils._pytree.tree_leaves((call.args, call.kwargs))
            if isinstance(x, torch.Tensor)
        ]
        before = [x.clone() for x in held]
        for some in recording.calls.values():
            for call in some:
                call.function(*call.args, **call.kwargs)
        assert all(torch.equal(a, b) for a, b in zip(before, held, strict=True))


def test_obstacles_to_a_cuda_graph_are_named() -> None:
    for family in ("llama", "gemma3_text", "qwen3_moe", "mixtral", "bert", "modernbert", "t5"):
        assert [p.obstacle for p in phases(family).values() if p.obstacle] == []
    # Its decoder makes a mask of ones and asks whether there is a zero in it.
    assert "reads back" in (phases("bart")["decode"].obstacle or "")


def test_weights_are_random_and_norms_at_one() -> None:
    model = tiny("bert").model
    weight = model.encoder.layer[0].intermediate.dense.weight.float()
    assert weight.dtype == torch.float32
    assert weight.std().item() == pytest.approx(0.02, rel=0.1)
    norm = model.encoder.layer[0].output.LayerNorm
    assert set(norm.weight.tolist()) == {1.0}
    assert set(norm.bias.tolist()) == {0.0}
    assert next(model.parameters()).dtype == torch.bfloat16
    assert not model.training


def test_the_architecture_and_the_stack_are_named() -> None:
    names = {f: tiny(f).architecture for f in ("llama", "mixtral", "bert", "t5")}
    assert names == {
        "llama": "decoder",
        "mixtral": "MoE decoder",
        "bert": "encoder",
        "t5": "encoder-decoder",
    }
    assert f"transformers {transformers.__version__}" in tiny("llama").stack
    assert "sdpa attention" in tiny("llama").stack
    assert "experts" in tiny("mixtral").stack
    assert "experts" not in tiny("llama").stack


@pytest.mark.parametrize(
    ("published", "kind"),
    [(["BertForMaskedLM"], "encoder"), (["BertLMHeadModel"], "decoder"), (None, "encoder")],
)
def test_the_published_class_says_what_a_family_of_both_kinds_is(
    published: list[str] | None, kind: str
) -> None:
    facts = {**config("bert"), "architectures": published}
    assert model_kind(facts, hf_config(config("bert"))) == kind


def test_configurations_kept_here_are_found_and_the_zoo_as_well() -> None:
    for name in ("bert-base-uncased", "Google-BERT/BERT-base-uncased"):
        assert component_config(name).name == "google-bert/bert-base-uncased"
    assert component_config("flan-t5-base").config["d_ff"] == 2048
    assert component_config("Qwen3-0.6B").name == "Qwen/Qwen3-0.6B"
    with pytest.raises(InputError, match="no-such-model"):
        component_config("no-such-model")


def test_kept_configurations_have_the_parameters_that_they_state() -> None:
    folder = resources.files("calibration") / "data" / "component_models"
    files = [f for f in folder.iterdir() if f.name.endswith(".json")]
    assert len(files) >= 5
    for file in files:
        facts = json.loads(file.read_text(encoding="utf-8"))
        made = hf_config(facts)
        seq2seq = transformers.AutoModelForSeq2SeqLM
        auto = seq2seq if made.is_encoder_decoder else transformers.AutoModel
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = auto.from_config(made)
        stated = re.search(r"([\d,]+) parameters", facts["_source"])
        assert stated is not None
        assert sum(p.numel() for p in model.parameters()) == int(stated[1].replace(",", ""))


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(InputError, match="prompt must leave room in the 64 positions"):
        passes(tiny("llama"), batch=1, prompt=64, device="cpu")  # and none left to decode
    with pytest.raises(InputError, match="bad must be a configuration that transformers can build"):
        load(FoundConfig(name="bad", where="bad", config={"model_type": "nothing"}), device="cpu")
    with pytest.raises(InputError, match="bad must be a configuration that transformers can build"):
        load(FoundConfig(name="bad", where="bad", config={"hidden_size": 8}), device="cpu")
    broken = {**config("llama"), "hidden_size": "wide"}
    with pytest.raises(InputError, match="bad must be a configuration that transformers can build"):
        load(FoundConfig(name="bad", where="bad", config=broken), device="cpu")
    mamba = {"model_type": "mamba", "hidden_size": 32, "num_hidden_layers": 1, "vocab_size": 64}
    state = load(FoundConfig(name="m", where="m", config=mamba), device="cpu")
    with pytest.raises(InputError, match="recurrent state"):
        passes(state, batch=1, prompt=4, device="cpu")
