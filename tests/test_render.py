import math
import re
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from prediction_builders import a_bin, a_prediction
from rich.cells import cell_len
from rich.console import Console

from energymodel import render
from energymodel.render import BYTES, COUNT, ENERGY, FLOP, HERTZ, POWER, TIME, digits, quantity

LADDERS = {
    "energy": ENERGY,
    "time": TIME,
    "power": POWER,
    "bytes": BYTES,
    "hertz": HERTZ,
    "flop": FLOP,
    "count": COUNT,
}


def show(result: Any, width: int = 80) -> str:
    console = Console(width=width, markup=False, emoji=False, highlight=False)
    with console.capture() as capture:
        console.print(result)
    return capture.get()


@pytest.mark.parametrize(
    ("value", "ladder", "text"),
    [
        (0, ENERGY, "0 J"),
        (-0.0, ENERGY, "0 J"),
        (None, ENERGY, "-"),
        (float("nan"), ENERGY, "nan"),
        (float("inf"), ENERGY, "inf"),
        (0.0123, ENERGY, "12.3 mJ"),
        (7.1e-7, ENERGY, "710 nJ"),
        (1e-30, ENERGY, "1.00e-21 nJ"),
        (1.0, ENERGY, "1.00 J"),
        (999.4, ENERGY, "999 J"),
        (999.6, ENERGY, "1.00 kJ"),
        (-1234.0, ENERGY, "-1.23 kJ"),
        (3.59e8, ENERGY, "359 MJ"),
        (3.6e8, ENERGY, "100 kWh"),
        (3.6e9, ENERGY, "1.00 MWh"),
        (7.2e13, ENERGY, "20.0 GWh"),
        (0.0042, TIME, "4.20 ms"),
        (59.94, TIME, "59.9 s"),
        (59.99, TIME, "1.00 min"),
        (5400, TIME, "1.50 h"),
        (86400 * 400, TIME, "400 d"),
        (700, POWER, "700 W"),
        (1.758e9, HERTZ, "1.76 GHz"),
        (512, BYTES, "512 B"),
        (4.8e12, BYTES, "4.80 TB"),
        (989e12, FLOP, "989 TFLOP"),
        (8_190_735_360, COUNT, "8.19 B"),
        (12, COUNT, "12.0"),
    ],
)
def test_quantities_in_units_that_a_person_would_say(value: Any, ladder: Any, text: str) -> None:
    assert quantity(value, ladder) == text


@pytest.mark.parametrize("name", LADDERS)
@given(value=st.floats(min_value=-1e300, max_value=1e300))
def test_a_quantity_reads_back_within_its_digits(name: str, value: float) -> None:
    ladder = LADDERS[name]
    text = quantity(value, ladder)
    number, _, unit = text.partition(" ")
    sizes = {u.strip(): 3.6e6 if u == "kWh" else size for size, u in ladder}
    back = float(number.replace(",", "")) * sizes[unit]
    assert back == pytest.approx(value, rel=0.0051, abs=5e-324)
    assert text.isascii()


@given(st.floats(min_value=1e-9, max_value=1e15))
def test_energies_are_short_in_the_whole_range_of_use(value: float) -> None:
    assert len(quantity(value, ENERGY)) <= 8


@given(st.floats())
def test_digits_never_fails(value: float) -> None:
    text = digits(value)
    assert len(text) <= 11
    assert math.isnan(float(text.replace(",", ""))) == math.isnan(value)


@given(st.text())
def test_printable_text_holds_nothing_that_moves_a_terminal(text: str) -> None:
    assert render.printable(text).isprintable()


def test_the_page_of_a_prediction() -> None:
    text = show(render.prediction(a_prediction(warnings=("the clock is a guess",))))
    lines = [" ".join(line.split()) for line in text.splitlines()]
    for line in (
        "Qwen/Qwen3-8B on h200, vllm",
        "4 requests, 2,048 input and 512 output tokens",
        "energy 100 J",
        "90 % interval 95.0 J to 105 J",
        "duration 500 ms",
        "mean power 200 W",
        "energy per request 25.0 J",
        "energy per output token 195 mJ",
        "output tokens per second 1,020",
        "time to first token 20.0 ms mean, p50 20.0 ms, p90 30.0 ms, p99 40.0 ms",
        "decode 75.0 J 75.0 % 400 ms 188 W",
        "idle 0 J 0.0 % 0 s -",
        # 50 J over 5e13 FLOP are 1 pJ each, so 1 mJ a GFLOP.
        "mlp 50.0 J 50.0 % 250 ms 50.0 TFLOP 800 GB 1.00 mJ",
        "overhead 10.0 J 10.0 % 50.0 ms - - -",
        "FLOP-only estimate: 41.0 J, 0.41 of this",
        "TDP estimate: 350 J, 3.50 of this",
        "Warning: the clock is a guess",
        "Profile h200 (measured)",
    ):
        assert line in lines
    assert text.isascii()
    assert max(map(len, text.splitlines())) <= 80


def test_only_flags_that_differ_from_the_defaults_are_shown() -> None:
    p = a_prediction(deployment={"engine": "vllm", "max_num_seqs": 8, "dtype": "bfloat16"})
    assert show(render.prediction(p)).startswith("Qwen/Qwen3-8B on h200, vllm --max-num-seqs 8\n")


def test_what_makes_no_sense_is_left_out() -> None:
    p = a_prediction(
        output_tokens=0, energy_per_output_token_j=None, ttft_s=None, itl_s=None, energy_j=0.0
    )
    text = show(render.prediction(p))
    assert "per output token" not in text
    assert "latency" not in text


def test_the_power_limit_is_named() -> None:
    text = show(render.prediction(a_prediction(power_limited=True, power_limited_share=0.25)))
    assert "1.76 GHz, power limited 25.0 % of the time" in text


def test_bins_are_shown_when_there_are_several_and_cut_when_many() -> None:
    assert "per token" not in show(render.prediction(a_prediction()))
    two = show(render.prediction(a_prediction(bins=(a_bin(60), a_bin(40)))))
    assert two.rindex("60.0 J") < two.rindex("40.0 J")
    many = a_prediction(bins=tuple(a_bin(float(i)) for i in range(1, 1001)))
    text = show(render.prediction(many))
    assert "1.00 kJ" in text
    assert "980 more in --json" in text
    assert len(text.splitlines()) < 60


def test_escape_sequences_and_markup_do_not_reach_the_terminal() -> None:
    evil = "\x1b]0;owned\x07\x9b31m[bold red]<b>\u202e\nx"
    p = a_prediction(
        model=evil,
        gpu=evil,
        warnings=(evil,),
        components={evil: a_prediction().components["mlp"]},
        phases={evil: a_prediction().phases["decode"]},
        baselines={evil: a_prediction().flop_only},
        provenance={"profile": evil, "kind": evil},
        deployment={"dtype": evil},
    )
    text = show(render.prediction(p))
    assert all(c.isprintable() or c == "\n" for c in text)
    assert "[bold red]<b>" in text.replace("\n", "")


@given(
    energy=st.floats(min_value=0, max_value=1e18),
    seconds=st.floats(min_value=0, max_value=1e12),
    name=st.text(max_size=60),
)
# A wide character, and one that has no width and so counts for no column.
@example(energy=0.0, seconds=0.0, name="\x1f\U00018d09\U000e0100")
def test_every_prediction_fits_80_columns(energy: float, seconds: float, name: str) -> None:
    base = a_prediction()
    components = {
        name + key: type(c)(energy_j=energy, flop=energy * 1e9, hbm_bytes=1e20, duration_s=seconds)
        for key, c in base.components.items()
    }
    p = a_prediction(model=name, energy_j=energy, duration_s=seconds, components=components)
    text = show(render.prediction(p))
    assert all(cell_len(line.rstrip()) <= 80 for line in text.splitlines())


def test_lists() -> None:
    row = {
        "name": "a/b",
        "kind": "moe",
        "param_count": 7e9,
        "active_param_count": 1e9,
        "kv_bytes_per_token": 131072.0,
        "weight_bytes": 14e9,
        "weight_formats": ["bfloat16"],
    }
    sizes = r" +7\.00 B +1\.00 B +131 kB +14\.0 GB"
    assert re.search("b +moe" + sizes, show(render.models([row])))
    narrow = row | {"kind": "encoder-decoder", "weight_formats": ["fp8_block", "uint4_g64"]}
    assert re.search("b +enc-dec fp8 int4" + sizes, show(render.models([narrow])))
