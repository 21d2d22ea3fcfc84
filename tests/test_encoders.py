"""Encoders and encoder-decoders: what runs, how often, and for whom."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from step_builders import prefill, steps_of

from energymodel import hardware
from energymodel.blocks import SoftmaxAttention
from energymodel.cli import cli
from energymodel.deployment import Deployment
from energymodel.engines.vllm import cache_room, engine_time
from energymodel.errors import InputError
from energymodel.model import ModelSpec, model_from_config
from energymodel.ops import Op, lower
from energymodel.predict import predict
from energymodel.profile import load
from energymodel.steps import Steps
from energymodel.vllm_memory import BOUNDLESS_TOKENS
from energymodel.workload import Bin, Workload

BERT: Mapping[str, object] = {
    "model_type": "bert",
    "vocab_size": 30_522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
}
T5: Mapping[str, object] = {
    "model_type": "t5",
    "vocab_size": 32_128,
    "d_model": 768,
    "d_kv": 64,
    "d_ff": 3072,
    "num_heads": 12,
    "num_layers": 6,
    "num_decoder_layers": 12,
}
WHISPER: Mapping[str, object] = {
    "model_type": "whisper",
    "vocab_size": 51_866,
    "num_mel_bins": 128,
    "d_model": 1280,
    **{f"{side}_layers": 32 for side in ("encoder", "decoder")},
    **{f"{side}_attention_heads": 20 for side in ("encoder", "decoder")},
    **{f"{side}_ffn_dim": 5120 for side in ("encoder", "decoder")},
}


def spec(config: Mapping[str, object], **changes: object) -> ModelSpec:
    return model_from_config({**config, **changes}, "test")[0]


def in_bins(steps: Steps, chunks: list[int], decodes: list[int]) -> Steps:
    """The same steps, their rows in these bins."""
    return replace(
        steps,
        chunks=replace(steps.chunks, bin=np.array(chunks, dtype=np.int64)),
        decodes=replace(steps.decodes, bin=np.array(decodes, dtype=np.int64)),
    )


def lowered(model: ModelSpec, steps: Steps, *prompts: int) -> list[Op]:
    return list(lower(model, Deployment(), steps, np.array(prompts)))


def named(ops: list[Op], name: str) -> list[Op]:
    return [op for op in ops if op.name == name]


def rows(ops: list[Op], name: str) -> list[float]:
    """Rows of every operation of that name, in order."""
    return [float(op.shape["m"].item()) for op in named(ops, name)]  # type: ignore[union-attr]


# --- published sizes ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "params"),
    [
        # As the cards of bert-base-uncased, t5-base and whisper-large-v3 say: 110 M, 223 M, 1.54 B.
        (BERT, 109_482_240),
        ({**T5, "num_layers": 12}, 222_903_552),
        (WHISPER, 1_543_490_560),
    ],
)
def test_parameters_of_published_models(config: Mapping[str, object], params: int) -> None:
    assert spec(config).param_count == params


def test_a_head_of_its_own_is_one_more_table() -> None:
    own = spec(T5, tie_word_embeddings=False)
    assert own.param_count - spec(T5).param_count == 32_128 * 768


def test_layers_that_are_run_again_are_stored_once() -> None:
    albert = {**BERT, "model_type": "albert", "embedding_size": 128}
    once, again = spec(albert, num_hidden_layers=1), spec(albert, num_hidden_layers=12)
    assert once.param_count == again.param_count
    one, twelve = (lowered(m, prefill(64), 64) for m in (once, again))
    assert sum(op.count for op in named(twelve, "qkv_proj")) == 12 * named(one, "qkv_proj")[0].count


# --- encoders -------------------------------------------------------------------------------------


def test_every_token_of_an_encoder_sees_every_other() -> None:
    ops = lowered(spec(BERT), prefill(100, count=3, last=0), 100)
    (attention,) = named(ops, "attention_prefill")
    assert attention.shape["pairs"] == 3 * 100 * 100
    assert attention.flop == 4 * 768 * 3 * 100 * 100
    assert attention.stands_for == "attention without a causal mask"
    assert not named(ops, "attention_decode")
    assert not named(ops, "kv_cache_write")
    assert not named(ops, "lm_head")


def test_a_pooler_sees_one_row_of_each_text() -> None:
    assert rows(lowered(spec(BERT), prefill(100, count=3, last=0), 100), "pooler") == [3]


def brute_force_band(tokens: int, reach: int) -> int:
    return sum(abs(q - k) <= reach for q in range(tokens) for k in range(tokens))


@given(tokens=st.integers(1, 60), window=st.integers(1, 40))
def test_a_window_reaches_half_of_it_to_either_side(tokens: int, window: int) -> None:
    local = SoftmaxAttention(
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=8,
        rotary_dim=8,
        causal=False,
        sliding_window=window,
    )
    pairs = local.chunk_pairs(np.array([tokens]), np.array([0]))
    assert pairs.item() == brute_force_band(tokens, window // 2)


def test_nothing_is_cached_by_an_encoder() -> None:
    model = spec(BERT)
    assert model.kv_bytes_per_token() == 0
    room = cache_room(model, Deployment(), hardware.load("h200"))
    assert room.tokens_within_windows == BOUNDLESS_TOKENS


def test_an_encoder_that_does_not_fit_is_refused() -> None:
    wide = spec(BERT, hidden_size=120_000, intermediate_size=480_000, num_attention_heads=1000)
    with pytest.raises(InputError, match="does not fit one"):
        cache_room(wide, Deployment(), hardware.load("h200"))


def test_scores_of_position_are_there_for_every_token_and_distance() -> None:
    deberta = spec(
        BERT,
        model_type="deberta-v2",
        relative_attention=True,
        position_buckets=256,
        pos_att_type="p2c|c2p",
        share_att_key=True,
    )
    ops = lowered(deberta, prefill(100, count=2, last=0), 100)
    for term in ("pos_key", "pos_query"):
        # Once a step, whatever is in it.
        assert rows(ops, f"{term}_proj") == [512]
        (scores,) = named(ops, f"{term}_scores")
        assert scores.flop == 2 * (2 * 100) * 512 * 768
        (picked,) = named(ops, f"{term}_pick")
        assert picked.shape["bytes"] == 2 * 100 * 100 * 3 * 12 * 2


# --- encoder-decoders -----------------------------------------------------------------------------


def test_the_prompt_passes_the_encoder_and_the_decoder_starts_with_one_token() -> None:
    ops = lowered(spec(T5), prefill(100, count=2), 100)
    assert [op.count for op in named(ops, "qkv_proj")] == [6, 12]
    assert rows(ops, "qkv_proj") == [200, 2]
    assert rows(ops, "cross_q_proj") == [2]
    assert rows(ops, "cross_kv_proj") == [200]
    assert rows(ops, "lm_head") == [2]
    (cross,) = named(ops, "cross_attention_prefill")
    assert cross.flop == 4 * 768 * 2 * 100


def test_a_generated_token_reads_what_the_encoder_left_and_what_was_generated() -> None:
    # Two sequences that have generated 10 tokens after a prompt of 100: the cache of the decoder
    # holds the start token and 10 more, and the new one makes 12.
    ops = lowered(spec(T5), steps_of(([], [(110, 2)])), 100)
    (own,) = [op for op in named(ops, "attention_decode") if op.flop.item()]
    (cross,) = named(ops, "cross_attention_decode")
    assert own.shape["kv_tokens"] == 2 * 12
    assert cross.shape["kv_tokens"] == 2 * 100
    assert rows(ops, "cross_kv_proj") == [0]
    assert sum(op.flop.item() for op in named(ops, "attention_prefill")) == 0


def test_each_bin_reads_its_own_prompt() -> None:
    steps = in_bins(steps_of(([], [(110, 2), (70, 3)])), [], [0, 1])
    (cross,) = named(lowered(spec(T5), steps, 100, 50), "cross_attention_decode")
    assert cross.shape["kv_tokens"] == 2 * 100 + 3 * 50


def test_without_an_answer_only_the_encoder_runs() -> None:
    ops = lowered(spec(T5), prefill(100, count=2, last=0), 100)
    assert rows(ops, "qkv_proj") == [200, 0]
    assert rows(ops, "cross_kv_proj") == [0]
    assert rows(ops, "lm_head") == [0]


def test_after_a_preemption_the_answer_is_computed_again_in_the_decoder() -> None:
    ops = lowered(spec(T5), prefill(107), 100)
    assert rows(ops, "qkv_proj") == [100, 1 + 7]
    assert rows(ops, "cross_kv_proj") == [100]


def test_the_caches_of_a_t5() -> None:
    model = spec(T5)
    assert model.kv_bytes_per_token() == 12 * 2 * 768 * 2
    assert model.cross_bytes_per_token() == 12 * 2 * 768 * 2
    capacity = cache_room(model, Deployment(), hardware.load("h200")).tokens_within_windows
    assert 0 < capacity < 0.9 * hardware.load("h200").hbm_bytes / (12 * 2 * 768 * 2)


def test_whisper_convolves_frames_to_positions() -> None:
    model = spec(WHISPER)
    ops = lowered(model, prefill(1500), 1500)
    first, second = (named(ops, name)[0] for name in ("conv1", "conv2"))
    # 3,000 frames of 128 bins and 1,500 of 1,280 channels, kernels of 3.
    assert first.flop == 2 * 3000 * 1280 * 128 * 3
    assert second.flop == 2 * 1500 * 1280 * 1280 * 3
    assert first.stands_for == "convolution"
    assert rows(ops, "qkv_proj") == [1500, 4]
    assert len(named(ops, "embedding")) == 1  # of the decoder: sound is not looked up
    assert spec(WHISPER, vocab_size=51_864).start_tokens == 2


def test_encoder_layers_take_time_where_there_are_prompts() -> None:
    profile = load("h200")
    workload = Workload(bins=(Bin(input_tokens=100, output_tokens=10, count=1),))
    steps = steps_of(([(100, 0, 1, 1)], []), ([], [(100, 1)]))
    shallow, deep = (
        engine_time(spec(T5, num_layers=n), Deployment(), steps, profile, workload) for n in (1, 9)
    )
    layer_s = profile.engines["vllm"]["layer_s"].value
    np.testing.assert_allclose(deep.outside_s - shallow.outside_s, [8 * layer_s, 0], atol=1e-12)
    launch_s = profile.engines["vllm"]["launch_layer_s"].value
    np.testing.assert_allclose(deep.launch_s - shallow.launch_s, [8 * launch_s, 0], atol=1e-12)


# --- predictions ----------------------------------------------------------------------------------


def bins(*lengths: tuple[int, int, int]) -> Workload:
    return Workload(
        bins=tuple(Bin(input_tokens=i, output_tokens=o, count=n) for i, o, n in lengths)
    )


@pytest.mark.parametrize(
    ("config", "lengths"),
    [
        (BERT, [(256, 0, 300), (40, 0, 500)]),
        (T5, [(256, 64, 300), (40, 0, 50), (128, 100, 200)]),
        (WHISPER, [(1500, 100, 30)]),
    ],
)
def test_phases_components_and_bins_sum_to_the_total(
    config: Mapping[str, object], lengths: list[tuple[int, int, int]]
) -> None:
    p = predict(spec(config), Deployment(), bins(*lengths), load("h200"))
    for parts in (p.phases.values(), p.components.values(), p.bins):
        assert sum(part.energy_j for part in parts) == pytest.approx(p.energy_j)
    for b in p.bins:
        assert b.energy_j == pytest.approx(b.prefill_j + b.decode_j)
        assert (b.decode_j > 0) == (b.output_tokens > 1)


def test_texts_without_answers_ask_nothing_of_the_decoder() -> None:
    """Beside texts that are answered they cost what they cost alone, but for sharing steps."""
    profile, model = load("h200"), spec(T5)
    alone = predict(model, Deployment(), bins((512, 0, 400)), profile)
    mixed = predict(model, Deployment(), bins((512, 0, 400), (512, 64, 400)), profile)
    assert mixed.bins[0].energy_j == pytest.approx(alone.energy_j, rel=0.05)
    assert mixed.bins[1].energy_j > 1.5 * mixed.bins[0].energy_j


def test_longer_answers_and_prompts_cost_more() -> None:
    profile = load("h200")

    def energy_j(config: Mapping[str, object], *lengths: tuple[int, int, int]) -> float:
        return predict(spec(config), Deployment(), bins(*lengths), profile).energy_j

    assert energy_j(T5, (256, 64, 50)) < energy_j(T5, (256, 128, 50))
    assert energy_j(T5, (256, 64, 50)) < energy_j(T5, (512, 64, 50))
    assert energy_j(BERT, (128, 0, 500)) < energy_j(BERT, (256, 0, 500))


def test_sound_is_padded_to_what_the_encoder_always_sees() -> None:
    profile, model = load("h200"), spec(WHISPER)
    short, full = (predict(model, Deployment(), bins((n, 50, 4)), profile) for n in (200, 1500))
    assert short.energy_j == full.energy_j
    assert any("1,500" in w for w in short.warnings)
    assert not any("1,500" in w for w in full.warnings)


def test_sound_may_be_given_in_seconds() -> None:
    profile, model = load("h200"), spec(WHISPER)
    tokens = Workload(bins=(Bin(input_tokens=1500, output_tokens=50, count=4),))
    seconds = Workload(bins=(Bin(input_tokens=1500, audio_s=30, output_tokens=50, count=4),))
    energies = [predict(model, Deployment(), w, profile).energy_j for w in (tokens, seconds)]
    assert energies[0] == energies[1]
    longer = Workload(bins=(Bin(input_tokens=1, audio_s=30.1, output_tokens=1, count=1),))
    with pytest.raises(
        InputError, match=r"audio_s is 30\.1, but the encoder of 'test' hears 30 at"
    ):
        predict(model, Deployment(), longer, profile)


def test_what_is_assumed_is_said() -> None:
    profile = load("h200")
    bert = predict(spec(BERT), Deployment(), bins((64, 0, 100)), profile)
    t5 = predict(spec(T5), Deployment(), bins((64, 16, 100)), profile)
    assert any("no encoder was measured" in w for w in bert.warnings)
    assert not any("vLLM has no implementation" in w for w in bert.warnings)
    assert any("vLLM has no implementation of model type 't5'" in w for w in t5.warnings)


def test_lengths_are_compared_with_the_stack_that_has_them() -> None:
    profile, bart = load("h200"), {"model_type": "bart", "d_model": 1024, "vocab_size": 50_265}
    bart |= {"max_position_embeddings": 1024}
    for side in ("encoder", "decoder"):
        bart |= {f"{side}_layers": 2, f"{side}_attention_heads": 16, f"{side}_ffn_dim": 4096}

    def too_long(*lengths: int) -> bool:
        p = predict(spec(bart), Deployment(), bins((*lengths, 2)), profile)  # type: ignore[arg-type]
        return any("max_position_embeddings" in w for w in p.warnings)

    assert not too_long(1000, 1000)
    assert too_long(1100, 10)
    assert too_long(10, 1100)


@pytest.mark.parametrize(
    ("config", "lengths", "message"),
    [
        (BERT, (64, 1, 1), "'test' is an encoder and generates nothing; it must be 0"),
        (WHISPER, (1501, 1, 1), r"'test' hears 1,500 at a time; ask for several requests"),
        (T5, (16_000, 500, 1), r"must fit one step of this model, but max_num_batched_tokens"),
        (BERT, (16_385, 0, 1), r"must fit one step of this model, but max_num_batched_tokens"),
    ],
)
def test_what_cannot_be_served_is_refused(
    config: Mapping[str, object], lengths: tuple[int, int, int], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        predict(spec(config), Deployment(), bins(lengths), load("h200"))


@pytest.mark.parametrize(
    ("model", "lengths"),
    [("google-bert/bert-base-uncased", (128, 0)), ("google/flan-t5-base", (128, 16))],
)
def test_the_command_predicts_models_of_the_zoo(
    model: str, lengths: tuple[int, int], tmp_path: Path
) -> None:
    path = tmp_path / "bins.json"
    one = {"input_tokens": lengths[0], "output_tokens": lengths[1], "count": 20}
    path.write_text(json.dumps({"schema_version": 1, "bins": [one]}), encoding="utf-8")
    flags = ["--model", model, "--gpu", "h200", "--workload", str(path), "--json"]
    result = CliRunner().invoke(cli, ["predict", *flags])
    assert result.exit_code == 0
    assert json.loads(result.stdout)["energy_j"] > 0
    assert "was measured: its layers are predicted" in result.stderr
