"""A forward and backward pass that is launched as one CUDA graph."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

WARM_UP = 3  # passes before the capture: kernels are compiled and chosen, the allocator has what it needs
Tensors = tuple[Tensor | None, ...]


class CapturedPass:
    """Forward and backward of one batch shape, captured in a CUDA graph and replayed on other pictures.

    The gradients are the tensors that were captured; each replay overwrites them. Dropout draws from the default
    generator, whose state the capture leaves as it was.

    Args:
        compute: forward and backward of its inputs, with a weight: it leaves gradients and returns the loss terms.
        parameters: those that get gradients.
        inputs: of the first batch; later ones have tensors of the same shapes in the same places.
        weight: the second argument of `compute`, the same in every replay.
    """

    def __init__(
        self,
        compute: Callable[[Tensors, float], dict[str, Tensor]],
        parameters: list[nn.Parameter],
        inputs: Tensors,
        weight: float,
    ) -> None:
        self.parameters = parameters
        self.inputs = tuple(None if tensor is None else tensor.clone() for tensor in inputs)
        state = torch.cuda.get_rng_state()
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_UP):
                self._forget_gradients()
                compute(self.inputs, weight)
        torch.cuda.current_stream().wait_stream(aside)
        self._forget_gradients()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.losses = compute(self.inputs, weight)
        self.gradients = [parameter.grad for parameter in parameters]
        torch.cuda.set_rng_state(state)

    def __call__(self, inputs: Tensors) -> dict[str, Tensor]:
        for own, given in zip(self.inputs, inputs, strict=True):
            if own is not None and given is not None:
                own.copy_(given)
        self.graph.replay()
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            parameter.grad = gradient
        return {name: term.detach().clone() for name, term in self.losses.items()}

    def _forget_gradients(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None
