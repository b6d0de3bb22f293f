"""A model on the devices that it is given: one, or several that share its layers."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import nn
from transformers import PreTrainedModel

from warp_core.store.errors import ConfigError

CACHE = "past_key_values"  # a layer's keys and values stay where it is


def devices_of(gpus: int) -> list[torch.device]:
    """The first so many that this process is shown; the CPU for none, or where there are none."""
    if not gpus or not torch.cuda.is_available():
        return [torch.device("cpu")]
    return [torch.device("cuda", k) for k in range(gpus)]


def spread(model: PreTrainedModel, devices: Sequence[torch.device]) -> PreTrainedModel:
    """The model, in place; each of several devices has as many of its layers, one behind the other.

    A pass takes its tensors from device to device, and its logits come to the first one. Hooks do that, so
    that a layer's `forward` can be replaced as elsewhere.

    Raises ConfigError where the model does not say what its layers are.
    """
    if len(devices) == 1:
        nn.Module.to(model, devices[0])
        return model
    for module, k in _places(model, len(devices)):
        module.to(devices[k]).register_forward_pre_hook(_To(devices[k]).before, with_kwargs=True)
    model.register_forward_hook(_To(devices[0]).behind)
    return model


def _places(model: PreTrainedModel, n: int) -> list[tuple[nn.Module, int]]:
    """Its layers, and what lies before, between and behind them, each with the number of its device;
    what shares weights is together."""
    parts = list(_parts(model, set(model._no_split_modules or ())))
    of_parts = {id(parameter) for part in parts for parameter in part.parameters()}
    if len(parts) == 1 or of_parts != {id(parameter) for parameter in model.parameters()}:
        raise ConfigError(f"gpus: {n} given; the policy does not say what its layers are")
    total, before = sum(parameter.nbytes for parameter in model.parameters()), 0
    of: dict[int, int] = {}  # a parameter's device
    places = []
    for part in parts:
        new = sum(parameter.nbytes for parameter in part.parameters() if id(parameter) not in of)
        k = min(n - 1, n * (2 * before + new) // (2 * total))  # by its middle
        k = next((of[id(p)] for p in part.parameters() if id(p) in of), k)
        of |= {id(parameter): k for parameter in part.parameters()}
        before += new
        places.append((part, k))
    return places


def _parts(module: nn.Module, layers: set[str]) -> Iterator[nn.Module]:
    if not any(type(each).__name__ in layers for each in list(module.modules())[1:]):
        yield module
    else:
        for child in module.children():
            yield from _parts(child, layers)


class _To:
    """Hooks that bring tensors to a device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def before(self, _: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """What a module gets."""
        return send_to_device((args, options), self.device, skip_keys=CACHE)

    def behind(self, _: nn.Module, __: Any, output: Any) -> Any:
        """What it gives."""
        return send_to_device(output, self.device, skip_keys=CACHE)
