"""One process of several that gather what each of them has; started by test_placement.

Arguments: a file to meet at, agents, processes, this process's rank.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

import torch
import torch.distributed as dist

from metagenrl_pl.common.placement import Placement


def main(store: str, num_agents: int, world_size: int, rank: int) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", world_size=world_size, rank=rank)
    placement = Placement(num_agents, rank, world_size)
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randn(num_agents, 3, 2, generator=generator)
    every = {
        "float32": numbers,
        "float64": numbers.double() / 3,
        "int64": torch.arange(num_agents) + 2**60,
        "uint8": torch.arange(num_agents * 5, dtype=torch.uint8).view(num_agents, 5),
        "bool": numbers[:, 0] > 0,
        "nothing": numbers[:, :0],
        "special": torch.tensor([torch.nan, torch.inf, -0.0, 1e-42]).expand(num_agents, 4).clone(),
    }
    for name, values in every.items():
        mine = placement.local_rows(values)
        before = mine.clone()
        gathered = placement.gather(mine)
        assert gathered.dtype == values.dtype and gathered.shape == values.shape, name
        assert gathered.numpy().tobytes() == values.numpy().tobytes(), name
        assert mine.numpy().tobytes() == before.numpy().tobytes(), name
    transposed = numbers.transpose(1, 2)  # not contiguous
    assert torch.equal(placement.gather(placement.local_rows(transposed)), transposed)

    objects = [{"agent": agent, "returns": [0.1] * agent} for agent in range(num_agents)]
    assert placement.gather_list(placement.local(objects)) == objects
    assert placement.gather_objects(("rank", rank)) == [("rank", other) for other in range(world_size)]
    print(f"{len(every)} dtypes and shapes, lists and objects")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
