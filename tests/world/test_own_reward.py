"""Rewards of the user's own: what their functions get and give, and what is refused of them."""

import numpy as np
import pytest
import tiny
import torch

from warp_core.store.errors import ConfigError, RewardError
from warp_core.world import own_reward
from warp_core.world.own_reward import OwnReward
from warp_core.world.reward import load_reward, stored_rewards
from warp_core.world.scorer import Scorer, plain, scorers


@pytest.fixture
def own(tmp_path):
    """Source of a function `f` -> the reward."""

    def make(source, function="f"):
        (tmp_path / "own.py").write_text(source)
        return OwnReward(tmp_path / "own.py", function, f"python:own.py:{function}")

    return make


@pytest.mark.parametrize(
    "expression",
    ["[len(t) for t in texts]", "np.array([len(t) for t in texts])", "(t := texts) and [3, 1]",
     "torch.tensor([3.0, 1.0], requires_grad=True)", "[True + 2, True]"],
)  # fmt: skip
def test_a_function_gives_a_number_for_each_text(own, expression):
    r = own(f"import numpy as np, torch\ndef f(texts):\n    return {expression}\n")
    rewards = r(["abc", "a"])
    assert rewards.tolist() == [3.0, 1.0]
    assert (rewards.dtype, rewards.requires_grad) == (torch.float32, False)


def test_a_function_gets_conversations_where_the_prompts_are(own):
    r = own("def f(chats):\n    return [len(chat[-1]['content']) for chat in chats]\n")
    said = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "good"}]
    assert r([said]).tolist() == [4.0]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("1 / 0", r"fails: ZeroDivisionError"),
        ("None", r"fails: "),
        ("['good', 'bad']", r"fails: ValueError"),
        ("[1.0]", r"gives \(1,\) numbers for 2 completions; one for each is needed"),
        ("[[1.0], [2.0]]", r"gives \(2, 1\) numbers for 2 completions"),
        ("3.0", r"gives \(\) numbers for 2 completions"),
        ("[0.0, float('inf')]", r"gives inf for 'dull film'"),
    ],
)
def test_what_a_function_does_wrong_is_named(own, body, said):
    r = own(f"def f(texts):\n    return {body}\n")
    with pytest.raises(RewardError, match=rf"^the reward python:own\.py:f {said}"):
        r(["good film", "dull film"])


def test_a_slow_function_is_named(own, monkeypatch):
    monkeypatch.setattr(own_reward, "SLOW", 0.0)
    r = own("def f(texts):\n    return [0.0 for t in texts]\n")
    with pytest.warns(UserWarning, match=r"the reward python:.*:f took 0 s for 2 completions"):
        r(["a", "b"])


@pytest.fixture
def given(policy_folders, tiny_reward_folder, prompts_file):
    """Arguments that fit each other."""
    return {
        "policy": str(policy_folders("gpt2")), "reward_model": str(tiny_reward_folder),
        "positive_label": "", "prompts": str(prompts_file), "prompt_words": 3, "eval_prompts": 8,
        "max_new_tokens": 5,
    }  # fmt: skip


FAULTS = {
    "python:./absent.py:f": "there is no such file",
    "python:f": "it is not of the form python:FILE:FUNCTION",
    "python:own.py:": "it is not of the form",
    "python:own.py:g": r"own\.py: has no function 'g'",
    "python:own.py:number": r"own\.py: has no function 'number'",
    "python:own.py:fails": r"the reward python:own\.py:fails fails: KeyError",
    "python:raises.py:f": r"raises\.py: raises RuntimeError\('no'\)",
    "python:exits.py:f": r"exits\.py: raises SystemExit",
    "python:own.txt:f": r"own\.txt: its name must end in \.py",
}


@pytest.mark.parametrize("spec", FAULTS)
@pytest.mark.parametrize("key", ["reward_model", "judge"])
def test_a_function_that_cannot_be_used_is_refused_before_anything(
    given, tmp_path, monkeypatch, spec, key
):
    monkeypatch.chdir(tmp_path)
    good = "number = 3\ndef f(texts):\n    return [0.0 for t in texts]\n"
    (tmp_path / "own.py").write_text(good + "def fails(texts):\n    return {}['x']\n")
    (tmp_path / "own.txt").write_text(good)
    (tmp_path / "raises.py").write_text("raise RuntimeError('no')\n")
    (tmp_path / "exits.py").write_text("import sys; sys.exit(1)\n")
    with pytest.raises(ConfigError, match=f"^{key}: {spec!r} given; {FAULTS[spec]}"):
        tiny.inputs(**given | {key: spec})


def test_a_judge_that_is_a_reward_is_refused(given, two_label_folder, tmp_path):
    (tmp_path / "own.py").write_text("def f(texts):\n    return [0.0 for t in texts]\n")
    own = f"python:{tmp_path / 'own.py'}:f"
    two = Scorer(model=str(two_label_folder), positive_label="GOOD")
    rewards = [Scorer(model=given["reward_model"]), Scorer(model=own), two]
    for each in (given["reward_model"], own, two.model_copy(update={"positive_label": "BAD"})):
        with pytest.raises(ConfigError, match="judge: the reward itself given; it must be another"):
            tiny.inputs(**given | {"reward_model": rewards, "judge": each})
    found = tiny.inputs(**given | {"reward_model": rewards[:2], "judge": two})
    assert [each.positive for each in found.judges] == [1]


def test_rewards_are_added_by_their_weights(tiny_reward_folder, two_label_folder, tmp_path):
    (tmp_path / "reward.py").write_text("def f(texts):\n    return [len(t) for t in texts]\n")
    of = [
        Scorer(model=str(tiny_reward_folder)),
        Scorer(model=str(two_label_folder), positive_label="BAD", weight=-2.0),
        Scorer(model="python:elsewhere.py:f", weight=0.5),
    ]
    (tmp_path / "name.txt").write_text("python:elsewhere.py:f")
    folders = [tiny_reward_folder, two_label_folder, tmp_path]
    texts = ["good film", "dull", "a very dull plot"]
    one, two = load_reward(str(folders[0]))(texts), load_reward(str(folders[1]), "BAD")(texts)
    expected = one - 2 * two + 0.5 * torch.tensor([9.0, 4.0, 16.0])
    torch.testing.assert_close(
        stored_rewards(folders, [plain(each) for each in of])(texts), expected
    )


def test_what_decides_a_reward_is_told_apart(given):
    def digest(*rewards):
        return tiny.inputs(**given | {"reward_model": list(rewards)}).identity["reward_sha256"]

    one = Scorer(model=given["reward_model"])
    twice = one.model_copy(update={"weight": 2.0})
    assert digest(one) == tiny.inputs(**given).identity["reward_sha256"]
    assert len({digest(one), digest(one, one), digest(one, twice), digest(twice, one)}) == 4


def test_a_text_names_one_reward():
    assert scorers("a", "GOOD") == [Scorer(model="a", positive_label="GOOD")]
    assert scorers("") == []
    assert plain(Scorer(model="a")) == {}
    assert plain(Scorer(model="python:a:b.py:f", weight=2)) == {"weight": 2.0, "function": "f"}
    assert np.isclose(Scorer(model="a", weight="1e-1").weight, 0.1)
