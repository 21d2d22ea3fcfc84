"""What layers are made of, one file for each kind of block.

A block is a frozen dataclass that knows its own parameters, cache and calls:

- ``weights(hidden_size, norm_vectors)``: its parameters, tensor by tensor;
- ``kv_bytes_per_token(element_bytes)``: what one token adds to the cache of one layer;
- ``state_bytes(element_bytes)``: what a sequence keeps in one layer however long it is;
- ``operations(ctx)``: the calls of a step, between the normalisations of the layer.

What a kind has none of comes from ``nothing``. To add a kind, write its file and enter it here.
"""

from energymodel.blocks.altup import AltUp, Laurel
from energymodel.blocks.beside_experts import BesideExperts
from energymodel.blocks.cross import CrossAttention
from energymodel.blocks.delta import GatedDelta, LightningAttention
from energymodel.blocks.disentangled import DisentangledAttention
from energymodel.blocks.feed_forward import Mlp, Moe
from energymodel.blocks.griffin import GatedRecurrence
from energymodel.blocks.latent import LatentAttention
from energymodel.blocks.mamba import Mamba, Mamba2
from energymodel.blocks.per_layer import PerLayerGate
from energymodel.blocks.rwkv import ChannelMix, TimeMix
from energymodel.blocks.short_convolution import ShortConvolution
from energymodel.blocks.softmax import SoftmaxAttention
from energymodel.blocks.sparse_latent import SparseLatentAttention
from energymodel.blocks.together import SharedTransformer, Together

Recurrent = (
    Mamba
    | Mamba2
    | GatedDelta
    | LightningAttention
    | ShortConvolution
    | GatedRecurrence
    | TimeMix
    | ChannelMix
)
Block = (
    SoftmaxAttention
    | LatentAttention
    | SparseLatentAttention
    | CrossAttention
    | DisentangledAttention
    | Mlp
    | Moe
    | BesideExperts
    | PerLayerGate
    | AltUp
    | Laurel
    | Recurrent
    | SharedTransformer
    | Together
)


def leaves(block: Block) -> tuple[Block, ...]:
    """The block itself, or the parts of one that is made of others."""
    if isinstance(block, Together | SharedTransformer | BesideExperts):
        return tuple(leaf for part in block.parts for leaf in leaves(part))
    return (block,)


__all__ = [
    "AltUp",
    "BesideExperts",
    "Block",
    "ChannelMix",
    "CrossAttention",
    "DisentangledAttention",
    "GatedDelta",
    "GatedRecurrence",
    "LatentAttention",
    "Laurel",
    "LightningAttention",
    "Mamba",
    "Mamba2",
    "Mlp",
    "Moe",
    "PerLayerGate",
    "Recurrent",
    "SharedTransformer",
    "ShortConvolution",
    "SoftmaxAttention",
    "SparseLatentAttention",
    "TimeMix",
    "Together",
    "leaves",
]
