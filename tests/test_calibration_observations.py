import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration import grid, jsonl, observations
from calibration.observations import Observation
from calibration.simulation.gpu import SimulatedOp, SimulatedSensor
from calibration.window import steady_window
from energymodel.errors import InputError, WorkError

ONE = Observation(
    op="gemm",
    shape={"m": 1, "n": 2, "k": 3},
    mode="burst",
    trial=0,
    call_s=1.5e-5,
    stack="torch",
    gpu="NVIDIA H200",
    board="7b75fe4c9032",
    driver="580",
    time_s=1795260001.5,
)

names = st.text(max_size=20)
numbers = st.floats(-1e12, 1e12).map(lambda x: float(f"{x:.6g}"))
maybe = st.none() | numbers
counts = st.integers(0, 2**31)


def test_read_gives_back_what_was_appended(tmp_path: Path) -> None:
    path = tmp_path / "o.jsonl"
    two = replace(
        ONE, mode="duty", duty=0.2, energy_j=712.25, duration_s=1.0, calls=3.0, busy_s=0.2,
        sm_clock_hz=1.98e9, temperature_c=51.0, throttle_reasons=4,
    )  # fmt: skip
    observations.append(path, ONE)
    observations.append(path, two)
    assert list(observations.read(path)) == [ONE, two]


def _digits(x: float) -> float:
    return float(f"{x:.6g}")


positive = st.floats(1e-9, 1e9).map(_digits)
windows = st.fixed_dictionaries(
    {
        "energy_j": st.floats(100.0, 1000.0).map(_digits),
        "duration_s": st.floats(1.0, 3.0).map(_digits),
        "calls": positive,
        "busy_s": positive,
        "sm_clock_hz": st.floats(1e8, 3e9).map(_digits),
        "temperature_c": st.floats(20.0, 90.0).map(_digits),
        "duty": st.floats(0.01, 1.0).map(_digits),
        "power_limit_w": st.none() | positive,
    }
)


@given(
    st.builds(
        Observation,
        op=names, shape=st.dictionaries(names, counts, max_size=4), mode=names, trial=counts,
        dtype=st.sampled_from(get_args(observations.Dtype)),
        library=st.sampled_from(["vllm", "torch"]), cache=st.sampled_from(["cold", "warm"]),
        call_s=positive, call_spread_s=maybe,
        idle_power_w=maybe, net_j=maybe, ticks=st.none() | counts,
        lost_ticks=st.none() | counts,
        throttle_reasons=st.none() | counts, memory_power_w=maybe,
        stack=names, gpu=names, board=names, driver=names, data=names, time_s=maybe,
    ),
    st.just({}) | windows,
)  # fmt: skip
def test_any_observation_comes_back(
    tmp_path_factory: pytest.TempPathFactory, burst: Observation, window: dict[str, Any]
) -> None:
    observation = replace(burst, **window)
    path = tmp_path_factory.mktemp("round") / "o.jsonl"
    observations.append(path, observation)
    assert list(observations.read(path)) == [observation]


def test_floats_are_written_to_six_digits_and_the_time_of_day_in_full(tmp_path: Path) -> None:
    path = tmp_path / "o.jsonl"
    observations.append(path, replace(ONE, call_s=1 / 3e4))
    record = json.loads(path.read_text())
    assert record["call_s"] == 3.33333e-05
    assert record["time_s"] == 1795260001.5
    assert "energy_j" not in record


def test_a_window_becomes_fields_of_an_observation() -> None:
    sensor = SimulatedSensor()
    work = sensor.work(SimulatedOp(time_s=1e-4, power_w=100.0))
    window = steady_window(sensor, work, window_s=0.7, settle_s=0.1, clock=sensor.clock)
    assert observations.window_fields(window) == asdict(window)
    assert "memory_power_w" not in observations.window_fields(replace(window, memory_power_w=None))


def test_what_a_line_does_not_say_is_what_was_usual(tmp_path: Path) -> None:
    path = tmp_path / "o.jsonl"
    old = {
        "op": "gemm", "shape": {"m": 1, "n": 2, "k": 3}, "mode": "burst", "trial": 0,
        "call_s": 1.5e-5, "stack": "torch", "gpu": "NVIDIA H200", "board": "7b75fe4c9032",
        "driver": "580", "time_s": 1795260001.5,
    }  # fmt: skip
    path.write_text(json.dumps(old) + "\n", encoding="utf-8")
    assert list(observations.read(path)) == [ONE]
    assert (ONE.dtype, ONE.library, ONE.cache) == observations.USUAL
    assert (ONE.idle_power_w, ONE.net_j, ONE.lost_ticks) == (None, None, None)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({}, "gemm:k=3,m=1,n=2"),
        ({"shape": {"n": 2, "k": 3, "m": 1}}, "gemm:k=3,m=1,n=2"),
        ({"mode": "sustained", "trial": 4, "board": "x", "stack": "y"}, "gemm:k=3,m=1,n=2"),
        ({"dtype": "fp8"}, "gemm:k=3,m=1,n=2:fp8"),
        ({"library": "torch", "cache": "warm"}, "gemm:k=3,m=1,n=2:torch:warm"),
        ({"op": "idle", "shape": {}}, "idle:"),
    ],
)
def test_a_point_is_what_ran_and_how_whoever_measured_it(changes: dict[str, Any], key: str) -> None:
    assert replace(ONE, **changes).point == key


def test_a_point_of_the_grid_and_its_observation_have_one_key() -> None:
    for point in grid.full():
        how: dict[str, Any] = {"dtype": point.dtype, "library": point.library}
        assert replace(ONE, op=point.op, shape=point.shape, **how).point == point.key


@pytest.mark.parametrize(
    ("field", "value", "known"),
    [("dtype", "fp4", "bfloat16"), ("library", "jax", "vllm"), ("cache", "tepid", "cold")],
)
def test_a_way_to_run_that_is_unknown_is_named(
    tmp_path: Path, field: str, value: str, known: str
) -> None:
    path = tmp_path / "o.jsonl"
    observations.append(path, replace(ONE, **{field: value}))
    with pytest.raises(InputError, match=rf'line 1: {field} must be .*"{known}".*, got "{value}"'):
        list(observations.read(path))


@pytest.mark.parametrize("cut", [1, 20, 150])
def test_a_truncated_last_line_is_left_out_and_repaired(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "o.jsonl"
    observations.append(path, ONE)
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:cut])
    assert list(observations.read(path)) == [ONE]
    jsonl.repair(path)
    assert path.read_bytes() == whole


def test_a_last_line_that_lacks_only_its_end_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "o.jsonl"
    observations.append(path, ONE)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert list(observations.read(path)) == [ONE]
    jsonl.repair(path)
    assert path.read_bytes() == whole


def test_repair_makes_a_file_that_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "new" / "o.jsonl"
    jsonl.repair(path)
    assert path.read_bytes() == b""
    assert list(observations.read(path)) == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "must be JSON"),
        ("[]", "must be an object"),
        ('{"op": "gemm"}', "line 2"),
        ("", "must be JSON"),
    ],
)
def test_a_broken_line_names_file_and_line(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "o.jsonl"
    observations.append(path, ONE)
    with path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(InputError, match=message) as caught:
        list(observations.read(path))
    assert f"{path} line 2" in str(caught.value)


def test_a_field_of_the_wrong_type_is_named(tmp_path: Path) -> None:
    path = tmp_path / "o.jsonl"
    observations.append(path, ONE)
    path.write_text(path.read_text().replace("1.5e-05", '"fast"'))
    with pytest.raises(InputError, match=r"line 1: call_s must be a number"):
        list(observations.read(path))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.jsonl cannot be read"):
        list(observations.read(tmp_path / "none.jsonl"))


def test_files_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written: is a directory"):
        jsonl.repair(tmp_path)
    with pytest.raises(WorkError, match="cannot be written: is a directory"):
        jsonl.append(tmp_path, {})


def test_numbers_that_are_not_finite_are_never_written(tmp_path: Path) -> None:
    path = tmp_path / "o.jsonl"
    with pytest.raises(ValueError, match="not JSON compliant"):
        observations.append(path, replace(ONE, energy_j=float("nan")))
    assert not path.exists()


def test_the_committed_observations_can_be_read() -> None:
    folder = Path(observations.__file__).parent / "data"
    for path in folder.glob("*/observations.jsonl"):
        assert sum(o.call_s > 0 for o in observations.read(path)) > 1000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"energy_j": 712250.0}, "power in watts, got 7.122e.05 W"),
        ({"duration_s": 1000.0}, "power in watts"),
        ({"energy_j": -1.0}, "energy_j must be"),
        ({"call_s": 0.0}, "call_s must be"),
        ({"sm_clock_hz": 1980.0}, "sm_clock_hz must be"),
        ({"temperature_c": None}, "temperature_c is missing"),
        ({"shape": {"m": -5}}, "shape"),
    ],
)
def test_wrong_units_and_impossible_numbers_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    good = replace(
        ONE, mode="duty", duty=0.2, energy_j=712.25, duration_s=1.0, calls=3.0, busy_s=0.2,
        sm_clock_hz=1.98e9, temperature_c=51.0,
    )  # fmt: skip
    path = tmp_path / "o.jsonl"
    observations.append(path, replace(good, **changes))
    with pytest.raises(InputError, match=message):
        list(observations.read(path))
