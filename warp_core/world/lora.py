"""Policies that are adapters on one frozen body (LoRA, Hu et al. 2021): θ = θ_sft + Σ s·B·A.

The body lies in memory once; θ^m, its anchor and θ_sft itself are views of it, which differ in the
adapters that are active. What is trained, and averaged by an anchor, are the factors, in float32: an
EMA of the products would not have their rank.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import wraps
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from warp_core.store.adapter import Adapter, Pair
from warp_core.store.errors import ConfigError

Targets = str | Sequence[str]
ALL = "all-linear"
MATRICES = (nn.Linear, Conv1D)


class Body:
    """A frozen model, and the adapters on it by name."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model.requires_grad_(False)
        self._active: tuple[str, ...] | None = None

    def layers(self) -> dict[str, Any]:
        """The `LoraLayer`s of peft, by the name that the model has for them."""
        return {n: each for n, each in self.model.named_modules() if isinstance(each, LoraLayer)}

    def add(self, name: str, rank: int, alpha: float, matrices: Sequence[str], seed: int) -> None:
        """A new adapter that changes nothing yet: A is drawn, B is 0.

        Args:
            alpha: the adapter's product is scaled by alpha / rank.
            matrices: names of layers, as `adapted_sizes` gives them.
        """
        config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(matrices))  # type: ignore[arg-type]
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of layers whose weights lie transposed
            torch.manual_seed(seed)
            inject_adapter_in_model(config, self.model, name)
        for factor in self.factors(name).values():  # peft gives them the body's type
            factor.data = factor.data.float()
        self.model.requires_grad_(False).eval()
        self._active = None

    def load(self, name: str, adapter: Adapter) -> None:
        """An adapter that was stored."""
        self.add(name, adapter.rank, adapter.rank, list(adapter.pairs), 0)
        with torch.no_grad():
            for module, layer in self.layers().items():
                b, a = adapter.pairs[module]
                layer.lora_B[name].weight.copy_(torch.from_numpy(b))
                layer.lora_A[name].weight.copy_(torch.from_numpy(a))

    def factors(self, name: str) -> dict[str, nn.Parameter]:
        """A and B of an adapter."""
        return {
            f"{module}.{which}.weight": of[name].weight
            for module, layer in self.layers().items()
            for which, of in (("lora_A", layer.lora_A), ("lora_B", layer.lora_B))
        }

    def use(self, names: tuple[str, ...]) -> None:
        """Activate these alone; none is the body itself."""
        if self._active != names:
            for layer in self.layers().values():
                layer.set_adapter(list(names), inference_mode=True)
            self._active = names


class Adapted(nn.Module):
    """A policy: a body with some adapters; its parameters are the factors of the last one.

    Of a pass with a graph the adapters stay active, for its backward pass may compute it again.
    """

    def __init__(self, body: Body, names: tuple[str, ...]) -> None:
        super().__init__()
        self._of = {"body": body}  # not a module of this one: it belongs to all its views
        self.names = names
        self._trained = body.factors(names[-1]) if names else {}
        self.config, self.generation_config = body.model.config, body.model.generation_config
        model, trained = body.model, self._trained

        # It holds no `self`: in a circle the body would outlive its last view.
        @wraps(model.forward)  # its signature is asked for
        def forward(*args: Any, **options: Any) -> Any:
            body.use(names)
            for parameter in trained.values():
                parameter.requires_grad_(True)
            return model(*args, **options)

        self.forward = forward

    @property
    def body(self) -> Body:
        """What it shares with others."""
        return self._of["body"]

    @property
    def device(self) -> torch.device:
        """Of the body."""
        return self.body.model.device

    def named_parameters(self, *_: Any, **__: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """The factors that are trained."""
        yield from self._trained.items()

    def state_dict(self, *_: Any, **__: Any) -> dict[str, Tensor]:
        """The same."""
        return {name: parameter.detach() for name, parameter in self._trained.items()}


def adapted_sizes(model: PreTrainedModel, targets: Targets) -> dict[str, tuple[int, int]]:
    """Matrices of a policy that adapters would have: name -> (out, in).

    Args:
        targets: names of layers, or their ends; or a pattern for names; or "all-linear", which leaves
            out the head, and experts that lie in one tensor.

    Raises ConfigError where they match nothing, or what is no matrix.
    """
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(model.config)
    given = targets if isinstance(targets, str) else list(targets)
    config = LoraConfig(r=1, target_modules=given)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            inject_adapter_in_model(config, empty, "tried")
    except ValueError as error:
        raise ConfigError(f"lora_targets: {targets!r} given; {str(error)[:300]}") from None
    layers = Body(empty).layers()
    strange = [n for n, each in layers.items() if type(each.get_base_layer()) not in MATRICES]
    if strange and targets != ALL:
        raise ConfigError(f"lora_targets: {targets!r} given; {strange[0]} is no linear layer")
    return {
        name: (layer.lora_B["tried"].out_features, layer.lora_A["tried"].in_features)
        for name, layer in layers.items()
        if name not in strange
    }


def pairs_of(theta: Mapping[str, Tensor], scale: float) -> dict[str, Pair]:
    """The factors of an adapter with this scale."""
    names = [
        name.removesuffix(".lora_A.weight") for name in theta if name.endswith("lora_A.weight")
    ]
    of = {name: tensor.detach().float().cpu().numpy() for name, tensor in theta.items()}
    return {n: (of[f"{n}.lora_B.weight"] * scale, of[f"{n}.lora_A.weight"]) for n in names}
