"""The tape: a forward pass that multiplies nothing has the logits and the gradient of one that does."""

import contextlib
import inspect

import pytest
import tiny
import torch
import transformers
from torch import nn

from warp_core.engine.tape import taped
from warp_core.rollout import completion_logits, sample, token_logprobs
from warp_core.world.models import encode_prompts, load_policy

CPU = torch.device("cpu")
PROMPTS = ["good", "the film is not bad", "poor plot", "so very nice and fun this story was"] * 4
N = 6


def sampled(model, tokenizer, prompts=PROMPTS, n=N, seed=0):
    """A rollout."""
    batch, generator = encode_prompts(tokenizer, prompts, CPU), torch.Generator().manual_seed(seed)
    return sample(model, *batch, n, [tokenizer.eos_token_id], generator)


def gradient(model, y):
    """Each token's log-probability, and the gradient: each completion has a weight of its own."""
    model.zero_grad()
    logprobs = token_logprobs(completion_logits(model, y), y)
    (logprobs.sum(dim=1) * torch.linspace(-1, 2, len(logprobs))).sum().backward()
    return logprobs.detach(), {name: p.grad for name, p in model.named_parameters()}


def expect_close(replayed, plain):
    for ours, theirs, tolerance in zip(replayed, plain, (1e-4, 1e-3), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def compared(model, tokenizer):
    """Sampled and replayed, the gradient is that of a pass outside; returns the rollout."""
    with taped(model, N):
        y = sampled(model, tokenizer)
        replayed = gradient(model, y)
    expect_close(replayed, gradient(model, y))
    return y


@pytest.fixture(params=tiny.ARCHITECTURES)
def policy(request, policy_folders):
    return load_policy(str(policy_folders(request.param)))


@pytest.fixture
def llama(policy_folders):
    """All of whose products are those of linear layers."""
    return load_policy(str(policy_folders("llama")))


@pytest.fixture
def no_products(monkeypatch):
    """Calling it takes the linear layers their forward pass."""
    return lambda: monkeypatch.setattr(nn.Linear, "forward", None)


def test_the_replayed_pass_has_the_plain_ones_logprobs_and_gradient(policy):
    y = compared(*policy)
    if len(policy[1]) < 100:  # of few words the end is drawn now and then
        assert not y.completion_mask.all()


def test_the_first_pass_with_a_graph_multiplies_with_no_layer_and_the_next_with_all(
    llama, no_products
):
    model, tokenizer = llama
    with taped(model, N):
        y = sampled(model, tokenizer)
        no_products()
        completion_logits(model, y)
        with pytest.raises(TypeError, match="not callable"):  # the tape is spent
            completion_logits(model, y)


def test_recording_changes_nothing_and_afterwards_the_model_is_as_before(policy):
    model, tokenizer = policy
    plain, takes = sampled(model, tokenizer), inspect.signature(model.forward)
    with taped(model, N):
        assert torch.equal(sampled(model, tokenizer).tokens, plain.tokens)
        assert inspect.signature(model.forward) == takes
    assert not any("forward" in vars(module) for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())
    with contextlib.suppress(KeyError), taped(model, N):
        raise KeyError("broken")
    assert not any("forward" in vars(module) for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())
    assert inspect.signature(model.forward) == takes


def test_a_replay_that_fails_leaves_nothing(llama, monkeypatch):
    model, tokenizer = llama
    with taped(model, N):
        y = sampled(model, tokenizer)
        with monkeypatch.context() as patch:
            patch.setattr(type(model.model.norm), "forward", None)
            with pytest.raises(TypeError, match="not callable"):
                completion_logits(model, y)
        assert [m for m in model.modules() if "forward" in vars(m)] == [model]
        after = gradient(model, y)
    assert torch.equal(after[0], gradient(model, y)[0])  # a plain pass


def test_a_tape_serves_the_next_rollout_too(policy):
    model, tokenizer = policy
    found = []
    with taped(model, N):
        for prompts, n in ((PROMPTS, N), (["good film"] * 3, 2)):
            y = sampled(model, tokenizer, prompts, n, seed=1)
            found.append((y, gradient(model, y)))
    for y, replayed in found:
        expect_close(replayed, gradient(model, y))


def test_a_second_rollout_before_a_replay_is_recorded_anew(llama, no_products):
    model, tokenizer = llama
    plain = gradient(model, sampled(model, tokenizer, PROMPTS[:6], N - 1, seed=3))
    with taped(model, N):
        sampled(model, tokenizer)
        y = sampled(model, tokenizer, PROMPTS[:6], N - 1, seed=3)
        no_products()
        replayed = gradient(model, y)
    expect_close(replayed, plain)


def test_passes_without_a_graph_in_between_are_plain_and_spend_nothing(llama, no_products):
    """Of the same shape as the rollout, as when a policy is its own anchor."""
    model, tokenizer = llama
    other = sampled(model, tokenizer, seed=5)
    with torch.no_grad():
        wanted = completion_logits(model, other)
    plain = gradient(model, sampled(model, tokenizer))
    with taped(model, N):
        y = sampled(model, tokenizer)
        assert y.tokens.shape == other.tokens.shape
        with torch.no_grad():
            assert torch.equal(completion_logits(model, other), wanted)
        no_products()
        replayed = gradient(model, y)
    expect_close(replayed, plain)


def test_experts_that_see_some_of_the_tokens_compute_as_ever():
    tokenizer = tiny.make_tokenizer()
    four = {"num_local_experts": 4, "max_position_embeddings": 32}
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    config = transformers.MixtralConfig(
        vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=0, **sizes, **heads, **four
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    tokenizer.pad_token = tokenizer.eos_token
    compared(model, tokenizer)


def test_a_layer_that_is_called_twice_for_a_token_computes_as_ever(llama):
    model, tokenizer = llama
    model.model.layers[1].mlp = model.model.layers[0].mlp
    compared(model, tokenizer)


@pytest.fixture(scope="module")
def real_policy():
    return load_policy("asset:smollm2-135m-instruct")


def test_bf16_has_float32s_gradient_and_logprobs_on_the_real_policy(real_policy):
    model, tokenizer = real_policy
    with torch.autocast("cpu", torch.bfloat16), taped(model, 3):
        y = sampled(model, tokenizer, ["The film is a", "Great fun"], 3)
        half, of_half = gradient(model, y)
    full, of_full = gradient(model, y)
    assert (half - full).abs().max() < 0.05
    a, b = (torch.cat([g.flatten() for g in of.values()]).double() for of in (of_full, of_half))
    assert a @ b / (a.norm() * b.norm()) > 0.999


def test_the_number_of_threads_changes_no_bit_on_the_real_policy(real_policy):
    """See MKL_CBWR in `warp_core`: without it they do, in the attention to eight tokens or more."""
    model, tokenizer = real_policy
    prompts, before, results = ["The film is a", "Great fun"] * 2, torch.get_num_threads(), []
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        try:
            with taped(model, 8):
                logprobs, of = gradient(model, sampled(model, tokenizer, prompts, 8))
        finally:
            torch.set_num_threads(before)
        results.append((logprobs, torch.cat([g.flatten() for g in of.values()])))
    for logprobs, flat in results[1:]:
        assert torch.equal(logprobs, results[0][0])
        assert torch.equal(flat, results[0][1])
