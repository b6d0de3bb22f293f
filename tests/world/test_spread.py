"""A policy's layers on several devices: where they go, that tensors follow, and the same bits."""

import copy
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import pytest
import tiny
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorDeviceMismatchError, FakeTensorMode
from transformers import DynamicCache

from warp_core.config import WarpConfig
from warp_core.merge import ema_update_
from warp_core.store.errors import ConfigError
from warp_core.store.files import read_jsonl
from warp_core.warp import run_warp
from warp_core.world.lora import Adapted, Body, adapted_sizes
from warp_core.world.models import forward_logits, load_policy, recomputed, weights_of
from warp_core.world.spread import _places, devices_of, spread

THREE = [torch.device("cpu", k) for k in range(3)]


def test_devices_of_a_process(monkeypatch):
    assert devices_of(0) == devices_of(1) == devices_of(4) == [torch.device("cpu")]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert devices_of(0) == [torch.device("cpu")]
    assert devices_of(2) == [torch.device("cuda", 0), torch.device("cuda", 1)]


def test_layers_are_shared_by_size_in_their_order_and_tied_weights_stay_together():
    policy = tiny.make_policy("llama", 40, num_hidden_layers=12)
    numbers = [k for _, k in _places(policy, 3)]
    assert numbers == sorted(numbers)
    layers = [k for part, k in _places(policy, 3) if type(part).__name__ == "LlamaDecoderLayer"]
    assert [layers.count(k) for k in range(3)] == [4, 4, 4]
    tied = tiny.make_policy("llama", 40, num_hidden_layers=12, tie_word_embeddings=True)
    places = [k for _, k in _places(tied, 3)]
    assert places[-1] == places[0] == 0
    assert max(places) == 2


def test_a_model_whose_layers_are_unknown_is_refused():
    unknown, odd = (tiny.make_policy("gpt2", 40) for _ in range(2))
    unknown._no_split_modules = None
    odd.extra = nn.Parameter(torch.zeros(1))
    for policy in (unknown, odd):
        with pytest.raises(ConfigError, match="gpus: 2 given; the policy does not say"):
            spread(policy, THREE[:2])


# Which experts a token goes to is not known of tensors without values.
@pytest.mark.parametrize("architecture", [a for a in tiny.ARCHITECTURES if a != "mixtral"])
@pytest.mark.parametrize("adapted", [False, True])
def test_tensors_follow_from_device_to_device(architecture, adapted, monkeypatch):
    """No operation mixes devices: torch's fake tensors tell devices of one kind apart by number."""
    matrices = list(adapted_sizes(tiny.make_policy(architecture, 40), "all-linear"))
    with several_devices(monkeypatch):
        policy = tiny.make_policy(architecture, 40).eval()
        spread(policy, THREE[:2])
        assert {p.device.index for p in policy.parameters()} == {0, 1}
        view, trained = policy, list(policy.parameters())
        if adapted:
            body = Body(policy)
            body.add("policy", 2, 2.0, matrices, 0)
            view = Adapted(body, ("policy",))
            trained = list(dict(view.named_parameters()).values())
        tokens = torch.ones(2, 5, dtype=torch.int64, device=view.device)
        cache = DynamicCache(config=view.config)
        assert forward_logits(view, tokens, torch.ones_like(tokens), 1, cache).device == THREE[0]
        more = torch.ones(2, 6, dtype=torch.int64, device=view.device)
        assert forward_logits(view, tokens[:, :1], more, 1, cache).device == THREE[0]
        with recomputed(view):
            logits = forward_logits(view, tokens, torch.ones_like(tokens), 3)
        logits.sum().backward()
        adam = torch.optim.Adam(trained, fused=True)
        adam.step()
        nn.utils.clip_grad_norm_(trained, 1.0)
        theta_ema = {name: w.clone() for name, w in weights_of(view).items()}
        ema_update_(theta_ema, weights_of(view), 0.5)


def test_a_tensor_that_does_not_follow_is_noticed(monkeypatch):
    """So the test above can fail."""
    with several_devices(monkeypatch):
        policy = spread(tiny.make_policy("llama", 40).eval(), THREE[:2])
        for module in policy.modules():
            module._forward_pre_hooks.clear()
        tokens = torch.ones(2, 5, dtype=torch.int64, device=policy.device)
        with pytest.raises(FakeTensorDeviceMismatchError):
            forward_logits(policy, tokens, torch.ones_like(tokens), 1)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"lora_rank": 2},
        {"micro_batch": 2, "gradient_checkpointing": True},
        {"anchor": "sft", "max_kl": 9.0, "max_grad_norm": 0.1},
    ],
)
def test_the_same_bits_as_on_one(changes, make_tiny_params, policy_folders, tmp_path, monkeypatch):
    """Of an experiment, whose layers lie on three devices that are one."""
    given = {"policy": str(policy_folders("llama")), "workers": 1, "iterations": 1, **changes}
    monkeypatch.setattr("warp_core.engine.local.visible_gpus", lambda: ["0", "1", "2"])

    def run(name: str, gpus: int) -> dict[str, Any]:
        where = {"run_dir": str(tmp_path / name / "run"), "gpus": gpus}
        return run_warp(WarpConfig(**make_tiny_params(**given, **where)))

    one, used = run("one", 1), list[int]()

    def three(gpus: int) -> list[torch.device]:
        used.append(gpus)
        return [torch.device("cpu")] * max(1, gpus)

    monkeypatch.setattr("warp_core.world.models.devices_of", three)
    assert run("three", 3) == one
    assert set(used) == {0, 1, 3}  # the reward model has one
    rows = [read_jsonl(tmp_path / name / "run" / "metrics.jsonl") for name in ("one", "three")]
    steps = [[row | {"seconds": 0} for row in each] for each in rows]
    assert steps[0] == steps[1]


def test_a_copy_of_a_shared_model_is_shared_too(policy_folders):
    policy = spread(load_policy(str(policy_folders("llama")))[0], [torch.device("cpu")] * 2)
    hooks = [len(module._forward_pre_hooks) for module in copy.deepcopy(policy).modules()]
    assert sum(hooks) == len(_places(policy, 2))


@contextmanager
def several_devices(monkeypatch):
    """Tensors without values, on devices that are there by number alone."""
    moved: dict[
        int, tuple[nn.Parameter, nn.Parameter]
    ] = {}  # what was moved is kept: ids are used again

    def to(module: nn.Module, device: torch.device, dtype: Any = None) -> nn.Module:
        for each in module.modules():
            for name, p in list(each._parameters.items()):
                if p is not None:
                    moved.setdefault(id(p), (nn.Parameter(p.detach().to(device)), p))
                    each._parameters[name] = moved[id(p)][0]
            for name, buffer in list(each._buffers.items()):
                if buffer is not None:
                    each._buffers[name] = buffer.to(device)
        return module

    tensor: Callable[..., torch.Tensor] = torch.tensor

    def plain(data, **options):  # it forgets a CPU's number
        return torch.empty(0, **options) if data == [] else tensor(data, **options)

    with FakeTensorMode():
        monkeypatch.setattr(nn.Module, "to", to)
        monkeypatch.setattr(torch, "tensor", plain)
        yield
        monkeypatch.undo()
