"""Copies of a state in host memory, taken while a run waits, and written while it goes on."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, UntypedStorage


class HostCopies:
    """Copies that take the memory of those before (`begin`), pinned where they come from a GPU.

    Tensors that share memory share it in the copies too, so that `torch.save` writes of a copy what it writes of the
    state itself: on CPUs byte for byte, from a GPU with another name of the device.
    """

    def __init__(self) -> None:
        self._buffers: list[tuple[int, bool, UntypedStorage]] = []  # bytes, pinned
        self._used = 0
        self._made: dict[
            int, tuple[UntypedStorage, UntypedStorage]
        ] = {}  # the source is kept, its address stays its own

    def begin(self) -> None:
        """The copies made so far are needed no more."""
        self._used = 0
        self.forget()

    def forget(self) -> None:
        """What was copied is copied again from now on: its memory may be given back."""
        self._made.clear()

    def of(self, state: Any) -> Any:
        """A copy of nested dicts, lists, tuples and what is in them; complete after `settle`."""
        return copy.deepcopy(state, {id(tensor): self.tensor(tensor) for tensor in _tensors(state)})

    def tensor(self, tensor: Tensor) -> Tensor:
        """A copy of one tensor; complete after `settle`."""
        made = torch.empty(0, dtype=tensor.dtype)
        made.set_(self._storage(tensor.untyped_storage()), tensor.storage_offset(), tensor.shape, tensor.stride())
        if tensor.__dict__:
            made.__dict__.update(copy.deepcopy(tensor.__dict__))
        return made.requires_grad_(tensor.requires_grad)

    def settle(self) -> None:
        """Waits for the copies that a GPU makes."""
        if any(pinned for _, pinned, _ in self._buffers[: self._used]):
            torch.cuda.current_stream().synchronize()

    def _storage(self, source: UntypedStorage) -> UntypedStorage:
        if source._cdata not in self._made:
            self._made[source._cdata] = source, self._buffer(source).copy_(source, non_blocking=True)
        return self._made[source._cdata][1]

    def _buffer(self, source: UntypedStorage) -> UntypedStorage:
        """The next memory of that size; an earlier one, where a state of the same shape was copied before."""
        kind = source.nbytes(), source.device.type == "cuda"
        if self._used == len(self._buffers) or self._buffers[self._used][:2] != kind:
            size, pinned = kind
            made = torch.empty(size, dtype=torch.uint8, pin_memory=pinned).untyped_storage()
            self._buffers[self._used : self._used + 1] = [(size, pinned, made)]
        self._used += 1
        return self._buffers[self._used - 1][2]


def _tensors(state: Any) -> Iterator[Tensor]:
    """The plain tensors in a nested state; `copy.deepcopy` does well with parameters and the rest."""
    if type(state) is Tensor and state.layout == torch.strided:
        yield state
    elif isinstance(state, dict):
        for value in state.values():
            yield from _tensors(value)
    elif isinstance(state, list | tuple):
        for value in state:
            yield from _tensors(value)
