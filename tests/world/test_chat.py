"""Conversations and whole prompts: what the policy, the reward model and people get of them."""

import json
import shutil

import pytest
import tiny
import torch
from transformers import MambaConfig, MambaForCausalLM

from warp_core.store.errors import ConfigError
from warp_core.world.models import cache_error, encode_prompts, load_policy, prompt_ids
from warp_core.world.prompts import as_text, load_prompts, with_completion
from warp_core.world.reward import load_reward

TEMPLATE = (
    "{% for m in messages %}{{ ' ' + m.content + '<|endoftext|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ ' so' }}{% endif %}"
)
CPU = torch.device("cpu")
TURNS = [{"role": "system", "content": "a film"}, {"role": "user", "content": "the plot"}]


@pytest.fixture
def chat_policy(policy_folders, tmp_path):
    """A tiny policy whose tokenizer has a chat template."""
    folder = shutil.copytree(policy_folders("llama"), tmp_path / "chat")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def conversations(tmp_path, rows, name="chats.jsonl", column="messages"):
    path = tmp_path / name
    path.write_text("".join(json.dumps({"other": 1, column: row}) + "\n" for row in rows))
    return str(path)


def many(count=20):
    words, no = tiny.WORDS, {"role": "assistant", "content": "no"}
    asked = (f"{words[k % 20]} {words[k // 20]} is" for k in range(count))
    return [[TURNS[0], {"role": "user", "content": each}, no] for each in asked]


def inputs(policy, prompts, reward, **changes):
    asked = {"prompt_words": 0, "eval_prompts": 3, "max_new_tokens": 4}
    given = {"policy": str(policy), "reward_model": str(reward), "prompts": prompts}
    return tiny.inputs(**given | asked | changes)


def test_a_conversation_is_rendered_up_to_where_the_answer_begins(chat_policy):
    _, tokenizer = load_policy(str(chat_policy))
    (ids,) = prompt_ids(tokenizer, [TURNS])
    end = tokenizer.eos_token_id
    words = tokenizer.convert_ids_to_tokens(ids)
    assert words == ["Ġa", "Ġfilm", tiny.END, "Ġthe", "Ġplot", tiny.END, "Ġso"]
    assert ids.count(end) == 2
    short = [{"role": "user", "content": "a"}]
    tokens, mask = encode_prompts(tokenizer, [TURNS, short], CPU)
    assert tokens[1, -3:].tolist() == prompt_ids(tokenizer, [short])[0]
    assert mask.sum(dim=1).tolist() == [7, 3]


def test_a_tokenizer_that_appends_its_end_gives_prompts_without_it(policy_folders, monkeypatch):
    _, tokenizer = load_policy(str(policy_folders("gpt2")))
    plain = prompt_ids(tokenizer, ["a film", "the"])

    class Appending:
        eos_token_id = tokenizer.eos_token_id

        def __call__(self, texts, **options):
            ids = tokenizer(texts, **options)["input_ids"]
            end = [self.eos_token_id]
            return {
                "input_ids": ids + end if isinstance(texts, str) else [each + end for each in ids]
            }

    assert prompt_ids(Appending(), ["a film", "the"]) == plain


def test_conversations_are_read_up_to_the_users_last_message(tmp_path):
    source = conversations(tmp_path, many())
    found = load_prompts(source, 0, 3)
    assert len(found.evaluation) == 3
    for prompt in [*found.train, *found.evaluation]:
        assert [turn["role"] for turn in prompt] == ["system", "user"]
    assert as_text(TURNS) == "a film\n\nthe plot"
    assert with_completion(TURNS, " is good")[-1] == {"role": "assistant", "content": " is good"}
    assert with_completion("a film", " is good") == "a film is good"


def test_a_message_in_parts_is_its_text(tmp_path):
    parts = [{"type": "text", "text": "a "}, {"type": "text", "text": "film"}]
    rows = [[{"role": "user", "content": parts}], *many(15)]
    found = load_prompts(conversations(tmp_path, rows), 0, 2)
    assert [{"role": "user", "content": "a film"}] in [*found.train, *found.evaluation]


def test_a_column_and_a_split_can_be_named(tmp_path):
    source = conversations(
        tmp_path, ["good film", "bad plot", *map(str, range(20))], column="question"
    )
    found = load_prompts(source, 0, 2, column="question")
    assert {"good film", "bad plot"} <= {*found.train, *found.evaluation}
    with pytest.raises(
        ConfigError, match="its columns are other, question, one of answer is needed"
    ):
        load_prompts(source, 0, 2, column="answer")
    with pytest.raises(ConfigError, match="no data set"):
        load_prompts(source, 0, 2, column="question", split="nowhere")


def test_a_whole_text_keeps_its_white_space(tmp_path):
    rows = [f"def f{k}():\n    return  {k}" for k in range(20)]
    found = load_prompts(conversations(tmp_path, rows, column="text"), 0, 4)
    assert sorted([*found.train, *found.evaluation]) == sorted(rows)


@pytest.mark.parametrize(
    ("rows", "words", "said"),
    [
        (many(), 4, "has conversations, which need 0"),
        ([[{"role": "assistant", "content": "x"}]], 0, "a conversation without a user"),
        ([[{"who": "user", "content": "x"}]], 0, "neither texts nor lists of role and content"),
        ([[{"role": "user", "content": [{"type": "image"}]}]], 0, "neither texts nor lists"),
        ([[{"role": "user", "content": None}]], 0, "neither texts nor lists"),
        ([7, 8], 0, "neither texts nor lists of role and content"),
    ],
)
def test_what_is_no_conversation_is_refused(rows, words, said, tmp_path):
    with pytest.raises(ConfigError) as caught:
        load_prompts(conversations(tmp_path, rows), words, 1)
    assert said in str(caught.value)


def test_whole_texts_become_a_users_message_where_there_is_a_template(
    chat_policy, policy_folders, tmp_path, tiny_reward_folder
):
    rows = [f"{a} {b}" for a in tiny.WORDS[:5] for b in tiny.WORDS[5:9]]
    source = conversations(tmp_path, rows, column="text")
    of = inputs(chat_policy, source, tiny_reward_folder).prompts
    assert all(prompt[0]["role"] == "user" and len(prompt) == 1 for prompt in of.train)
    for other in (
        inputs(chat_policy, source, tiny_reward_folder, chat_template="none"),
        inputs(policy_folders("llama"), source, tiny_reward_folder),
    ):
        assert all(isinstance(prompt, str) for prompt in other.prompts.train)
    with pytest.raises(
        ConfigError, match="chat_template: 'auto' given; the prompts are conversations"
    ):
        inputs(
            policy_folders("llama"), conversations(tmp_path, many(), "c.jsonl"), tiny_reward_folder
        )
    joined = inputs(
        policy_folders("llama"),
        conversations(tmp_path, many(), "c.jsonl"),
        tiny_reward_folder,
        chat_template="none",
    ).prompts
    assert joined.train[0].startswith("a film\n\n")


def test_prompts_that_are_too_long_are_left_out_and_counted(
    policy_folders, tmp_path, tiny_reward_folder
):
    rows = [" ".join(tiny.WORDS[k : k + 1 + k % 5]) for k in range(20)]
    source, policy = conversations(tmp_path, rows, column="text"), policy_folders("llama")
    with pytest.warns(UserWarning, match=r"prompts have more than 3 tokens and are left out"):
        found = inputs(policy, source, tiny_reward_folder, eval_prompts=2, max_prompt_tokens=3)
    assert found.prompt_tokens == 3
    assert max(len(p.split()) for p in [*found.prompts.train, *found.prompts.evaluation]) == 3
    long = conversations(tmp_path, [f"{row} film" for row in rows], "l.jsonl", "text")
    with pytest.raises(ConfigError, match=r"max_prompt_tokens: 1 given; all \d+ prompts are"):
        inputs(policy, long, tiny_reward_folder, max_prompt_tokens=1)


def test_a_template_that_fails_is_told(chat_policy, tmp_path, tiny_reward_folder):
    (chat_policy / "chat_template.jinja").write_text("{{ raise_exception('no system, please') }}")
    with pytest.raises(
        ConfigError, match=r"chat_template: the policy's fails: .*no system, please"
    ):
        inputs(chat_policy, conversations(tmp_path, many()), tiny_reward_folder)


def test_a_reward_models_template_that_fails_is_told(chat_policy, tmp_path, tiny_reward_folder):
    folder = shutil.copytree(tiny_reward_folder, tmp_path / "reward")
    (folder / "chat_template.jinja").write_text("{{ raise_exception('no system, please') }}")
    with pytest.raises(ConfigError, match=r"reward_model: its chat template fails: .*no system"):
        inputs(chat_policy, conversations(tmp_path, many()), folder)


def test_a_reward_model_reads_conversations_by_its_own_template_or_as_text(
    tiny_reward_folder, tmp_path
):
    chat = with_completion(TURNS, "good")
    plain = load_reward(str(tiny_reward_folder))
    assert plain.rendered([chat, "a text"]) == ["a film\n\nthe plot\n\ngood", "a text"]
    assert plain([chat]).item() == pytest.approx(plain([as_text(chat)]).item())
    folder = shutil.copytree(tiny_reward_folder, tmp_path / "reward")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    templated = load_reward(str(folder)).rendered([chat])
    assert templated == [f" a film{tiny.END} the plot{tiny.END} good{tiny.END}"]


def test_a_template_that_begins_with_the_first_token_keeps_it_unless_the_tokenizer_puts_it(
    tiny_reward_folder, monkeypatch
):
    """Of chat bodies whose first token is their turn's mark, which they do not put themselves."""
    reward = load_reward(str(tiny_reward_folder))
    reward.tokenizer.chat_template = tiny.END + TEMPLATE
    reward.tokenizer.bos_token = tiny.END
    assert reward.rendered([TURNS])[0].startswith(tiny.END)


# Policies that cannot be sampled


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_with_its_cache_a_policy_gives_the_same(architecture, policy_folders):
    model, tokenizer = load_policy(str(policy_folders(architecture)))
    assert cache_error(model, prompt_ids(tokenizer, ["good film"])[0]) < 1e-4


def test_a_policy_without_a_key_value_cache_is_refused_by_what_it_gives(
    tmp_path, prompts_file, tiny_reward_folder
):
    tokenizer = tiny.make_tokenizer()
    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "state_size": 4,
        "vocab_size": len(tokenizer),
    }
    torch.manual_seed(0)
    mamba = MambaForCausalLM(MambaConfig(**sizes))
    with torch.no_grad():
        for parameter in mamba.parameters():
            parameter.normal_(std=0.5)
    tiny.save(mamba, tokenizer, tmp_path / "mamba")
    with pytest.raises(
        ConfigError, match="it keeps no key-value cache, and cannot be sampled here"
    ):
        inputs(tmp_path / "mamba", str(prompts_file), tiny_reward_folder, prompt_words=3)
