"""Compute large matrix products of compiled updates with oneDNN on AMD processors with AVX-512.

There MKL uses only AVX2, at half the speed of oneDNN, which uses AVX-512. PyTorch calls oneDNN for float32 products with constant
weights only. So we replace large products in the compiled graph.
"""

from functools import cache
from pathlib import Path

import torch
from torch import Tensor, library
from torch._inductor.custom_graph_pass import CustomGraphPass

_MIN_SIDE, _MIN_MULTIPLICATIONS = 32, 2**24
"""Limits for one agent's product. Below them, a call per agent and stacking the results cost more than they save."""


@cache
def onednn_is_faster() -> bool:
    """Whether this is an AMD processor with AVX-512."""
    processor = Path("/proc/cpuinfo")
    is_amd = processor.exists() and "AuthenticAMD" in processor.read_text()
    return is_amd and torch.backends.cpu.get_cpu_capability() == "AVX512" and torch.backends.mkldnn.is_available()


def product(x: Tensor, weight: Tensor) -> Tensor:
    """[P, N, in] x [P, in, out] -> [P, N, out], computed as one oneDNN product for each agent."""
    linear = torch.ops.mkldnn._linear_pointwise
    products = [linear(a, b.mT, None, "none", [], "") for a, b in zip(x, weight, strict=True)]
    return torch.stack(products) if len(products) > 1 else products[0].unsqueeze(0)  # unsqueeze avoids a copy


# Register the operator that the graphs use. PyTorch's decorator for own operators would add three Python calls to each call, for
# derivatives that we do not need.
_library = library.Library("metagenrl_pl", "DEF")
_library.define("product(Tensor x, Tensor weight) -> Tensor")
_library.impl("product", product, "CPU")
_library.impl("product", lambda x, weight: x.new_empty(x.shape[0], x.shape[1], weight.shape[2]), "Meta")


class OneDNNProducts(CustomGraphPass):
    """Replaces the large float32 products of a graph, in place.

    The graph already contains the gradients, so it needs no derivatives.
    """

    def __call__(self, graph: torch.fx.Graph) -> None:
        for node in graph.find_nodes(op="call_function", target=torch.ops.aten.bmm.default):
            x, weight = (argument.meta["val"] for argument in node.args)
            sides = (x.shape[1], x.shape[2], weight.shape[2])
            is_large = min(sides) >= _MIN_SIDE and sides[0] * sides[1] * sides[2] >= _MIN_MULTIPLICATIONS
            if is_large and x.dtype == torch.float32 and x.device.type == "cpu":
                node.target = torch.ops.metagenrl_pl.product.default

    def uuid(self) -> str:
        """Part of the cache key of compiled graphs. Change it whenever this pass changes."""
        return f"metagenrl_pl.OneDNNProducts.2,{_MIN_SIDE},{_MIN_MULTIPLICATIONS}"
