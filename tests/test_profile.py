import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from energymodel import hardware, io, laws
from energymodel import profile as profiles
from energymodel.errors import InputError, WorkError
from energymodel.profile import Covariance, Estimate, Profile

SHIPPED = [profiles.load(name) for name in profiles.available()]
names = pytest.mark.parametrize("profile", SHIPPED, ids=lambda p: p.name)
# Has every axis, to ask a law for the names of its own.
ANY_SHAPE = defaultdict(lambda: np.ones(1))


def estimates(value: object) -> Iterator[Estimate]:
    """Every estimate inside ``value``."""
    if isinstance(value, Estimate):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from estimates(inner)
    elif hasattr(value, "__dataclass_fields__"):
        for field in value.__dataclass_fields__:
            yield from estimates(getattr(value, field))


@names
def test_a_shipped_profile_is_complete(profile: Profile) -> None:
    assert profile.gpu == hardware.load(profile.name)
    assert set(laws.REQUIRED) <= set(profile.operations)
    for name, operation in profile.operations.items():
        kind = laws.kind_of(name)
        assert set(operation.law) == {*laws.PARAMETERS[kind], "sm_count"}
        assert set(operation.energy) == set(profiles.ENERGY)
        assert operation.law["sm_count"].value == profile.gpu.sm_count
        assert set(operation.domain) == set(laws.domain_axes(kind, ANY_SHAPE))
        assert operation.stack
    assert profile.kind == "measured"
    assert {"boards", "driver", "observations"} <= set(profile.provenance)
    assert set(profile.accuracy.regimes) == set(profile.engines)
    for regime in profile.accuracy.regimes.values():
        for spread in (regime.energy, regime.duration):
            assert 0 < spread.model < 0.5
            assert 0 < spread.inner <= spread.outer


@names
def test_shipped_numbers_are_physical(profile: Profile) -> None:
    found = list(estimates(profile))
    assert len(found) > 30
    for estimate in found:
        assert np.isfinite([estimate.value, estimate.stderr]).all()
        assert estimate.stderr >= 0
        assert estimate.unit
    for operation in profile.operations.values():
        assert all(e.value >= 0 for e in operation.energy.values())
        assert all(e.value > 0 for e in operation.law.values())
        assert 0 <= operation.clock_share.value < 3
        assert 0 <= operation.time_error < 1
        assert all(0 < low <= high for low, high in operation.domain.values())
    gpu = profile.gpu
    assert (
        profile.operations["gemm"].law["flop_per_s"].value <= 1.1 * gpu.peak_flop_per_s["bfloat16"]
    )
    for kind in ("gemm", "decode_attention", "moe"):
        assert profile.operations[kind].law["bytes_per_s"].value <= gpu.hbm_bytes_per_s
    assert 0.9 < profile.power.limit_share.value <= 1.02


@names
def test_json_gives_a_profile_back(profile: Profile, tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text(io.dumps(profile), encoding="utf-8")
    assert profiles.load(profile.gpu.name, path) == profile
    assert profiles.load(None, path) == profile


@names
def test_a_residual_is_unpacked_as_it_was_stored(profile: Profile) -> None:
    stored = profile.operations["gemm"].residual
    assert stored is not None
    kriging = stored.unpack()
    assert kriging.points.shape == (len(stored.weights), len(stored.length_scales))
    # Where the calibration has points, what the law leaves over is a correction, not a model.
    residual = kriging.mean(kriging.points * kriging.length_scales)
    assert np.abs(residual).max() < 1.0
    assert np.median(np.abs(residual)) < 0.1


def spread(estimates: Mapping[str, Estimate], covariance: Covariance) -> dict[str, float]:
    """Standard error over value, from the covariance, of those that are known at all."""
    deviations = np.sqrt(np.diag(covariance.matrix))
    named = dict(zip(covariance.names, map(float, deviations), strict=True))
    return {name: named[name] for name in covariance.names if estimates[name].value > 0}


@names
def test_covariances_are_of_what_was_fitted(profile: Profile) -> None:
    for name, operation in profile.operations.items():
        law, energy = operation.law_covariance, operation.energy_covariance
        assert law is not None
        assert energy is not None
        assert set(law.names) == set(laws.PARAMETERS[laws.kind_of(name)])
        assert set(energy.names) == {*profiles.ENERGY, "clock_share"} - {"hbm_byte_j"}
        for covariance in (law, energy):
            matrix = np.array(covariance.matrix)
            assert matrix.shape == (len(covariance.names), len(covariance.names))
            assert np.array_equal(matrix, matrix.T)
            # Four digits are stored: nothing is more correlated than wholly.
            root = np.sqrt(np.diag(matrix))
            assert (np.abs(matrix) <= np.outer(root, root) * 1.001).all()
        everything = {**operation.energy, "clock_share": operation.clock_share}
        for fitted, of in ((operation.law, law), (everything, energy)):
            for estimate, relative in spread(fitted, of).items():
                found = fitted[estimate]
                assert found.stderr / found.value == pytest.approx(relative, rel=1e-3), name


# --- names ----------------------------------------------------------------------------------------


def test_a_number_format_is_a_name_of_its_own(tmp_path: Path) -> None:
    plain = json.loads(io.dumps(SHIPPED[0]))
    plain["operations"]["gemm.fp8"] = deepcopy(plain["operations"]["gemm"])
    path = tmp_path / "p.json"
    path.write_text(json.dumps(plain), encoding="utf-8")
    found = profiles.load("h200", path)
    assert found.operations["gemm.fp8"] == found.operations["gemm"]
    # What it holds is checked like the rest.
    without("operations", "gemm.fp8", "law", "fill_k")(plain)
    path.write_text(json.dumps(plain), encoding="utf-8")
    with pytest.raises(InputError, match=r"operations\.gemm\.fp8\.law\.fill_k is missing"):
        profiles.load("h200", path)


@pytest.mark.parametrize("name", ["sorting", "sorting.fp8", "", ".fp8", "GEMM"])
def test_a_kind_without_a_law_is_refused(name: str, tmp_path: Path) -> None:
    plain = json.loads(io.dumps(SHIPPED[0]))
    plain["operations"][name] = plain["operations"]["gemm"]
    path = tmp_path / "p.json"
    path.write_text(json.dumps(plain), encoding="utf-8")
    with pytest.raises(InputError, match=f"operations\\.{name} is of a kind that has no law"):
        profiles.load("h200", path)


@pytest.mark.parametrize("name", laws.REQUIRED)
def test_nothing_that_a_prediction_needs_may_be_missing(name: str, tmp_path: Path) -> None:
    plain = json.loads(io.dumps(SHIPPED[0]))
    # A number format of it does not stand in for it.
    plain["operations"][f"{name}.float16"] = plain["operations"].pop(name)
    path = tmp_path / "p.json"
    path.write_text(json.dumps(plain), encoding="utf-8")
    with pytest.raises(InputError, match=f"operations.{name} is missing"):
        profiles.load("h200", path)


def test_a_profile_of_before_covariances_is_read(tmp_path: Path) -> None:
    plain = json.loads(io.dumps(SHIPPED[0]))
    for operation in plain["operations"].values():
        for key in ("law_covariance", "energy_covariance", "stack"):
            del operation[key]
    path = tmp_path / "p.json"
    path.write_text(json.dumps(plain), encoding="utf-8")
    gemm = profiles.load("h200", path).operations["gemm"]
    assert (gemm.law_covariance, gemm.energy_covariance, gemm.stack) == (None, None, "")
    assert gemm.law == SHIPPED[0].operations["gemm"].law


# --- choosing -------------------------------------------------------------------------------------


def test_case_does_not_matter() -> None:
    assert profiles.load("H200") is profiles.load("h200")


@pytest.mark.parametrize("gpu", ["b9000", "", "../h200", "h200.json"])
def test_an_unknown_gpu_lists_the_profiles(gpu: str) -> None:
    with pytest.raises(InputError, match=f"'{gpu}' is unknown; profiles exist for: .*h200"):
        profiles.load(gpu)


def test_a_known_gpu_without_a_profile_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "available", lambda: ("h200", "x100"))
    with pytest.raises(InputError, match=r"'x100' has no profile; profiles exist for: .*h200"):
        profiles.load("x100")


def test_no_name_at_all() -> None:
    with pytest.raises(InputError, match=r"--gpu .* --profile"):
        profiles.load(None)


def test_a_profile_of_another_gpu_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text(io.dumps(SHIPPED[0]), encoding="utf-8")
    with pytest.raises(InputError, match="gpu is 'h200', but --gpu says 'x100'"):
        profiles.load("x100", path)


# --- hostile files --------------------------------------------------------------------------------

Plain = dict[str, Any]


def without(*keys: str) -> Callable[[Plain], None]:
    def change(plain: Plain) -> None:
        for key in keys[:-1]:
            plain = plain[key]
        del plain[keys[-1]]

    return change


def with_value(value: object, *keys: str | int) -> Callable[[Plain], None]:
    def change(plain: Plain) -> None:
        for key in keys[:-1]:
            plain = plain[key]
        plain[keys[-1]] = value

    return change


HOSTILE = {
    "no power": (without("power"), "power is missing"),
    "no coefficient": (without("power", "exponent"), "power.exponent is missing"),
    "no standard error": (without("power", "exponent", "stderr"), "stderr is missing"),
    "a word": (with_value("fast", "power", "exponent", "value"), "power.exponent.value must be"),
    "true": (with_value(True, "power", "exponent", "value"), "power.exponent.value must be"),
    "null": (with_value(None, "gpu"), "gpu must be an object"),
    "list": (with_value([], "operations"), "operations must be an object"),
    "another version": (with_value(2, "schema_version"), "schema_version must be 1"),
    "an invented kind": (with_value("guessed", "kind"), "kind must be"),
    "an operation without a law": (
        without("operations", "gemm", "law"),
        r"operations\[...\]\.law is missing",
    ),
    "a covariance of words": (
        with_value([["much"]], "operations", "gemm", "law_covariance", "matrix"),
        "law_covariance.matrix",
    ),
    "domain of three": (
        with_value([1, 2, 3], "operations", "gemm", "domain", "m"),
        "p.json",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_broken_profile_is_refused_by_its_field(name: str, tmp_path: Path) -> None:
    change, message = HOSTILE[name]
    plain = json.loads(io.dumps(SHIPPED[0]))
    change(plain)
    path = tmp_path / "p.json"
    path.write_text(json.dumps(plain), encoding="utf-8")
    with pytest.raises(InputError, match=message):
        profiles.load("h200", path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must be JSON"),
        ("[]", "must be an object"),
        ("{", "must be JSON"),
        ('{"schema_version": NaN}', "NaN is not a number"),
        ('{"schema_version": 1e999}', "too large"),
        ('{"a": 1, "a": 2}', "appears twice"),
        ("[" * 100_000, "nested less deeply"),
    ],
)
def test_no_profile_at_all(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        profiles.load("h200", path)


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    with path.open("wb") as file:
        file.truncate(io.MAX_FILE_BYTES + 1)
    with pytest.raises(InputError, match="must be at most"):
        profiles.load("h200", path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.json cannot be read"):
        profiles.load("h200", tmp_path / "nowhere.json")


def test_a_number_that_is_none_is_never_written() -> None:
    with pytest.raises(WorkError, match="not finite"):
        io.dumps(Estimate(value=float("nan"), stderr=0.0, unit="W"))


BROKEN = {
    "no engine number": (without("engines", "vllm", "step_s"), "engines.vllm.step_s is missing"),
    "no operation": (without("operations", "gemm"), "operations.gemm is missing"),
    "no law parameter": (
        without("operations", "gemm", "law", "launch_s"),
        "operations.gemm.law.launch_s is missing",
    ),
    "a rate of zero": (
        with_value(0.0, "operations", "gemm", "law", "bytes_per_s", "value"),
        "must be positive",
    ),
    "no accuracy": (without("accuracy", "regimes", "vllm"), "accuracy.regimes.vllm is missing"),
    "a negative limit": (with_value(-1.0, "power", "limit_share", "value"), "limit_share"),
    "energy from nothing": (
        with_value(-1e-12, "operations", "moe", "energy", "flop_j", "value"),
        "must not be negative",
    ),
    "a deviation of nothing": (
        with_value(-0.1, "accuracy", "regimes", "vllm", "energy", "model"),
        "accuracy.regimes.vllm.energy.model must be from 0 to 3",
    ),
    "a deviation beyond all": (
        with_value(1e9, "accuracy", "regimes", "vllm", "duration", "outside"),
        "accuracy.regimes.vllm.duration.outside must be from 0 to 3",
    ),
    "no quantile": (
        with_value(0.0, "accuracy", "regimes", "vllm", "energy", "inner"),
        "accuracy.regimes.vllm.energy.inner must be above 0",
    ),
    "a quantile beyond all": (
        with_value(1e6, "accuracy", "regimes", "vllm", "duration", "outer"),
        "accuracy.regimes.vllm.duration.outer must be above 0 and at most 20",
    ),
    "quantiles in the wrong order": (
        with_value(19.0, "accuracy", "regimes", "vllm", "energy", "inner"),
        "accuracy.regimes.vllm.energy.inner must be at most outer",
    ),
    "one number of workers": (
        without("fabric", "workers", "step_s"),
        "fabric.workers.step_s is missing",
    ),
    "workers that give time back": (
        with_value(-1.0, "fabric", "workers", "sequence_s", "value"),
        "fabric.workers.sequence_s.value must not be negative",
    ),
    "collectives that take less in a model": (
        with_value(-0.1, "fabric", "skew", "value"),
        "fabric.skew.value must not be negative",
    ),
    "a collective of nobody knows what": (
        with_value("gossip", "fabric", "collectives", 0, "kind"),
        r"fabric.collectives\[0\].kind must be one of: all_reduce",
    ),
    "a collective of one": (
        with_value(1, "fabric", "collectives", 0, "gpus"),
        r"fabric.collectives\[0\].gpus must be at least 2",
    ),
    "a collective that never ends": (
        with_value(0.0, "fabric", "collectives", 0, "bus_bytes_per_s", "value"),
        r"fabric.collectives\[0\].bus_bytes_per_s.value must be positive",
    ),
    "a collective ahead of its time": (
        with_value(-1e-6, "fabric", "collectives", 0, "latency_s", "value"),
        r"fabric.collectives\[0\].latency_s.value must not be negative",
    ),
    "messages of nothing": (
        with_value([[0.0, 0.1], [1.0, 0.1]], "fabric", "collectives", 0, "left_over"),
        r"fabric.collectives\[0\].left_over must have message bytes above 0",
    ),
    "messages out of order": (
        with_value([[2.0, 0.1], [1.0, 0.1]], "fabric", "collectives", 0, "left_over"),
        r"fabric.collectives\[0\].left_over must have message bytes above 0",
    ),
    "too few length scales": (
        with_value([1.0], "operations", "gemm", "residual", "length_scales"),
        "operations.gemm.residual must have",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_a_prediction_would_stumble_over_is_refused(name: str, tmp_path: Path) -> None:
    change, message = BROKEN[name]
    plain = json.loads(io.dumps(SHIPPED[0]))
    change(plain)
    path = tmp_path / "p.json"
    path.write_text(json.dumps(plain))
    with pytest.raises(InputError, match=message):
        profiles.load(None, path)
