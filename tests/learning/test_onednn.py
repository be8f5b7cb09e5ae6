"""Compiled matrix products through oneDNN."""

import pytest
import torch

from metagenrl_pl.learning import onednn


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch was built without oneDNN")
@pytest.mark.parametrize("transposed", [False, True])
def test_product_is_a_batched_matrix_product(transposed: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x = (
        torch.randn(3, 40, 50, generator=generator).mT.contiguous().mT
        if transposed
        else torch.randn(3, 40, 50, generator=generator)
    )
    weight = torch.randn(3, 50, 33, generator=generator)
    torch.testing.assert_close(torch.ops.metagenrl_pl.product(x, weight), torch.bmm(x, weight), rtol=1e-5, atol=1e-5)


def test_only_large_products_are_replaced() -> None:
    graph = torch.fx.Graph()
    for side in (256, 255, 300):  # 2^24 multiplications are enough
        arguments = [graph.placeholder(f"{name}_{side}") for name in ("x", "weight")]
        for argument in arguments:
            argument.meta["val"] = torch.empty(2, side, side)
        graph.call_function(torch.ops.aten.bmm.default, tuple(arguments))
    onednn.OneDNNProducts()(graph)
    targets = [str(node.target) for node in graph.nodes if node.op == "call_function"]
    assert targets == ["metagenrl_pl.product.default", "aten.bmm.default", "metagenrl_pl.product.default"]
