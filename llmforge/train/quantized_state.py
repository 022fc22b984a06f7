"""State that an optimizer keeps in 8 bits: taken and given back as it lies, or laid out anew for other workers.

In: what each partition of a rank holds, and which pieces of which parameters lie where in it. Out: named tensors, and
the same state in place. It does not know DeepSpeed, ranks other than by number, or files.

bitsandbytes keeps a moment as one code per number, and per 256 numbers in a row the largest magnitude, which the codes
are shares of (Dettmers et al. 2022, "8-bit Optimizers via Block-wise Quantization"). The rows are those of a partition
and cross parameters, so the state is exact only where the same numbers lie in the same places.
"""

from collections.abc import Mapping
from dataclasses import astuple, dataclass

import torch

BLOCK_SIZE = 256
_PREFIX = "shard-"
_FRAGMENT = "fragment"
_MOMENTS = ("1", "2")
State = dict[str, torch.Tensor | float]
"""What an optimizer keeps of one partition."""


@dataclass(frozen=True, order=True)
class Fragment:
    """A piece of one parameter inside one partition; all numbers count elements but the first."""

    partition: int
    start: int
    parameter_start: int
    numel: int


def is_quantized(optimizer: torch.optim.Optimizer) -> bool:
    """Whether it may keep state in 8 bits: optimizers of bitsandbytes alone hold tables of codes."""
    return hasattr(optimizer, "name2qmap")


def take_partitions(shard: int, states: list[State], fragments: Mapping[str, Fragment]) -> dict[str, torch.Tensor]:
    """Copies on the CPU of all that a rank holds, under names that no other `shard` uses."""
    taken: dict[str, torch.Tensor] = {}
    if not any(states):  # before the first update
        return taken
    for partition, state in enumerate(states):
        for key, value in state.items():
            if isinstance(value, torch.Tensor):
                taken[_state_name(shard, partition, key)] = value.detach().cpu().clone()
    for name, fragment in fragments.items():
        taken[f"{_PREFIX}{shard:05d}/{name}|{_FRAGMENT}"] = torch.tensor(astuple(fragment))
    return taken


def restore_partitions(
    saved: Mapping[str, torch.Tensor], shard: int, states: list[State], fragments: Mapping[str, Fragment]
) -> None:
    """Fill `states`, which exist already, from what all shards have `saved`.

    Exact where this shard was laid out in the same way. Otherwise the moments are written out in fp32 and put into 8
    bits anew, with an error of at most half the distance of two codes.
    """
    layouts = _layouts(saved)
    if layouts.get(shard) == dict(fragments):
        for partition, state in enumerate(states):
            for key, value in state.items():
                if isinstance(value, torch.Tensor):
                    value.copy_(saved[_state_name(shard, partition, key)])
        return
    for partition, state in enumerate(states):
        pieces = {name: fragment for name, fragment in fragments.items() if fragment.partition == partition}
        for moment in _MOMENTS:
            target = state[f"state{moment}"]
            assert isinstance(target, torch.Tensor)
            values = torch.zeros(target.numel())
            for name, piece in pieces.items():
                whole = _moment(saved, layouts, name, moment)
                part = whole[piece.parameter_start : piece.parameter_start + piece.numel]
                values[piece.start : piece.start + piece.numel] = part
            _fill(state, moment, values)


def _state_name(shard: int, partition: int, key: str) -> str:
    return f"{_PREFIX}{shard:05d}/{partition}|{key}"


def _layouts(saved: Mapping[str, torch.Tensor]) -> dict[int, dict[str, Fragment]]:
    """Shard to parameter to where a piece of it lies."""
    layouts: dict[int, dict[str, Fragment]] = {}
    for key, tensor in saved.items():
        if key.startswith(_PREFIX) and key.endswith(f"|{_FRAGMENT}"):
            shard, _, name = key.removeprefix(_PREFIX).removesuffix(f"|{_FRAGMENT}").partition("/")
            layouts.setdefault(int(shard), {})[name] = Fragment(*tensor.tolist())
    return layouts


def _moment(
    saved: Mapping[str, torch.Tensor], layouts: Mapping[int, Mapping[str, Fragment]], name: str, moment: str
) -> torch.Tensor:
    """One moment of a whole parameter in fp32, flat."""
    pieces = [(layout[name], shard) for shard, layout in layouts.items() if name in layout]
    pieces.sort(key=lambda found: found[0].parameter_start)
    return torch.cat([_piece(saved, shard, piece, moment) for piece, shard in pieces])


def _piece(saved: Mapping[str, torch.Tensor], shard: int, piece: Fragment, moment: str) -> torch.Tensor:
    def part(key: str) -> torch.Tensor:
        return saved[_state_name(shard, piece.partition, f"{key}{moment}")]

    codes = part("state").flatten()[piece.start : piece.start + piece.numel]
    if codes.dtype != torch.uint8:
        return codes
    block = torch.arange(piece.start, piece.start + piece.numel) // BLOCK_SIZE
    return part("qmap")[codes.int()] * part("absmax")[block]


def _fill(state: State, moment: str, values: torch.Tensor) -> None:
    """Write one moment of a partition, in 8 bits where the partition keeps it so."""
    target = state[f"state{moment}"]
    assert isinstance(target, torch.Tensor)
    if target.dtype != torch.uint8:
        target.copy_(values.view_as(target))
        return
    table, largest = state[f"qmap{moment}"], state[f"absmax{moment}"]
    assert isinstance(table, torch.Tensor) and isinstance(largest, torch.Tensor)
    blocks = torch.nn.functional.pad(values, (0, -len(values) % BLOCK_SIZE)).view(-1, BLOCK_SIZE)
    magnitudes = blocks.abs().amax(dim=1)
    shares = blocks / magnitudes.clamp(min=torch.finfo(torch.float32).tiny).unsqueeze(1)
    codes = table.cpu()
    nearest = torch.bucketize(shares.flatten()[: len(values)], (codes[1:] + codes[:-1]) / 2)
    target.copy_(nearest.to(torch.uint8).view_as(target))
    largest.copy_(magnitudes)
