"""What sampling computed, kept for the pass that takes the gradient.

Sampling multiplies every linear layer's weights with every token once; the forward pass behind the
gradient needs the same products at the same positions. A tape keeps them, a tenth of a step's work
or more is saved, and what is differentiated is the policy just as it was sampled.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from warp_core.models import OutputLayer


class Tape:
    """The outputs of a model's linear layers along a rollout.

        tape = Tape(model)
        with tape.recording(length):
            y = sample(model, …)
        with tape.replaying():
            logits = completion_logits(model, y)  # multiplies nothing, has the whole graph

    A layer that is called otherwise than once for each token (a mixture's experts, layers that share
    weights) computes as ever.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.layers = [m for m in model.modules() if type(m) in (nn.Linear, OutputLayer, Conv1D)]
        self.outputs: dict[nn.Module, Tensor] = {}  # (B, length, features), the first `used` filled
        self.used: dict[nn.Module, int] = {}

    @contextmanager
    def recording(self, length: int) -> Iterator[None]:
        """Keep what the layers give, call after call along dim 1, `length` positions at most.

        Written into one tensor a layer: thousands of small ones would leave memory in shreds.
        """

        def keep(layer: nn.Module, _: Any, output: Tensor) -> None:
            if output.dim() != 3:
                return
            start = self.used.get(layer, 0)
            end = self.used[layer] = start + output.shape[1]
            if start == 0:
                self.outputs[layer] = output.new_empty((len(output), length, output.shape[2]))
            if end <= length:
                self.outputs[layer][:, start:end] = output

        hooks = [layer.register_forward_hook(keep) for layer in self.layers]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @contextmanager
    def replaying(self) -> Iterator[None]:
        """The layers give what they gave; then the tape is empty."""
        for layer in self.layers:
            layer.forward = partial(self._replay, layer)
        try:
            yield
        finally:
            for layer in self.layers:
                del layer.forward
            self.outputs, self.used = {}, {}

    def _replay(self, layer: Any, x: Tensor) -> Tensor:
        recorded = self.outputs.pop(layer, None)
        if recorded is None or (len(recorded), self.used[layer]) != x.shape[:2]:
            return type(layer).forward(layer, x)
        y = recorded[:, : x.shape[1]]
        weight = layer.weight.T if isinstance(layer, Conv1D) else layer.weight
        return _Replayed.apply(x, weight, layer.bias, y)


class _Replayed(torch.autograd.Function):
    """y = x·Wᵀ + b, whose value is known; its gradient is a linear layer's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor) -> Tensor:
        ctx.save_for_backward(x.to(y.dtype), weight)
        ctx.has_bias = bias is not None
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        rows = grad.flatten(0, -2)  # (B·S, out)
        return (grad @ weight.to(grad.dtype), rows.T @ x.flatten(0, -2),
                rows.sum(dim=0) if ctx.has_bias else None, None)  # fmt: skip
