"""Observations simulated from known coefficients must give them back."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from calibration import observations as observation_file
from calibration.fit import fit_profile
from calibration.fit_components import SHARED_ENERGY
from calibration.fit_engine import Case, fit_engine, prepare
from calibration.fit_time import START
from calibration.observations import Observation
from calibration.simulation.truth import declared
from calibration.tables import names_of, table
from energymodel import hardware, io, laws, power
from energymodel import profile as profiles
from energymodel.deployment import Deployment
from energymodel.engines.vllm import engine_time
from energymodel.errors import InputError
from energymodel.find_model import find_model
from energymodel.io import Run
from energymodel.laws import REQUIRED
from energymodel.model import ModelSpec
from energymodel.power import StepLoad
from energymodel.predict import predict
from energymodel.profile import Profile
from energymodel.serving import schedule_offline
from energymodel.timing import clocked_seconds
from energymodel.workload import Bin, Workload

LIMIT_W, MOST_HZ = 700.0, 1.98e9
NOISE = 0.005

# --- the truth ------------------------------------------------------------------------------------

TRUTH = declared(hardware.load("h200"))
LAW = {kind: TRUTH.law(kind) for kind in START}
ENERGY = {kind: TRUTH.energy(kind) for kind in START}
CLOCK_SHARE = {kind: TRUTH.clock_share(kind) for kind in START}
STATIC_W, STATIC_W_PER_C = TRUTH.static_w, TRUTH.static_w_per_c
HELD_SHARE, EXPONENT, HBM_BYTE_J = TRUTH.limit_share, TRUTH.exponent, TRUTH.hbm_byte_j


@dataclass(frozen=True)
class Grid:
    """Shapes of one micro-workload, and which of them get energy windows."""

    op: str
    shapes: tuple[dict[str, int], ...]
    windows: int


def attention(tokens: Sequence[int], seqs: Sequence[int], contexts: Sequence[int]) -> list[dict]:
    return [
        {
            "num_seqs": s,
            "tokens": t,
            "context": c,
            "heads": heads,
            "kv_heads": kv_heads,
            "head_dim": head_dim,
        }
        for heads, kv_heads, head_dim in ((32, 8, 128), (32, 32, 128), (16, 8, 256), (16, 2, 64))
        for s in seqs
        for t in tokens
        for c in contexts
    ]


def rows(*widths: int) -> tuple[dict[str, int], ...]:
    return tuple({"rows": 4**i, "width": w} for w in widths for i in range(1, 9))


GRIDS = (
    Grid(
        "gemm",
        tuple(
            {"m": m, "n": n, "k": k}
            for n, k in (
                (1024, 4096),
                (4096, 4096),
                (6144, 4096),
                (28672, 4096),
                (4096, 14336),
                (3072, 1024),
                (128256, 4096),
                (51200, 5120),
            )
            for m in (1, 4, 16, 64, 128, 256, 512, 1024, 4096, 16384)
        ),
        1,
    ),
    Grid("attention", tuple(attention([1], [1, 4, 16, 64, 256], [127, 1023, 8191])), 2),
    Grid("attention", tuple(attention([64, 512, 2048, 8192], [1, 4], [0, 2048])), 2),
    Grid(
        "moe",
        tuple(
            {
                "tokens": n,
                "hidden_size": h,
                "intermediate_size": i,
                "num_experts": e,
                "top_k": k,
            }
            for h, i, e, k in ((2048, 768, 128, 8), (4096, 14336, 8, 2), (2048, 1408, 60, 4))
            for n in (1, 4, 16, 64, 256, 1024, 4096, 16384)
        ),
        1,
    ),
    Grid("rms_norm", rows(2048, 4096, 8192), 2),
    Grid("silu_and_mul", rows(2048, 14336), 2),
    Grid("kv_write", rows(1024, 2048), 4),
    Grid("embedding", rows(2048, 4096), 4),
    Grid(
        "sampling",
        tuple({"rows": r, "width": w} for r in (1, 8, 64, 256) for w in (32000, 128256)),
        2,
    ),
)


def observation(op: str, shape: dict[str, int], mode: str) -> Observation:
    return Observation(
        op=op,
        shape=shape,
        mode=mode,
        trial=0,
        call_s=1.0,
        stack="simulated",
        gpu="NVIDIA H200",
        board="simulated",
        driver="0",
    )


def simulate(seed: int = 0) -> list[Observation]:
    """Bursts of every shape, sustained and duty-cycled windows of some, and idle ones."""
    random = np.random.default_rng(seed)
    asked = [
        observation(grid.op, shape, mode)
        for grid in GRIDS
        for i, shape in enumerate(grid.shapes)
        for mode in ("burst", "sustained", "duty")
        if mode == "burst" or i % grid.windows == 0
    ]
    seen = [idle(celsius, random) for celsius in np.linspace(30, 60, 20)]
    for kind in REQUIRED:
        seen += measured(kind, asked, random)
    return seen


def idle(celsius: float, random: np.random.Generator) -> Observation:
    watts = STATIC_W + STATIC_W_PER_C * celsius + random.normal(0, 0.3)
    return replace(
        observation("idle", {}, "idle"),
        temperature_c=float(celsius),
        duration_s=1.0,
        energy_j=float(watts),
        calls=100.0,
        busy_s=0.01,
        sm_clock_hz=MOST_HZ,
    )


def measured(
    kind: str, asked: Sequence[Observation], random: np.random.Generator
) -> list[Observation]:
    """What the truth says of those that are of ``kind``, with noise on times and energies."""
    t = table(kind, asked)
    timed = laws.LAWS[kind](t.shapes, LAW[kind])
    full_s = timed.seconds
    moved = t.hbm_bytes
    energy = ENERGY[SHARED_ENERGY.get(kind, kind)]
    core_j = power.core_energy_j(energy, t.flop, t.weight_bytes, t.row_bytes, full_s)
    clocked_s = clocked_seconds(kind, timed, full_s) * CLOCK_SHARE[kind]
    load = StepLoad(
        fixed_s=full_s - clocked_s, clocked_s=clocked_s, core_j=core_j, hbm_j=HBM_BYTE_J * moved
    )
    celsius, duration_s = 55.0, 1.2
    static_w = STATIC_W + STATIC_W_PER_C * celsius
    clock = power.limited_clock(load, static_w, EXPONENT, HELD_SHARE * LIMIT_W)
    at_limit_s = load.fixed_s + load.clocked_s / clock
    at_limit_w = power.mean_power_w(load, clock, static_w, EXPONENT)
    seen = []
    for i, o in enumerate(t.observations):
        noise = np.exp(random.normal(0, NOISE, 2))
        if o.mode == "burst":
            seen.append(replace(o, call_s=float(full_s[i] * noise[0]), sm_clock_hz=MOST_HZ))
            continue
        duty = 1.0 if o.mode == "sustained" else 0.2
        call_s = at_limit_s[i] if duty == 1.0 else full_s[i]
        calls = duty * duration_s / call_s
        work_j = (at_limit_w[i] - static_w) * call_s if duty == 1.0 else core_j[i] + load.hbm_j[i]
        seen.append(
            replace(
                o,
                call_s=float(call_s * noise[0]),
                duty=duty,
                duration_s=duration_s,
                energy_j=float((static_w * duration_s + calls * work_j) * noise[1]),
                calls=float(calls),
                busy_s=float(calls * call_s),
                sm_clock_hz=float(MOST_HZ * (clock[i] if duty == 1.0 else 1.0)),
                temperature_c=celsius,
                memory_power_w=float(40.0 + HBM_BYTE_J * moved[i] / call_s * duty),
            )
        )
    return seen


def write(path: Path, seen: Sequence[Observation]) -> Path:
    for o in seen:
        observation_file.append(path, o)
    return path


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Profile:
    path = write(tmp_path_factory.mktemp("fit") / "observations.jsonl", simulate())
    return fit_profile(path, None, "h200")


# --- operations -----------------------------------------------------------------------------------

RATES = [
    ("gemm", "bytes_per_s"),
    ("gemm", "flop_per_s"),
    ("decode_attention", "bytes_per_s"),
    ("prefill_attention", "flop_per_s"),
    ("moe", "bytes_per_s"),
    ("moe", "flop_per_s"),
    ("elementwise", "bytes_per_s"),
    ("elementwise", "cache_bytes_per_s"),
]


@pytest.mark.parametrize(("kind", "name"), RATES)
def test_rates_come_back(fitted: Profile, kind: str, name: str) -> None:
    estimate = fitted.operations[kind].law[name]
    assert estimate.value == pytest.approx(LAW[kind][name], rel=0.05)
    assert 0 < estimate.stderr < 0.2 * estimate.value


@pytest.mark.parametrize("kind", ["gemm", "decode_attention", "moe", "elementwise"])
def test_launch_times_come_back(fitted: Profile, kind: str) -> None:
    launch_s = fitted.operations[kind].law["launch_s"].value
    assert launch_s == pytest.approx(LAW[kind]["launch_s"], rel=0.1)


@pytest.mark.parametrize("kind", REQUIRED)
def test_times_come_back(fitted: Profile, kind: str) -> None:
    operation = fitted.operations[kind]
    t = table(kind, [observation(g.op, shape, "burst") for g in GRIDS for shape in g.shapes])
    found = {name: estimate.value for name, estimate in operation.law.items()}
    seconds = laws.LAWS[kind](t.shapes, found).seconds
    if operation.residual is not None:
        residual = operation.residual.unpack().mean(laws.features(kind, t.shapes))
        assert np.abs(residual).max() < 0.05
        seconds *= np.exp(residual)
    true_s = laws.LAWS[kind](t.shapes, LAW[kind]).seconds
    assert np.median(np.abs(seconds / true_s - 1)) < 0.01
    assert np.abs(seconds / true_s - 1).max() < 0.06
    assert operation.time_error < 0.05


@pytest.mark.parametrize(
    ("kind", "name", "tolerance"),
    [
        ("gemm", "flop_j", 0.03),
        ("gemm", "weight_byte_j", 0.10),
        ("gemm", "busy_w", 0.10),
        ("decode_attention", "weight_byte_j", 0.05),
        ("prefill_attention", "flop_j", 0.05),
        ("moe", "flop_j", 0.05),
        ("moe", "weight_byte_j", 0.05),
        ("elementwise", "row_byte_j", 0.05),
    ],
)
def test_joules_come_back(fitted: Profile, kind: str, name: str, tolerance: float) -> None:
    found = fitted.operations[kind].energy[name]
    assert found.value == pytest.approx(ENERGY[kind][name], rel=tolerance)
    assert found.stderr < 0.3 * found.value


@pytest.mark.parametrize("kind", REQUIRED)
def test_energies_come_back(fitted: Profile, kind: str) -> None:
    t = table(kind, [observation(g.op, shape, "burst") for g in GRIDS for shape in g.shapes])
    full_s = laws.LAWS[kind](t.shapes, LAW[kind]).seconds
    estimates = fitted.operations[kind].energy
    found = {name: estimate.value for name, estimate in estimates.items()}
    truth = ENERGY[SHARED_ENERGY.get(kind, kind)]
    moved = t.hbm_bytes
    work = (t.flop, t.weight_bytes, t.row_bytes, full_s)
    true_j = power.core_energy_j(truth, *work) + HBM_BYTE_J * moved + STATIC_W * full_s
    found_j = power.core_energy_j(found, *work) + found["hbm_byte_j"] * moved + STATIC_W * full_s
    assert np.median(np.abs(found_j / true_j - 1)) < 0.02
    assert np.abs(found_j / true_j - 1).max() < 0.10
    assert fitted.operations[kind].energy_error < 0.03


@pytest.mark.parametrize("kind", ["gemm", "prefill_attention", "moe"])
def test_the_stretch_of_the_clock_comes_back(fitted: Profile, kind: str) -> None:
    share = fitted.operations[kind].clock_share
    assert share.value == pytest.approx(CLOCK_SHARE[kind], rel=0.08)


def test_the_laws_of_power_come_back(fitted: Profile) -> None:
    p = fitted.power
    assert p.static_w.value == pytest.approx(STATIC_W, abs=4 * p.static_w.stderr + 0.1)
    assert p.static_w_per_c.value == pytest.approx(STATIC_W_PER_C, abs=0.05)
    assert p.exponent.value == pytest.approx(EXPONENT, abs=0.06)
    assert p.limit_share.value == pytest.approx(HELD_SHARE, rel=0.005)
    assert fitted.operations["gemm"].energy["hbm_byte_j"].value == pytest.approx(
        HBM_BYTE_J, rel=0.03
    )


def test_the_domain_is_what_was_seen(fitted: Profile) -> None:
    assert fitted.operations["gemm"].domain["m"] == (1, 16384)
    assert fitted.operations["gemm"].domain["k"] == (1024, 14336)
    assert fitted.operations["decode_attention"].domain["num_seqs"] == (1, 256)
    assert fitted.operations["moe"].domain["num_experts"] == (8, 128)


def test_a_fitted_profile_predicts_and_survives_json(fitted: Profile, tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text(io.dumps(fitted), encoding="utf-8")
    assert profiles.load("h200", path) == fitted
    workload = Workload(bins=(Bin(input_tokens=100, output_tokens=20, count=5),))
    p = predict(find_model("Qwen3-8B")[0], Deployment(), workload, fitted)
    # Nothing is known of the engine without whole runs: the interval says so.
    assert p.energy_interval_j[1] > 1.3 * p.energy_j


def test_the_order_of_the_observations_does_not_matter(fitted: Profile, tmp_path: Path) -> None:
    seen = simulate()
    order = np.random.default_rng(1).permutation(len(seen))
    again = fit_profile(write(tmp_path / "o.jsonl", [seen[i] for i in order]), None, "h200")
    assert again.power.exponent.value == pytest.approx(fitted.power.exponent.value, rel=0.01)
    for kind, operation in again.operations.items():
        for name, estimate in fitted.operations[kind].law.items():
            assert operation.law[name].value == pytest.approx(estimate.value, rel=0.01), name


# --- the engine -----------------------------------------------------------------------------------

ENGINE = {
    "step_s": 250e-6,
    "sequence_s": 1.5e-6,
    "outside_w": 150.0,
    "host_step_s": 1.2e-3,
    "submit_request_s": 80e-6,
    "launch_graph_layer_s": 130e-6,
    "launch_layer_s": 250e-6,
    "launch_experts_s": 600e-6,
    # What first steps do not show.
    "host_sequence_s": 0.0,
    "new_runner_sequence_s": 0.0,
}
RUN_MODELS = ("Llama-3.2-1B-Instruct", "Qwen3-8B", "Qwen3-30B-A3B", "OLMoE-1B-7B-0924")
RUN_BINS = (
    (100, 50, 1),
    (700, 2, 1),
    (128, 2, 1),
    (128, 100, 64),
    (40, 60, 200),
    (1500, 2, 3),
    (400, 2, 30),
)


def engine_truth() -> Profile:
    shipped = profiles.load("h200")
    engine = {
        name: replace(estimate, value=ENGINE.get(name, estimate.value))
        for name, estimate in shipped.engines["vllm"].items()
    }
    return replace(shipped, engines={"vllm": engine})


def simulated_cases(names: Sequence[str] = RUN_MODELS) -> list[Case]:
    """Runs that are exactly what the truth predicts; the first step as the host sees it."""
    truth = engine_truth()
    runs = []
    for name in names:
        model = find_model(name)[0]
        for input_tokens, output_tokens, count in RUN_BINS:
            only = Bin(input_tokens=input_tokens, output_tokens=output_tokens, count=count)
            workload = Workload(bins=(only,))
            p = predict(model, Deployment(), workload, truth)
            run = Run(
                model=name,
                gpu="h200",
                deployment=Deployment(),
                workload=workload,
                energy_j=p.energy_j,
                duration_s=p.duration_s,
                extra={"step_us": [first_step_us(model, workload, truth)]},
            )
            runs.append((run, model))
    return prepare(runs, truth)


def first_step_us(model: ModelSpec, workload: Workload, truth: Profile) -> float:
    """The first step returns as soon as it is launched: what the host did until then."""
    steps = schedule_offline(workload, Deployment(), 1_000_000).steps
    added = engine_time(model, Deployment(), steps, truth, workload)
    handed_over_s = truth.engines["vllm"]["finish_s"].value
    return float(added.submit_s - handed_over_s + added.launch_s[0]) * 1e6


def test_the_engine_comes_back() -> None:
    cases = simulated_cases()
    found = fit_engine(cases, profiles.load("h200"))
    for name, tolerance in (
        ("step_s", 0.1),
        ("sequence_s", 0.3),
        ("outside_w", 0.3),
        ("submit_request_s", 0.1),
        ("launch_layer_s", 0.1),
        ("launch_experts_s", 0.1),
        ("launch_graph_layer_s", 0.1),
    ):
        assert found.engine[name].value == pytest.approx(ENGINE[name], rel=tolerance), name
    # Each run was predicted without its model, and still well.
    assert found.energy_error.shape == found.duration_error.shape == (len(cases),)
    assert np.median(np.abs(found.duration_error)) < 0.01
    assert np.median(np.abs(found.energy_error)) < 0.01


# --- refusals -------------------------------------------------------------------------------------


def test_observations_of_another_gpu_are_refused(tmp_path: Path) -> None:
    other = replace(observation("gemm", {"m": 1, "n": 1, "k": 1}, "burst"), gpu="NVIDIA A100-SXM4")
    path = write(tmp_path / "o.jsonl", [other])
    with pytest.raises(InputError, match=r"gpu is 'NVIDIA A100-SXM4', but .* NVIDIA H200"):
        fit_profile(path, None, "h200")


def test_no_observations_are_refused(tmp_path: Path) -> None:
    (tmp_path / "o.jsonl").write_text("")
    with pytest.raises(InputError, match="no observations"):
        fit_profile(tmp_path / "o.jsonl", None, "h200")


@pytest.mark.parametrize("kind", ["idle", *REQUIRED])
def test_a_missing_kind_is_named(kind: str, tmp_path: Path) -> None:
    bursts = [observation(g.op, shape, "burst") for g in GRIDS for shape in g.shapes]
    ops = [o for o in bursts if kind not in names_of(o)]
    if kind != "idle":
        ops.append(observation("idle", {}, "idle"))
    path = write(tmp_path / "o.jsonl", ops)
    with pytest.raises(InputError, match=f"no observation of {kind},"):
        fit_profile(path, None, "h200")


def test_an_unknown_gpu_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'b9000' is unknown"):
        fit_profile(tmp_path / "o.jsonl", None, "b9000")


@pytest.mark.parametrize("single", [True, False], ids=["decode", "prefill"])
def test_attention_of_one_kind_only_is_refused(single: bool, tmp_path: Path) -> None:
    seen = [o for o in simulate() if o.op != "attention" or (o.shape["tokens"] == 1) != single]
    path = write(tmp_path / "o.jsonl", seen)
    with pytest.raises(InputError, match="attention"):
        fit_profile(path, None, "h200")


def test_times_without_energies_are_refused(tmp_path: Path) -> None:
    seen = [o for o in simulate() if o.mode in ("burst", "idle")]
    with pytest.raises(InputError, match="window"):
        fit_profile(write(tmp_path / "o.jsonl", seen), None, "h200")


def test_runs_of_one_model_are_enough() -> None:
    cases = simulated_cases(RUN_MODELS[:1])
    assert fit_engine(cases, profiles.load("h200")).engine["step_s"].value > 0
