"""Algorithm 1's inputs: what is loaded of them, what identifies them, what is refused."""

import hashlib
import json
import shutil

import pytest
import tiny

from warp_core.store.errors import ConfigError
from warp_core.world.inputs import StoredInputs
from warp_core.world.models import fingerprint, load_policy
from warp_core.world.prompts import load_prompts
from warp_core.world.reward import load_reward


@pytest.fixture
def given(policy_folders, tiny_reward_folder, prompts_file):
    """Arguments that fit each other."""
    return {
        "policy": str(policy_folders("gpt2")),
        "reward_model": str(tiny_reward_folder),
        "positive_label": "",
        "prompts": str(prompts_file),
        "prompt_words": 3,
        "eval_prompts": 8,
        "max_new_tokens": 5,
    }


def refused(given, **changes):
    with pytest.raises(ConfigError) as caught:
        tiny.inputs(**given | changes)
    return str(caught.value).splitlines()


def test_inputs_are_what_each_loader_gives(given):
    inputs = tiny.inputs(**given)
    assert inputs.prompts == load_prompts(given["prompts"], 3, 8)
    assert fingerprint(inputs.sft) == fingerprint(load_policy(given["policy"])[0])
    texts = ["good film", "dull plot"]
    assert inputs.rewards[0](texts).tolist() == load_reward(given["reward_model"])(texts).tolist()
    assert inputs.prompt_tokens == 3


def test_the_positive_label_is_that_of_the_reward(given, two_label_folder):
    good, bad = (
        tiny.inputs(**given | {"reward_model": str(two_label_folder), "positive_label": label})
        for label in ("GOOD", "BAD")
    )
    assert good.rewards[0](["good film"]).item() == -bad.rewards[0](["good film"]).item()


def test_the_longest_prompt_is_counted_in_tokens_of_the_policy(given, policy_folders):
    inputs = tiny.inputs(
        **given | {"policy": str(policy_folders("qwen2"))}
    )  # bytes and their pairs
    prompts = [*inputs.prompts.train, *inputs.prompts.evaluation]
    lengths = [len(ids) for ids in inputs.tokenizer(prompts)["input_ids"]]
    assert inputs.prompt_tokens == max(lengths) > 3


def test_the_identity_holds_the_weights_and_what_both_models_see_of_the_prompts(given):
    inputs = tiny.inputs(**given)
    prompts = [*inputs.prompts.train, *inputs.prompts.evaluation]
    seen = [
        [inputs.prompts.train, inputs.prompts.evaluation],
        inputs.rewards[0].tokenizer(prompts)["input_ids"],
        inputs.tokenizer(prompts)["input_ids"],
    ]
    assert inputs.identity == {
        "policy_sha256": fingerprint(inputs.sft),
        "reward_sha256": fingerprint(inputs.rewards[0].model),
        "prompts_sha256": hashlib.sha256(json.dumps(seen).encode()).hexdigest(),
    }


@pytest.mark.parametrize(
    ("key", "file", "changes"),
    [
        ("policy", "generation_config.json", {"eos_token_id": [0, 5]}),
        ("reward_model", "tokenizer_config.json", {"model_max_length": 9}),
        ("reward_model", "tokenizer_config.json", {"truncation_side": "left"}),
    ],
)
def test_what_ends_and_what_cuts_a_text_is_a_part_of_what_names_a_model(
    key, file, changes, given, tmp_path
):
    folder = shutil.copytree(given[key], tmp_path / "changed")
    (folder / "SHA256SUMS").unlink(missing_ok=True)
    settings = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(settings | changes))
    before, after = (tiny.inputs(**given | {key: str(each)}) for each in (given[key], folder))
    of = [
        (each.theta_sft.name, each.rewards[0].name) for each in map(StoredInputs, (before, after))
    ]
    changed = [a != b for a, b in zip(*of, strict=True)]
    assert changed == [key == "policy", key == "reward_model"]
    assert (before.identity != after.identity) == (key == "policy")


def test_the_identity_is_of_the_content_not_of_the_place(given, tmp_path):
    moved = {
        key: str(shutil.copytree(given[key], tmp_path / key)) for key in ("policy", "reward_model")
    }
    moved["prompts"] = str(shutil.copy(given["prompts"], tmp_path / "other.txt"))
    there = tiny.inputs(**given).identity
    assert tiny.inputs(**given | moved).identity == there

    def differing(**changes):
        found = tiny.inputs(**given | moved | changes).identity
        return {key for key in found if found[key] != there[key]}

    assert differing(eval_prompts=9) == differing(prompt_words=2) == {"prompts_sha256"}
    tiny.make_tokenizer(tiny.WORDS[::-1]).save_pretrained(moved["policy"])
    assert differing() == {"prompts_sha256"}
    tiny.make_policy("gpt2", 30, seed=1).save_pretrained(moved["policy"])
    assert differing() == {"policy_sha256", "prompts_sha256"}


def test_all_mistakes_are_told_at_once(given):
    wrong = {"policy": "./absent", "positive_label": "GOOD", "prompts": "asset:nothing"}
    policy, reward, prompts = sorted(refused(given, **wrong))
    assert policy.startswith("policy: './absent' given; there is no such folder")
    assert reward.startswith("positive_label: 'GOOD' given; ")
    assert prompts.startswith("prompts: 'asset:nothing' given; ")


def test_an_asset_that_cannot_be_had_is_one_of_the_mistakes(given):
    lines = refused(given, policy="asset:nothing", reward_model="asset:nothing", eval_prompts=100)
    assert [line.partition(" ")[0] for line in lines] == ["unknown", "eval_prompts:", "unknown"]


def test_a_completion_that_does_not_fit_behind_the_longest_prompt_is_refused(given):
    """Both read 64 tokens."""
    assert tiny.inputs(**given | {"max_new_tokens": tiny.CONTEXT - 3}).prompt_tokens == 3
    of_reward, of_policy = refused(given, max_new_tokens=tiny.CONTEXT - 2)
    for line, whose in ((of_reward, "reward model"), (of_policy, "policy")):
        assert line.startswith("max_new_tokens: 62 given; the longest prompt has 3 tokens ('")
        assert f"the {whose} reads only 64; lower max_new_tokens or prompt_words" in line


def test_a_policy_without_a_limit_reads_any_length(given, policy_folders):
    (line,) = refused(given, policy=str(policy_folders("bloom")), max_new_tokens=1000)
    assert "the reward model reads only 64" in line
