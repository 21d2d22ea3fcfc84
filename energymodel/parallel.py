"""How many GPUs a replica runs on, and which of them work together.

The GPUs of vLLM are laid out as data x pipeline x tensor, the last next to each other
(``vllm/distributed/parallel_state.py``, ``initialize_model_parallel``): a tensor-parallel group
holds one stage of the layers, ``pipeline`` stages hold the model, ``data`` copies of it split the
requests. With experts spread over GPUs, or data parallel, the experts of a layer are shared by
``tensor`` x ``data`` GPUs.
"""

from dataclasses import dataclass

from energymodel.deployment import Deployment
from energymodel.errors import InputError

MOST_GPUS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Parallel:
    """Sizes of the groups, on nodes of ``node`` GPUs.

    ``node_link_bytes_per_s``: what one GPU sends to another node; 0 where nothing is declared.
    ``experts``: experts are whole, spread over ``expert_gpus``.
    """

    tensor: int = 1
    pipeline: int = 1
    data: int = 1
    experts: bool = False
    node: int = 8
    node_link_bytes_per_s: float = 0.0

    @property
    def gpus(self) -> int:
        """GPUs of the replica."""
        return self.tensor * self.pipeline * self.data

    @property
    def expert_gpus(self) -> int:
        """GPUs that share the experts of a layer, whole or cut."""
        return self.tensor * self.data

    @property
    def sequence_parallel(self) -> bool:
        """Whether GPUs of a tensor-parallel group route different tokens to the experts.

        ``use_sequence_parallel_moe`` in ``vllm/config/parallel.py``.
        """
        return self.experts and self.tensor > 1 and self.data > 1


def parallel_of(deployment: Deployment) -> Parallel:
    """The groups of a deployment.

    Raises:
        InputError: there are too many GPUs, or a copy of the model has more than a node and no link
            between nodes is declared. ``sharding.shard`` asks for the link between copies.
    """
    groups = Parallel(
        tensor=deployment.tensor_parallel_size,
        pipeline=deployment.pipeline_parallel_size,
        data=deployment.data_parallel_size,
        experts=deployment.enable_expert_parallel,
        node=deployment.gpus_per_node,
        node_link_bytes_per_s=deployment.node_link_bytes_per_s or 0.0,
    )
    if groups.gpus > MOST_GPUS:
        raise InputError(
            f"tensor_parallel_size x pipeline_parallel_size x data_parallel_size is "
            f"{groups.gpus:,}; a replica has at most {MOST_GPUS:,} GPUs."
        )
    check_link(groups, groups.tensor * groups.pipeline)
    return groups


def check_link(groups: Parallel, gpus: int) -> None:
    """Refuse ``gpus`` that have something to tell each other on nodes that nothing joins.

    Raises:
        InputError: there are more than a node has and no link between nodes is declared.
    """
    if gpus > groups.node and not groups.node_link_bytes_per_s:
        raise InputError(
            f"a replica of {gpus:,} GPUs spans nodes of {groups.node}: declare "
            "the link between them with node_link_bytes_per_s, or raise gpus_per_node."
        )
