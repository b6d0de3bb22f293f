"""Sampling and log-probabilities: cache, padding, masks, distribution."""

import copy
import math

import pytest
import tiny
import torch

from warp_core import rollout
from warp_core.evaluate import sequence_kl
from warp_core.rollout import Rollout, completion_logits, sample, token_logprobs
from warp_core.world.models import encode_prompts, forward_logits, load_policy, stop_tokens

CPU = torch.device("cpu")
PROMPTS = ["good", "the film is not bad", "poor plot", "so very nice and fun this story was"]
N = 7


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(params=tiny.ARCHITECTURES)
def policy(request, policy_folders):
    return load_policy(str(policy_folders(request.param)))


@pytest.fixture
def gpt2(policy_folders):
    return load_policy(str(policy_folders("gpt2")))


def draw(model, tokenizer, prompts=PROMPTS, n=N, seed=0, temperature=1.0) -> Rollout:
    return sample(
        model,
        *encode_prompts(tokenizer, prompts, CPU),
        n,
        stop_tokens(model, tokenizer),
        seeded(seed),
        temperature,
    )


@pytest.fixture
def ended(gpt2):
    """A rollout in which completions of several lengths ended early."""
    y = draw(*gpt2, prompts=PROMPTS * 8)
    lengths = y.completion_mask.sum(dim=1)
    assert len(lengths.unique()) > 3
    return y


# The cache and padding


def test_logprobs_with_cache_and_padding_equal_one_plain_forward_pass(policy, monkeypatch):
    model, tokenizer = policy
    while_sampling = []

    def recorded(*args, **kwargs):
        while_sampling.append(forward_logits(*args, **kwargs))
        return while_sampling[-1]

    monkeypatch.setattr(rollout, "forward_logits", recorded)
    y = draw(model, tokenizer)
    monkeypatch.undo()
    assert len(while_sampling) == y.completion_mask.shape[1]
    cached = token_logprobs(torch.cat(while_sampling, dim=1), y)
    padded = token_logprobs(completion_logits(model, y), y)
    for row, prompt in enumerate(PROMPTS):
        ids = tokenizer(prompt)["input_ids"]
        answer = y.completions[row][y.completion_mask[row]]
        logits = model(input_ids=torch.tensor([[*ids, *answer.tolist()]])).logits[0]
        plain = logits[len(ids) - 1 : -1].log_softmax(-1).gather(1, answer[:, None])[:, 0]
        torch.testing.assert_close(cached[row, : len(answer)], plain, rtol=0, atol=1e-4)
        torch.testing.assert_close(padded[row, : len(answer)], plain, rtol=0, atol=1e-4)


def test_padding_on_the_left_changes_nothing(policy):
    model, tokenizer = policy
    short, long = PROMPTS[0], PROMPTS[3]
    alone = forward_logits(model, *encode_prompts(tokenizer, [short], CPU), keep=1)
    beside = forward_logits(model, *encode_prompts(tokenizer, [short, long], CPU), keep=1)
    torch.testing.assert_close(beside[:1], alone, rtol=0, atol=1e-4)


def test_prompts_are_padded_on_the_left_whatever_the_tokenizer_prefers(gpt2):
    _, tokenizer = gpt2
    tokenizer.padding_side = "right"
    tokens, mask = encode_prompts(tokenizer, ["good film", "bad"], CPU)
    good, film, bad = tokenizer("good film bad")["input_ids"]
    assert tokens.tolist() == [[good, film], [tokenizer.pad_token_id, bad]]
    assert mask.tolist() == [[1, 1], [0, 1]]


# What is drawn


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_completions_are_drawn_from_the_softmax(temperature):
    """Pearson's χ² over all 40 completions of at most three of four tokens."""
    tokenizer = tiny.letters_tokenizer()
    model = tiny.make_policy("gpt2", len(tokenizer), spread=0.15)
    prompt, draws = "a b", 20_000
    y = draw(model, tokenizer, [prompt] * draws, n=3, temperature=temperature)
    completions = tiny.all_completions(4, 3, end=0)
    drawn, times = y.completions.unique(dim=0, return_counts=True)
    times_of = {tuple(c): n for c, n in zip(drawn.tolist(), times.tolist(), strict=True)}
    counts = torch.tensor([times_of.pop((*c, *[0] * (3 - len(c))), 0) for c in completions])
    assert not times_of

    ids = tokenizer(prompt)["input_ids"]
    wanted = torch.tensor(
        [probability(model, ids, completion, temperature) * draws for completion in completions]
    )
    assert wanted.sum().item() == pytest.approx(draws, rel=1e-5)
    assert wanted.min() > 5  # χ² needs it
    chi_square = ((counts - wanted) ** 2 / wanted).sum().item()
    assert chi_square < 72.1  # 99.9 % quantile of χ² with 39 degrees of freedom


def probability(model, prompt, completion, temperature):
    logits = model(input_ids=torch.tensor([[*prompt, *completion]])).logits[0]
    steps = torch.softmax(logits[len(prompt) - 1 : -1] / temperature, dim=-1)
    return steps[range(len(completion)), completion].prod().item()


def test_logits_are_divided_by_the_temperature(gpt2):
    y = draw(*gpt2)
    torch.testing.assert_close(
        completion_logits(gpt2[0], y, 0.5), 2 * completion_logits(gpt2[0], y, 1.0)
    )


def test_the_generator_alone_decides_what_is_drawn(gpt2):
    torch.manual_seed(1)
    first = draw(*gpt2, seed=3)
    torch.manual_seed(2)
    again, other = draw(*gpt2, seed=3), draw(*gpt2, seed=4)
    assert torch.equal(first.tokens, again.tokens)
    assert torch.equal(first.completion_mask, again.completion_mask)
    assert not torch.equal(first.tokens[:, -N:], other.tokens[:, -N:])


def test_no_generation_setting_of_the_model_is_used(gpt2):
    model, tokenizer = gpt2
    plain = draw(model, tokenizer)
    model.generation_config.update(do_sample=False, top_k=1, temperature=0.01, max_new_tokens=1)
    assert torch.equal(draw(model, tokenizer).tokens, plain.tokens)


@pytest.mark.parametrize("bad", [math.nan, 1e38])
def test_logits_that_are_not_finite_are_an_error(gpt2, bad):
    model, tokenizer = gpt2
    with torch.no_grad():
        model.transformer.ln_f.weight[0] = bad
        model.transformer.wte.weight[:, 0] *= 1e3
    with pytest.raises(FloatingPointError, match="the policy's logits are not finite"):
        draw(model, tokenizer)


# The end of a completion


def test_a_completion_ends_with_its_first_end_token_which_counts(ended, gpt2):
    end = gpt2[1].eos_token_id
    assert gpt2[1].pad_token_id == end
    for tokens, mask in zip(
        ended.completions.tolist(), ended.completion_mask.tolist(), strict=True
    ):
        length = tokens.index(end) + 1 if end in tokens else len(tokens)
        assert mask == [n < length for n in range(len(tokens))]
        assert tokens[length:] == [end] * (len(tokens) - length)


def test_attention_ends_where_the_completion_ends(ended):
    n = ended.completion_mask.shape[1]
    assert torch.equal(ended.attention_mask[:, -n:].bool(), ended.completion_mask)


def test_the_end_token_inside_a_prompt_ends_nothing(gpt2):
    model, tokenizer = gpt2
    prompts = [f"good{tiny.END} film", f"bad{tiny.END}"] * 10
    tokens, mask = encode_prompts(tokenizer, prompts, CPU)
    assert (tokens[0] == tokenizer.eos_token_id).any()
    assert mask[0].all()
    lengths = draw(model, tokenizer, prompts).completion_mask.sum(dim=1)
    assert (lengths > 1).float().mean() > 0.5


def test_sampling_stops_when_all_completions_have_ended(gpt2):
    model, tokenizer = gpt2
    prompt = encode_prompts(tokenizer, ["good film"], CPU)
    never = len(tokenizer)
    long = sample(model, *prompt, N, [never], seeded())
    assert long.completion_mask.shape == (1, N)
    third = int(long.completions[0, 2])
    assert third not in long.completions[0, :2]
    y = sample(model, *prompt, N, [third], seeded())
    assert torch.equal(y.completions, long.completions[:, :3])


def test_a_completion_ends_with_the_first_of_several_stop_tokens(gpt2):
    model, tokenizer = gpt2
    turn, end = tokenizer.convert_tokens_to_ids("Ġfilm"), tokenizer.eos_token_id
    model = copy.deepcopy(model)
    model.generation_config.eos_token_id = [end, turn]
    assert stop_tokens(model, tokenizer) == [end, turn]
    free, y = draw(gpt2[0], tokenizer, PROMPTS * 5), draw(model, tokenizer, PROMPTS * 5)
    rows = zip(free.completions.tolist(), y.completions.tolist(), y.completion_mask, strict=True)
    lengths = []
    for unstopped, tokens, mask in rows:
        at = [n for n, token in enumerate(unstopped) if token in (end, turn)]
        lengths.append(at[0] + 1 if at else len(unstopped))
        # Until the first row of the batch ends, both draw from the same numbers.
        assert int(mask.sum()) >= 1
        stopped = [n for n, token in enumerate(tokens) if token in (end, turn)]
        assert int(mask.sum()) == (stopped[0] + 1 if stopped else len(tokens))
    assert min(lengths) == int(y.completion_mask.sum(dim=1).min())


def test_a_completion_that_was_cut_has_not_ended(gpt2):
    tokenizer = gpt2[1]
    good, film, bad = tokenizer("good film bad")["input_ids"]
    end = tokenizer.eos_token_id
    y = tiny.rollout_of([bad], [[good, film, end], [end], [good, good, film, bad], [film]], end)
    assert y.ended([end]).tolist() == [True, True, False, False]
    assert y.ended([end, bad]).tolist() == [True, True, True, False]


def test_what_stands_behind_the_end_changes_nothing(ended, gpt2, policy_folders):
    model, tokenizer = gpt2
    reference = tiny.make_policy("gpt2", len(tokenizer), seed=1)
    behind = ~ended.completion_mask
    junk = torch.randint(len(tokenizer), ended.completions.shape, generator=seeded(5))
    tokens = ended.tokens.clone()
    tokens[:, -N:] = torch.where(behind, junk, ended.completions)
    assert not torch.equal(tokens, ended.tokens)
    altered = Rollout(tokens, ended.attention_mask, ended.completion_mask)

    results = []
    for y in (ended, altered):
        model.zero_grad()
        logits = completion_logits(model, y)
        logprobs = token_logprobs(logits, y)
        logprobs.sum(dim=1).square().mean().backward()
        kl = sequence_kl(logits.detach(), completion_logits(reference, y), y.completion_mask)
        gradients = [p.grad.clone() for p in model.parameters()]
        results.append([logprobs.detach(), kl.detach(), *gradients])
        assert not logprobs[behind].any()
        assert logprobs[ended.completion_mask].all()
    for before, after in zip(*results, strict=True):
        torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-6)
    assert altered.texts(tokenizer) == ended.texts(tokenizer)


def test_texts_are_the_words_before_the_end(gpt2):
    tokenizer = gpt2[1]
    good, film, bad = tokenizer("good film bad")["input_ids"]
    end = tokenizer.eos_token_id
    y = tiny.rollout_of([bad], [[good, film, end], [end], [good, good, film, bad]], end)
    assert y.texts(tokenizer) == [" good film", "", " good good film bad"]


def test_a_completion_keeps_the_space_between_it_and_the_prompt():
    tokenizer = tiny.sentencepiece_tokenizer()
    tokenizer.padding_side = "left"
    good, film, bad = tokenizer("good film bad", add_special_tokens=False)["input_ids"]
    assert tokenizer.decode([good, film]) == "good film"  # which is why the prompt is needed
    tokens, mask = encode_prompts(tokenizer, ["bad film", "good"], CPU)
    assert tokens.shape == (2, 3)  # <s> and the words
    end = tokenizer.eos_token_id
    completions = torch.tensor([[good, end, end], [film, bad, film]])
    completion_mask = torch.tensor([[True, True, False], [True, True, True]])
    y = Rollout(
        torch.cat([tokens, completions], 1),
        torch.cat([mask, completion_mask.long()], 1),
        completion_mask,
    )
    assert y.texts(tokenizer) == [" good", " film bad film"]
