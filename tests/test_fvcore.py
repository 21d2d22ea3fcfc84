"""fvcore as a second counter of single operations, and what it does not see."""

import pytest

torch = pytest.importorskip("torch", reason="needs torch")
nn = pytest.importorskip("fvcore.nn", reason="needs fvcore")
flop_counter = pytest.importorskip("torch.utils.flop_counter")


class Attention(torch.nn.Module):
    """Softmax attention of 2 heads of 8 as one fused call."""

    def forward(self, q: "torch.Tensor") -> "torch.Tensor":
        return torch.nn.functional.scaled_dot_product_attention(q, q, q)


def counted(module: "torch.nn.Module", *inputs: "torch.Tensor") -> tuple[float, float]:
    """What (torch, fvcore) count for one call."""
    counter = flop_counter.FlopCounterMode(display=False)
    with counter, torch.no_grad():
        module(*inputs)
    analysis = nn.FlopCountAnalysis(module, inputs)
    analysis.unsupported_ops_warnings(enabled=False).uncalled_modules_warnings(enabled=False)
    return counter.get_total_flops(), analysis.total()


@pytest.mark.filterwarnings("ignore")  # tracing warns of shapes that are constants
def test_it_counts_multiply_adds_of_linear_layers_and_convolutions() -> None:
    # 5 rows of 16 inputs to 24 outputs; an image of 9 x 11 with 3 channels to 4, kernels of 3 x 3.
    linear = counted(torch.nn.Linear(16, 24), torch.zeros(5, 16))
    assert linear == (2 * 5 * 16 * 24, 5 * 16 * 24)
    same = torch.nn.Conv2d(3, 4, 3, padding=1)
    assert counted(same, torch.zeros(1, 3, 9, 11)) == (2 * 99 * 27 * 4, 99 * 27 * 4)
    video = torch.nn.Conv3d(3, 4, 3, padding=1)
    assert counted(video, torch.zeros(1, 3, 2, 9, 11)) == (2 * 198 * 81 * 4, 198 * 81 * 4)
    audio = torch.nn.Conv1d(8, 6, 3, stride=2, padding=1)
    assert counted(audio, torch.zeros(1, 8, 20)) == (2 * 10 * 24 * 6, 10 * 24 * 6)


@pytest.mark.filterwarnings("ignore")
def test_it_does_not_see_fused_attention() -> None:
    # torch sees the products inside only where no kernel of the CPU fuses them.
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        counts = counted(Attention(), torch.zeros(1, 2, 7, 8))
    assert counts == (4 * 2 * 7 * 7 * 8, 0)
