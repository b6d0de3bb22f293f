"""The tape: a forward pass that multiplies nothing has the logits and the gradient of one that does."""

import pytest
import tiny
import torch
import transformers
from torch import nn

from warp_core.models import load_policy
from warp_core.rollout import completion_logits, encode_prompts, sample, token_logprobs
from warp_core.tape import Tape

CPU = torch.device("cpu")
PROMPTS = ["good", "the film is not bad", "poor plot", "so very nice and fun this story was"] * 4
N = 6


def taped(model, tokenizer, prompts=PROMPTS, n=N):
    """A rollout and its tape."""
    tokens, mask = encode_prompts(tokenizer, prompts, CPU)
    tape = Tape(model)
    with tape.recording(tokens.shape[1] + n):
        y = sample(model, tokens, mask, n, tokenizer.eos_token_id, torch.Generator().manual_seed(0))
    return y, tape


def gradient(model, y):
    """Each token's log-probability, and the gradient: each completion has a weight of its own."""
    model.zero_grad()
    logprobs = token_logprobs(completion_logits(model, y), y)
    (logprobs.sum(dim=1) * torch.linspace(-1, 2, len(logprobs))).sum().backward()
    return logprobs.detach(), {name: p.grad for name, p in model.named_parameters()}


def compared(model, y, tape):
    plain, plain_gradient = gradient(model, y)
    with tape.replaying():
        replayed, replayed_gradient = gradient(model, y)
    torch.testing.assert_close(replayed, plain, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(replayed_gradient, plain_gradient, rtol=1e-3, atol=1e-3)


@pytest.fixture(params=tiny.ARCHITECTURES)
def policy(request, policy_folders):
    return load_policy(str(policy_folders(request.param)))


def test_the_replayed_pass_has_the_plain_ones_logprobs_and_gradient(policy):
    model, tokenizer = policy
    y, tape = taped(model, tokenizer)
    if len(tokenizer) < 100:  # of few words the end is drawn now and then
        assert not y.completion_mask.all()
    compared(model, y, tape)


def test_the_replayed_pass_multiplies_with_no_layer(policy_folders, monkeypatch):
    model, tokenizer = load_policy(str(policy_folders("llama")))
    y, tape = taped(model, tokenizer)
    with monkeypatch.context() as patch, tape.replaying():
        patch.setattr(nn.Linear, "forward", None)
        completion_logits(model, y)
    assert not tape.outputs


def test_recording_changes_nothing_and_replaying_leaves_nothing(policy):
    model, tokenizer = policy
    y, tape = taped(model, tokenizer)
    tokens = encode_prompts(tokenizer, PROMPTS, CPU)
    plain = sample(model, *tokens, N, tokenizer.eos_token_id, torch.Generator().manual_seed(0))
    assert torch.equal(y.tokens, plain.tokens)
    with pytest.raises(KeyError, match="broken"), tape.replaying():
        raise KeyError("broken")
    assert not any("forward" in vars(module) for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())
    with torch.no_grad():  # an empty tape replays nothing
        expected = completion_logits(model, y)
        with tape.replaying():
            assert torch.equal(completion_logits(model, y), expected)


def test_a_tape_serves_the_next_rollout_too(policy_folders):
    model, tokenizer = load_policy(str(policy_folders("gpt2")))
    tape = Tape(model)
    for prompts, n in ((PROMPTS, N), (["good film"] * 3, 2)):
        tokens, mask = encode_prompts(tokenizer, prompts, CPU)
        with tape.recording(tokens.shape[1] + n):
            y = sample(model, tokens, mask, n, tokenizer.eos_token_id,
                       torch.Generator().manual_seed(1))  # fmt: skip
        compared(model, y, tape)


def test_experts_that_see_some_of_the_tokens_compute_as_ever():
    tokenizer = tiny.make_tokenizer()
    config = transformers.MixtralConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, num_local_experts=4, bos_token_id=0,
        eos_token_id=0, max_position_embeddings=32,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    tokenizer.pad_token = tokenizer.eos_token
    compared(model, *taped(model, tokenizer))


def test_a_layer_that_is_called_twice_for_a_token_computes_as_ever(policy_folders):
    model, tokenizer = load_policy(str(policy_folders("llama")))
    model.model.layers[1].mlp = model.model.layers[0].mlp
    compared(model, *taped(model, tokenizer))


def test_bf16_has_float32s_gradient_and_logprobs_on_the_real_policy():
    model, tokenizer = load_policy("asset:smollm2-135m-instruct")
    prompts = ["The film is a", "Great fun"]
    with torch.autocast("cpu", torch.bfloat16):
        y, tape = taped(model, tokenizer, prompts, 3)
    full, of_full = gradient(model, y)
    with torch.autocast("cpu", torch.bfloat16), tape.replaying():
        half, of_half = gradient(model, y)
    assert (half - full).abs().max() < 0.05
    a, b = (torch.cat([g.flatten() for g in of.values()]).double() for of in (of_full, of_half))
    assert a @ b / (a.norm() * b.norm()) > 0.999


def test_the_number_of_threads_changes_no_bit_on_the_real_policy():
    """See MKL_CBWR in `warp_core`: without it they do, in the attention to eight tokens or more."""
    model, tokenizer = load_policy("asset:smollm2-135m-instruct")
    prompts, before, results = ["The film is a", "Great fun"] * 2, torch.get_num_threads(), []
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        try:
            y, tape = taped(model, tokenizer, prompts, 8)
            with tape.replaying():
                logprobs, of = gradient(model, y)
        finally:
            torch.set_num_threads(before)
        results.append((logprobs, torch.cat([g.flatten() for g in of.values()])))
    for logprobs, flat in results[1:]:
        assert torch.equal(logprobs, results[0][0])
        assert torch.equal(flat, results[0][1])
