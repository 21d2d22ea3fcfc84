"""Every network of a pipeline against diffusers on the meta device: parameters and FLOP, exactly."""

import inspect
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from diffusion_cases import CASES, CHANNELS, DENOISER_CASES, Case, sizes

import models_zoo
from energymodel.diffusion.calls import flop, param_count
from energymodel.diffusion.networks import DECODERS, DENOISERS
from energymodel.diffusion.pipeline import read_pipeline
from energymodel.diffusion.plans import PLANS

torch = pytest.importorskip("torch", reason="needs torch")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    diffusers = pytest.importorskip("diffusers", reason="needs diffusers")

pytestmark = pytest.mark.filterwarnings(
    "ignore"
)  # whatever versions of diffusers say of themselves


def build(class_name: str, config: dict[str, Any]) -> Any:
    with torch.device("meta"):
        return getattr(diffusers, class_name)(**config).eval()


def counted(run: Callable[[], Any]) -> tuple[float, Any]:
    """(FLOP of ``run`` as torch counts them, what it returns)."""
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad(), torch.device("meta"):
        result = run()
    return float(sum(counter.get_flop_counts()["Global"].values())), result


def latents(case: Case) -> Any:
    frames = () if case.class_name in ("AutoencoderKL", "AutoencoderDC") else (case.frames,)
    with torch.device("meta"):
        return torch.zeros(2, CHANNELS, *frames, case.height, case.width)


def run(case: Case) -> float:
    model = build(case.class_name, dict(case.config))
    if case.arguments is None:
        return counted(lambda: model.decode(latents(case)))[0]
    arguments = case.arguments
    return counted(lambda: model(**arguments(torch.zeros)))[0]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_parameters_are_those_of_the_class(case: Case) -> None:
    model = build(case.class_name, dict(case.config))
    assert param_count(case.calls()) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_flop_are_those_of_torch(case: Case) -> None:
    assert flop(case.calls()).item() == run(case)


def test_every_network_that_is_read_is_checked() -> None:
    checked = {case.class_name for case in CASES}
    assert set(DENOISERS) | set(DECODERS) == checked | {"Transformer2DModel"}


def constructed(part: dict[str, Any]) -> Any:
    fields = {k: v for k, v in part.items() if not k.startswith("_")}
    return build(str(part["_class_name"]), fields)


@pytest.mark.parametrize("name", models_zoo.pipelines())
def test_zoo_parameters_are_those_of_the_classes(name: str) -> None:
    config: dict[str, Any] = dict(models_zoo.find(name) or {})
    pipeline, _ = read_pipeline(config, name)
    key = pipeline.plan.denoiser
    denoiser = sum(p.numel() for p in constructed(config[key]).parameters())
    assert pipeline.active_param_count == denoiser
    autoencoder = sum(p.numel() for p in constructed(config["vae"]).parameters())
    texts = sum(spec.param_count for spec, _ in pipeline.texts)
    copies = 2 if f"{key}_2" in config else 1
    assert pipeline.param_count == copies * denoiser + autoencoder + texts


@pytest.mark.parametrize("name", models_zoo.pipelines())
def test_zoo_decoding_flop_are_those_of_torch(name: str) -> None:
    config: dict[str, Any] = dict(models_zoo.find(name) or {})
    pipeline, _ = read_pipeline(config, name)
    model = constructed(config["vae"])
    channels = model.config.get("latent_channels") or model.config["z_dim"]
    frames = 1 if pipeline.frames is None else 5
    shape = (2, channels, *(() if pipeline.frames is None else (frames,)), 8, 6)
    expected, decoded = counted(lambda: model.decode(torch.zeros(*shape)).sample)
    calls = pipeline.autoencoder.calls(sizes(frames=frames, height=8, width=6))
    assert flop(calls).item() == expected
    # What the compressions promise is what comes out.
    assert decoded.shape[-2:] == (8 * pipeline.space, 6 * pipeline.space)
    if pipeline.frames is not None:
        assert decoded.shape[2] == 1 + (frames - 1) * pipeline.time


@pytest.mark.parametrize("class_name", PLANS)
def test_defaults_are_those_of_the_pipeline(class_name: str) -> None:
    given = inspect.signature(getattr(diffusers, class_name).__call__).parameters
    plan = PLANS[class_name]
    assert given["num_inference_steps"].default == plan.steps
    assert given["guidance_scale"].default == plan.guidance_scale
    longest = given.get("max_sequence_length")
    if longest is not None:
        # T5 and its like, beside CLIP's 77 in some and below a template in one.
        assert longest.default in {plan.joint, plan.joint - 77}
    if plan.frames is not None and given["num_frames"].default is not None:
        assert given["num_frames"].default == plan.frames
        assert (given["height"].default, given["width"].default) == plan.pixels


def test_embedded_guidance_is_that_of_pipelines_without_a_second_pass() -> None:
    embedded = {name for name, plan in PLANS.items() if plan.guidance == "embedded"}
    assert embedded == {
        name
        for name in PLANS
        if "true_cfg_scale" in inspect.signature(getattr(diffusers, name).__call__).parameters
    }


def test_convolutions_by_a_second_counter() -> None:
    """fvcore counts multiply-adds; it sees no attention, and counts norms that we do not."""
    nn = pytest.importorskip("fvcore.nn", reason="needs fvcore")
    case = next(c for c in CASES if c.name == "AutoencoderKL")
    model = getattr(diffusers, case.class_name)(**case.config).eval()
    analysis = nn.FlopCountAnalysis(model.decoder, torch.zeros(2, CHANNELS, 16, 12))
    analysis.unsupported_ops_warnings(enabled=False).uncalled_modules_warnings(enabled=False)
    found = analysis.by_operator()
    windows = [c for c in case.calls() if c.kind == "gemm" and c.name != "post_quant_conv"]
    ours = {"conv": 0.0, "linear": 0.0}
    for call in windows:
        kind = "linear" if ".to_" in call.name else "conv"
        ours[kind] += call.count * call.flop.item()
    assert ours["conv"] == 2 * found["conv"]
    assert ours["linear"] == 2 * found["linear"]
    attention = [c for c in case.calls() if c.kind == "prefill_attention"]
    assert attention[0].flop.item() > 0
    assert not {"matmul", "bmm", "scaled_dot_product_attention"} & set(found)


def test_attention_to_itself_grows_with_the_square_of_the_positions() -> None:
    case = next(c for c in DENOISER_CASES if c.name == "PixArtTransformer2DModel")
    larger = replace(case, height=2 * case.height)
    for small, large in zip(case.calls(), larger.calls(), strict=True):
        if small.kind == "prefill_attention":
            growth = 4.0 if small.name == "attn1" else 2.0  # the text stays as long
            assert large.flop.item() == growth * small.flop.item()
