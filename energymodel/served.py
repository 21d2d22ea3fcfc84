"""What is known of ways to serve other than greedily through ``LLM``, as warnings."""

from energymodel.deployment import Deployment


def warnings(deployment: Deployment) -> list[str]:
    """Where a flag reaches beyond what was measured; one sentence each."""
    found = []
    if deployment.enforce_eager:
        found.append(
            "enforce_eager was not measured: launches are taken to last as long as those of compiled "
            "code, and kernels to be fused as there."
        )
    if deployment.server:
        found.append(
            "The HTTP server was measured with one model and one process that answers, on a host "
            "that others used too: another host gives another duration."
        )
    return found


def notes(deployment: Deployment) -> list[str]:
    """What a prediction takes for granted; one sentence each."""
    if deployment.sampling != "filtered":
        return []
    return [
        (
            "Top-k and top-p are those of vLLM's Triton kernel: with FlashInfer installed vLLM takes "
            "a sampler that was not measured."
        )
    ]
