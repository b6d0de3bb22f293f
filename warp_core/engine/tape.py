"""What sampling computed, kept for the pass that takes the gradient: a matter of speed alone.

Sampling multiplies every linear layer's weights with every token once; the forward pass behind the
gradient needs the same products at the same positions. The tape keeps them, a tenth of a step's work
or more is saved, and what is differentiated is the policy just as it was sampled.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from warp_core.world.models import OutputLayer


@contextmanager
def taped(model: nn.Module, max_new_tokens: int) -> Iterator[None]:
    """Within it, the model's passes with a cache are recorded, and one with a graph replays them.

        with taped(policy, N):
            y = sample(policy, …)  # at most N tokens
            logits = completion_logits(policy, y)  # multiplies nothing, has the whole graph

    A recording begins with a prompt that fills an empty cache, and is spent by the first pass that
    has a graph. The weights must not change in between. A layer that is called otherwise than once
    for each token (a mixture's experts, layers that share weights) computes as ever.
    """
    tape = _Tape(model, max_new_tokens)
    hooks = [layer.register_forward_hook(tape.keep) for layer in tape.layers]
    plain = model.forward

    @wraps(plain)  # its signature is asked for
    def forward(*args: Any, **options: Any) -> Any:
        with tape.watching(options):
            return plain(*args, **options)

    model.forward = forward
    try:
        yield
    finally:
        del model.forward
        for hook in hooks:
            hook.remove()


class _Tape:
    def __init__(self, model: nn.Module, max_new_tokens: int) -> None:
        self.layers = [m for m in model.modules() if type(m) in (nn.Linear, OutputLayer, Conv1D)]
        self.max_new_tokens = max_new_tokens
        self.recording = False
        self.length = 0
        self.outputs: dict[nn.Module, Tensor] = {}  # (B, length, features), the first `used` filled
        self.used: dict[nn.Module, int] = {}

    @contextmanager
    def watching(self, options: Mapping[str, Any]) -> Iterator[None]:
        """One pass of the model with these options: recorded, replayed or plain."""
        cache = options.get("past_key_values")
        self.recording = cache is not None
        if cache is not None and cache.get_seq_length() == 0:
            self.outputs, self.used = {}, {}
            self.length = options["input_ids"].shape[1] + self.max_new_tokens
        replaying = bool(self.outputs) and cache is None and torch.is_grad_enabled()
        for layer in self.layers if replaying else ():
            layer.forward = partial(self._replay, layer)
        try:
            yield
        finally:
            self.recording = False
            for layer in self.layers if replaying else ():
                del layer.forward
            if replaying:
                self.outputs, self.used = {}, {}

    def keep(self, layer: nn.Module, _: Any, output: Tensor) -> None:
        """What a layer gave goes behind what it gave before, along dim 1.

        Into one tensor a layer: thousands of small ones would leave memory in shreds.
        """
        if not self.recording or output.dim() != 3:
            return
        start = self.used.get(layer, 0)
        end = self.used[layer] = start + output.shape[1]
        if start == 0:
            self.outputs[layer] = output.new_empty(len(output), self.length, output.shape[2])
        if (k := len(output) // len(self.outputs[layer])) > 1:  # the prompts' completions begin
            self.outputs[layer] = self.outputs[layer].repeat_interleave(k, dim=0)
        if end <= self.length:
            self.outputs[layer][:, start:end] = output

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
    def backward(  # type: ignore[override]
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        rows = grad.flatten(0, -2)  # (B·S, out)
        to_bias = rows.sum(dim=0) if ctx.has_bias else None
        return grad @ weight.to(grad.dtype), rows.T @ x.flatten(0, -2), to_bias, None
