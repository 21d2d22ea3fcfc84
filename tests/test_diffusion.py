"""Pipelines that make images and videos: what must hold of every prediction, and what is refused."""

import copy
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import models_zoo
from energymodel import profile as profiles
from energymodel.deployment import Deployment
from energymodel.diffusion.calls import Sizes, flop
from energymodel.diffusion.passes import DENOISE, EMPTY_PROMPT, schedule
from energymodel.diffusion.pipeline import Pipeline, read_pipeline
from energymodel.diffusion.predict import predict
from energymodel.diffusion.requests import read_requests
from energymodel.errors import InputError
from energymodel.find_model import find_any, find_model
from energymodel.predict import predict as predict_text
from energymodel.prediction import Prediction
from energymodel.workload import Bin, Workload

PROFILE = profiles.load("h200")
FLUX, SD, XL = "FLUX.1-dev", "stable-diffusion-v1-5", "stable-diffusion-xl-base-1.0"
SANA, WAN, COG = "SANA1.5_1.6B_1024px_diffusers", "Wan2.1-T2V-1.3B-Diffusers", "CogVideoX1.5-5B"
CLOSE = 1e-9


def pipeline(name: str) -> Pipeline:
    found, _ = find_any(name)
    assert isinstance(found, Pipeline)
    return found


def a_bin(count: int = 4, **changes: Any) -> Bin:
    return Bin(**{"input_tokens": 30, "output_tokens": 0, "count": count, **changes})


def run(
    name: str | Pipeline, *bins: Bin, deployment: Deployment | None = None, **flags: Any
) -> Prediction:
    made = pipeline(name) if isinstance(name, str) else name
    workload = Workload(bins=bins or (a_bin(),))
    return predict(made, deployment or Deployment(**flags), workload, PROFILE)


def refusal(name: str, **changes: Any) -> str:
    with pytest.raises(InputError) as caught:
        run(name, a_bin(**changes))
    return str(caught.value)


def total_flop(p: Prediction) -> float:
    return sum(c.flop for c in p.components.values())


# --- predictions ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [FLUX, SD, SANA, WAN])
def test_phases_components_and_bins_sum_to_the_totals(name: str) -> None:
    size = {"image_width": 512, "image_height": 768}
    p = run(name, a_bin(5, num_inference_steps=3), a_bin(2, **size), max_num_seqs=2)
    assert set(p.phases) == {"text_encoder", "denoise", "vae"}
    for parts in (p.phases.values(), p.components.values()):
        assert math.isclose(sum(x.energy_j for x in parts), p.energy_j, rel_tol=CLOSE)
        assert math.isclose(sum(x.duration_s for x in parts), p.duration_s, rel_tol=CLOSE)
    assert math.isclose(sum(b.energy_j for b in p.bins), p.energy_j, rel_tol=CLOSE)
    assert all(b.prefill_j == b.energy_j and b.decode_j == 0 for b in p.bins)
    assert p.requests == 7
    assert math.isclose(p.energy_per_request_j, p.energy_j / 7, rel_tol=CLOSE)
    assert p.energy_per_output_token_j is p.ttft_s is p.itl_s is None
    assert p.engine == p.deployment["engine"] == "diffusers"


@pytest.mark.parametrize("name", models_zoo.pipelines())
def test_denoising_dominates(name: str) -> None:
    made = pipeline(name)
    usual = 4 if "turbo" in name or "schnell" in name else made.plan.steps
    p = run(made, a_bin(1, num_inference_steps=usual))
    assert p.phases["denoise"].energy_j > 0.85 * p.energy_j
    assert p.phases["vae"].energy_j > 0
    assert p.phases["text_encoder"].energy_j > 0


@pytest.mark.parametrize("name", [FLUX, SD, WAN])
def test_denoising_is_proportional_to_the_steps(name: str) -> None:
    few, many = (run(name, a_bin(1, num_inference_steps=n)) for n in (4, 12))
    grown = total_flop(many) - total_flop(few)
    each = run(name, a_bin(1, num_inference_steps=5))
    assert math.isclose(grown, 8 * (total_flop(each) - total_flop(few)), rel_tol=CLOSE)
    seconds = many.phases["denoise"].duration_s / few.phases["denoise"].duration_s
    assert seconds == pytest.approx(3.0, rel=0.02)


@pytest.mark.parametrize(("name", "times"), [(SD, 2.0), (SANA, 2.0), (WAN, 2.0), (FLUX, 1.0)])
def test_guidance_doubles_the_denoiser_unless_it_is_distilled(name: str, times: float) -> None:
    made = pipeline(name)
    latents = {"num_inference_steps": 4, "image_width": 512, "image_height": 512}
    off, on = (run(made, a_bin(1, guidance_scale=scale, **latents)) for scale in (1.0, 5.0))
    x = read_requests(made, Workload(bins=(a_bin(1, **latents),))).latents
    once = 4 * flop(made.denoiser.calls(x)).item()
    grown = total_flop(on) - total_flop(off)
    if times == 1.0:
        assert grown == 0
    else:
        # The empty prompt is encoded, too: 2 FLOP for each token and parameter, or a little more.
        texts = sum(2.0 * spec.param_count * tokens for spec, tokens in made.texts)
        assert once < grown < once + 1.1 * texts


def test_guidance_runs_in_one_batch_or_in_two_passes() -> None:
    for name, batch, passes in ((SD, 6, 4), (WAN, 3, 8)):
        made = pipeline(name)
        workload = Workload(bins=(a_bin(3, num_inference_steps=4),))
        made_of = schedule(made, read_requests(made, workload), np.array([3]))
        denoising = made_of.stage == DENOISE
        assert made_of.batch[denoising].tolist() == [batch]
        assert made_of.weight[denoising].tolist() == [passes]
        assert (made_of.stage == EMPTY_PROMPT).any()


def test_the_last_batch_may_be_smaller() -> None:
    made = pipeline(FLUX)
    workload = Workload(bins=(a_bin(7, num_inference_steps=4),))
    passes = schedule(made, read_requests(made, workload), np.array([3]))
    denoising = passes.stage == DENOISE
    assert sorted(zip(passes.batch[denoising], passes.weight[denoising], strict=True)) == [
        (1, 4), (3, 8)
    ]  # fmt: skip
    samples = passes.batch @ (passes.weight * (passes.stage == 3))
    assert samples == 7


def test_more_pixels_frames_and_samples_cost_more() -> None:
    small = run(XL, a_bin(2))
    assert run(XL, a_bin(2, image_width=1152)).energy_j > small.energy_j
    assert run(XL, a_bin(3)).energy_j > small.energy_j
    short, long = (run(WAN, a_bin(1, num_frames=n)) for n in (17, 33))
    # Attention over all frames: more than twice the work for twice the frames.
    growth = long.phases["denoise"].energy_j / short.phases["denoise"].energy_j
    assert 2.0 < growth < 4.0


def test_a_batch_shares_the_weights() -> None:
    alone, together = (run(SD, a_bin(8, num_inference_steps=4), max_num_seqs=n) for n in (1, 8))
    assert math.isclose(total_flop(alone), total_flop(together), rel_tol=CLOSE)
    moved = [sum(c.hbm_bytes for c in p.components.values()) for p in (alone, together)]
    assert moved[0] > moved[1]
    assert alone.duration_s > together.duration_s


def test_padded_frames_are_denoised_and_not_decoded() -> None:
    made = pipeline(COG)  # two latent frames make a token: 21 are padded to 22
    latents = read_requests(made, Workload(bins=(a_bin(1),))).latents
    assert latents.frames.tolist() == [21]
    padded = replace(latents, frames=np.array([22.0]))
    assert flop(made.denoiser.calls(latents)) == flop(made.denoiser.calls(padded))
    assert flop(made.autoencoder.calls(latents)) < flop(made.autoencoder.calls(padded))


def test_prompts_are_padded() -> None:
    short, long = (run(FLUX, a_bin(1, input_tokens=n)) for n in (1, 500))
    assert short.energy_j == long.energy_j
    assert not any("cut to" in text for text in long.warnings)
    cut = run(FLUX, a_bin(1, input_tokens=513))
    assert any("513 tokens are cut to the 512" in text for text in cut.warnings)


# --- warnings and limits --------------------------------------------------------------------------


def test_what_was_not_measured_is_said() -> None:
    p = run(SD, a_bin(1))
    said = " ".join(p.warnings)
    assert "no image pipeline was measured" in said
    assert "heads of 40, 80, 160 values were not calibrated" in said
    assert "convolution was not calibrated: predicted with the coefficients of gemm" in said
    low, high = p.energy_interval_j
    assert high / low > 3


def test_the_memory_bounds_the_batch() -> None:
    made = pipeline(XL)
    bins = (a_bin(200, num_inference_steps=2),)
    free = run(made, *bins)
    assert any("fewer than max_num_seqs allows" in text for text in free.warnings)
    asked = run(made, *bins, max_num_seqs=4)
    assert not any("fewer than max_num_seqs allows" in text for text in asked.warnings)
    with pytest.raises(InputError, match=r"bins\[0\]: one image does not fit one NVIDIA H200"):
        run(made, a_bin(1, image_width=16384, image_height=16384))
    with pytest.raises(InputError, match=r"take 6\.9 GB"):
        run(made, a_bin(1), gpu_memory_utilization=0.05)


def test_a_power_limit_slows_it_down() -> None:
    free, limited = (run(FLUX, a_bin(1), power_limit_w=w) for w in (None, 400.0))
    assert limited.duration_s > free.duration_s
    assert limited.mean_power_w < 401


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        (FLUX, {"image_width": 1000}, "image_width is 1,000; it must be a multiple of 16"),
        (SANA, {"image_height": 1040}, "image_height is 1,040; it must be a multiple of 32"),
        (FLUX, {"num_frames": 9}, "makes images; it must be 1"),
        (WAN, {"num_frames": 80}, "num_frames is 80; it must be 1 more than a multiple of 4"),
        (
            FLUX,
            {"output_tokens": 3},
            "output_tokens is 3, but 'black-forest-labs/FLUX.1-dev' makes",
        ),
        (FLUX, {"images": 1}, "images is 1, but"),
        (FLUX, {"audio_s": 2.0}, "audio_s is 2, but"),
        (FLUX, {"count": None, "requests_per_s": 1.0}, "count is missing"),
    ],
)
def test_refuses_what_it_cannot_make(name: str, changes: dict[str, Any], reason: str) -> None:
    sentence = refusal(name, **changes)
    assert sentence.startswith("bins[0]: ")
    assert reason in sentence


def test_refuses_deployments_of_engines() -> None:
    for flags, reason in (
        ({"tensor_parallel_size": 2}, "tensor_parallel_size must be 1"),
        ({"quantization": "fp8"}, "quantization is not supported"),
    ):
        with pytest.raises(InputError, match=reason):
            run(FLUX, **flags)


@pytest.mark.parametrize("field", ["num_frames", "num_inference_steps", "guidance_scale"])
def test_language_models_refuse_fields_of_pipelines(field: str) -> None:
    model, _ = find_model("Qwen3-0.6B")
    workload = Workload(bins=(Bin(input_tokens=8, output_tokens=1, count=1, **{field: 2}),))
    with pytest.raises(InputError, match=rf"bins\[0\]: {field} is for pipelines"):
        predict_text(model, Deployment(), workload, PROFILE)


def test_a_pipeline_is_no_language_model() -> None:
    with pytest.raises(InputError, match=r"FLUX.1-dev makes images; a language model is needed"):
        find_model(FLUX)


# --- configurations -------------------------------------------------------------------------------


def config(name: str) -> dict[str, Any]:
    return copy.deepcopy(dict(models_zoo.find(name) or {}))


def broken(name: str, part: str, key: str, value: object) -> str:
    changed = config(name)
    changed[part][key] = value
    with pytest.raises(InputError) as caught:
        read_pipeline(changed, "it")
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "part", "key", "value", "reason"),
    [
        (FLUX, "transformer", "num_layers", -1, "a whole number from 1 to 1000"),
        (FLUX, "transformer", "num_layers", 10**9, "a whole number from 1 to 1000"),
        (FLUX, "transformer", "_class_name", "Other", "is 'Other', which is not supported"),
        (FLUX, "transformer", "_class_name", None, "'_class_name' is missing"),
        (
            FLUX,
            "transformer",
            "quantization_config",
            {"quant_method": "x"},
            "quantised is not supported",
        ),
        (FLUX, "vae", "block_out_channels", [], "must have 1 to 16 entries"),
        (FLUX, "vae", "block_out_channels", [0, 8], "1 to 100,000"),
        (FLUX, "vae", "up_block_types", ["x"], "each one of UpDecoderBlock2D"),
        (FLUX, "text_encoder_2", "d_model", "x", "'d_model' is 'x'"),
        (FLUX, "text_encoder", "model_type", "nobody", "'model_type'"),
        (SD, "unet", "down_block_types", "x", "a list of at most"),
        (SD, "unet", "up_block_types", ["UpBlock2D"], "must have 4 entries"),
        (SD, "unet", "block_out_channels", [320, 640], "a list of 4 entries"),
        (SD, "unet", "attention_head_dim", 7, "divisors of 'block_out_channels'"),
        (SD, "unet", "class_embed_type", "timestep", "a U-Net with it is not read"),
        (WAN, "transformer", "image_dim", 1280, "only text to video is read"),
        (WAN, "transformer", "patch_size", [1, 0, 2], "a list of 3 entries, 1 to 64"),
        (WAN, "vae", "temperal_downsample", [True], "a list of 3 true or false"),
        (SANA, "vae", "decoder_qkv_multiscales", [[]], "must have 6 entries"),
        (SANA, "transformer", "qk_norm", "other", "must be null or rms_norm_across_heads"),
    ],
)
def test_unusable_configurations(
    name: str, part: str, key: str, value: object, reason: str
) -> None:
    sentence = broken(name, part, key, value)
    assert sentence.startswith(f"it: in '{part}'")
    assert reason in sentence


def test_parts_that_are_missing() -> None:
    without = config(FLUX)
    del without["vae"]
    with pytest.raises(InputError, match="it: field 'vae' is missing"):
        read_pipeline(without, "it")
    other = config(FLUX) | {"_class_name": "StableAudioPipeline"}
    with pytest.raises(InputError, match="'StableAudioPipeline', which is not supported"):
        read_pipeline(other, "it")
    # Stable Diffusion 3 may be run without T5, and reads nulls where it stood.
    light = config("stable-diffusion-3.5-large") | {"text_encoder_3": None}
    made, warnings = read_pipeline(light, "it")
    assert len(made.texts) == 2
    assert warnings == ["it: the pipeline has no text_encoder_3 and runs without it."]
    assert made.plan.joint == 333


def test_a_second_expert_is_loaded_and_not_run() -> None:
    one, two = pipeline("Wan2.1-T2V-14B-Diffusers"), pipeline("Wan2.2-T2V-A14B-Diffusers")
    assert one.active_param_count == two.active_param_count
    assert two.param_count - one.param_count == one.active_param_count
    assert total_flop(run(one, a_bin(1))) == total_flop(run(two, a_bin(1)))


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        (SD, 0.86), (XL, 2.6), ("stable-diffusion-2-1", 0.866), ("FLUX.1-schnell", 12),
        ("stable-diffusion-3.5-large", 8.1), ("stable-diffusion-3.5-medium", 2.5),
        ("PixArt-Sigma-XL-2-1024-MS", 0.6), ("HunyuanDiT-v1.2-Diffusers", 1.5),
        ("HunyuanVideo", 13), ("CogVideoX-2b", 2), ("CogVideoX1.5-5B", 5), (WAN, 1.3),
        ("Wan2.1-T2V-14B-Diffusers", 14), ("Wan2.2-TI2V-5B-Diffusers", 5), (SANA, 1.6),
        ("SANA1.5_4.8B_1024px_diffusers", 4.8),
    ],
)  # fmt: skip
def test_sizes_are_about_those_of_the_names(name: str, billions: float) -> None:
    assert pipeline(name).active_param_count / 1e9 == pytest.approx(billions, rel=0.16)


def test_a_call_without_rows_does_nothing() -> None:
    made = pipeline(SD)
    none = np.zeros(2)
    x = Sizes(batch=none, frames=none + 1, height=none + 64, width=none + 64, text=none + 77)
    for call in (*made.denoiser.calls(x), *made.autoencoder.calls(x)):
        assert not call.flop.any()
        assert not call.moved.any()
