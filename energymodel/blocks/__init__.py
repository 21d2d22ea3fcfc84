"""What layers are made of, one file for each kind of block.

A block is a frozen dataclass that knows its own parameters, cache and calls:

- ``weights(hidden_size, norm_vectors)``: its parameters, tensor by tensor;
- ``kv_bytes_per_token(element_bytes)``: what one token adds to the cache of one layer;
- ``state_bytes(element_bytes)``: what a sequence keeps in one layer however long it is;
- ``operations(ctx)``: the calls of a step, between the normalisations of the layer.

To add a kind, write its file and enter it here.
"""

from energymodel.blocks.cross import CrossAttention
from energymodel.blocks.feed_forward import Mlp, Moe
from energymodel.blocks.softmax import SoftmaxAttention

Block = SoftmaxAttention | CrossAttention | Mlp | Moe

__all__ = ["Block", "CrossAttention", "Mlp", "Moe", "SoftmaxAttention"]
