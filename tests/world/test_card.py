"""Model cards: what they say, that every shown policy has one, and that no text breaks them."""

import html
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pypandoc
import pytest
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from transformers import AutoModelForCausalLM

from warp_core.config import WarpConfig
from warp_core.merge import main
from warp_core.store.files import read_json, verify
from warp_core.store.results import Store
from warp_core.warp import Experiment, run_front, run_warp
from warp_core.world.card import CARD, merge_card, policy_card

MADE_BY = {"identity": {"policy_sha256": "a" * 64, "prompts_sha256": "b" * 64}, "commit": "c0ffee"}
ESTIMATE = {"mean": 0.123456, "stderr": 0.0456, "n": 128}
SUMMARY = {
    **dict.fromkeys(("sft_reward", "warp_reward", "reward_difference"), ESTIMATE),
    **dict.fromkeys(("kl_sft_warp", "kl_warp_sft"), ESTIMATE),
    "front": [],
}  # fmt: skip
ATTACKS = [
    "<script>alert(1)</script>",
    "a`b",
    "``` \n# out\n---\nlicense: evil\n",
    "`` ` ```` <b>",
    "\r\n\r\n---\r\n\r\n<img src=x onerror=alert(1)>",
    "| a | b |\n|---|---|",
    "[x](javascript:alert(1)) ![y](http://example.org/z.png)",
    "$x$ \\(y\\) **bold** _it_ &lt;b&gt; {{ x }}",
    "\u202etxt.exe \u2028## out \x85 \x1b[31m",
    "````\n````yaml",
    "'\"\\ : # - ! & * %",
    "-->",
    "`",
    " ",
]  # fmt: skip


def card_of(place="warp", summary=SUMMARY, **params):
    return policy_card(place, WarpConfig(**params).model_dump(), MADE_BY, summary)


def parameters_in(card: str) -> dict:
    """The block of YAML."""
    return yaml.safe_load(re.search(r"^```yaml\n(.*?)^```$", card, re.M | re.S)[1])


class Tags(HTMLParser):
    """What a page consists of, and the text of its code."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags, self.code, self.inside = set(), [], 0
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.inside += tag == "code"
        self.code += [""] if tag == "code" else []

    def handle_endtag(self, tag):
        self.inside -= tag == "code"

    def handle_data(self, data):
        if self.inside:
            self.code[-1] += data


def pages(card: str) -> list[Tags]:
    """As two programs show it: CommonMark with HTML in it, and GitHub's form."""
    body = card.split("---\n", 2)[2]
    commonmark = MarkdownIt("commonmark", {"html": True}).enable("table").render(body)
    return [Tags(commonmark), Tags(pypandoc.convert_text(body, "html", "gfm"))]


# What they say


def test_the_front_matter_is_the_hubs():
    card = ModelCard(card_of(policy="lvwerra/gpt2-imdb", prompts="stanfordnlp/imdb"))
    assert card.data.to_dict() == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["warp", "rlhf", "merge"],
        "base_model": "lvwerra/gpt2-imdb",
        "datasets": ["stanfordnlp/imdb"],
    }
    assert ModelCard(card_of("iteration_1/run_1")).data.tags == ["warp", "rlhf"]


@pytest.mark.parametrize(
    ("policy", "base_model"),
    [
        ("gpt2", "gpt2"),
        ("a/b-c.d_e", "a/b-c.d_e"),
        ("a/b@refs/pr/3", "a/b"),
        ("asset:smollm2-135m-instruct", None),
        ("/a/b", None),
        ("./a", None),
        ("a/b/c", None),
        ("tests", None),  # a folder that is there
        ("a\n---\n", None),
    ],
)
def test_a_base_model_is_named_where_it_is_a_hub_id(policy, base_model):
    assert ModelCard(card_of(policy=policy)).data.get("base_model") == base_model


def test_a_card_tells_of_what_the_policy_was_made_and_what_it_gave():
    card = card_of(name="mine", policy="gpt2", reward_model="r/m", positive_label="GOOD", lr=3e-5)
    assert "\n# WARP policy\n" in card
    assert "Experiment `mine`" in card
    for line in ("- policy: `gpt2`", "- reward_model: `r/m`", "- positive_label: `GOOD`"):
        assert f"\n{line}\n" in card
    assert f"\n- policy_sha256: `{'a' * 64}`\n" in card
    assert "\n- code: `warp_core`, commit `c0ffee`\n" in card
    assert "\n| reward of WARP | 0.1235 | 0.046 | 128 |\n" in card
    assert "\n| KL(WARP‖θ_sft), nats per completion | 0.1235 | 0.046 | 128 |\n" in card
    assert "not evaluated" not in card
    assert "AutoModelForCausalLM.from_pretrained(folder)" in card


def test_its_parameters_make_the_same_experiment_again():
    config = WarpConfig(title='Опыт: "1"\n# x', lr=1e-7, run_dir="/somebodys/folder")
    card = policy_card("warp", config.model_dump(), MADE_BY, SUMMARY)
    assert WarpConfig(**parameters_in(card)) == config.model_copy(update={"run_dir": ""})
    assert "somebodys" not in card


@pytest.mark.parametrize(
    ("place", "title", "said"),
    [
        ("iteration_1/run_2", "Run 2 of WARP's iteration 1", "θ^2 after 7 steps of policy gradient"),
        ("iteration_2/run_1", "Run 1 of WARP's iteration 2", "θ_init of iteration 2 (`iteration_1/liti`)"),
        ("iteration_2/slerp", "SLERP of WARP's iteration 2", "the SLERP of the 3 runs of iteration 2"),
        ("iteration_1/liti", "θ_init of WARP's iteration 2", "interpolated from θ_sft with η = 0.4 (LITI)"),
        ("warp", "WARP policy", "after all 2 iterations: the SLERP of the 3 runs of iteration 2"),
    ],
)  # fmt: skip
def test_every_place_is_told_for_what_it_is(place, title, said):
    card = card_of(place, runs=3, steps=7, eta=0.4)
    assert f"\n# {title}\n" in card
    assert said in card
    assert ("This policy itself was not evaluated." in card) == (place != "warp")


def test_what_the_front_and_the_way_measured_stands_in_the_policys_own_card():
    def point(mean, **where):
        return where | {"reward": ESTIMATE | {"mean": mean}, "kl": ESTIMATE | {"mean": 10 * mean}}

    trajectory = [point(1.0, iteration=1, run=1, step=5), point(2.0, iteration=1, run=1, step=10)]
    summary = SUMMARY | {"front": [point(3.0, eta=0.5), point(4.0, eta=1.0)]}
    summary |= {"front_runs": [point(5.0, run=1)], "trajectory": trajectory}
    for place, mean in (
        ("iteration_1/run_1", 2),
        ("iteration_2/slerp", 4),
        ("iteration_2/run_1", 5),
    ):
        card = card_of(place, summary)
        assert f"\n| its reward | {mean} | 0.046 | 128 |\n" in card
        assert f"\n| its KL to θ_sft, nats per completion | {10 * mean} | 0.046 | 128 |\n" in card
        assert "not evaluated" not in card
    assert "This policy itself was not evaluated." in card_of("iteration_1/slerp", summary)


# Texts by others


@pytest.mark.parametrize("attack", ATTACKS)
def test_texts_by_others_are_these_characters_and_nothing_else(attack):
    plain, own = card_of(), {"title": attack, "policy": attack, "prompts": attack}
    if not attack.strip():
        own = {"positive_label": attack}
    card = card_of(**own, reward_model=attack if attack.strip() else "r")
    assert ModelCard(card).data.to_dict() == ModelCard(plain).data.to_dict()
    parameters = parameters_in(card)
    assert {key: parameters[key] for key in own} == own
    shown = " ".join("".join(c if c.isprintable() else " " for c in attack).split())
    for page, usual in zip(pages(card), pages(plain), strict=True):
        assert page.tags == usual.tags
        same = [text for text in page.code if " ".join(text.split()) == shown]
        assert len(same) >= len(own)


@pytest.mark.parametrize(
    ("method", "lam", "said"),
    [
        ("slerp", None, "1/m at step m (Eq. 26), in this order"),
        ("lerp", None, "1/M each"),
        ("slerp", 0.3, "0.3 for the second of two"),
    ],
)
def test_a_merges_card_says_how_its_runs_are_weighed(method, lam, said):
    how = {"method": method, "granularity": "layer", "lam": lam, "eta": 1.0}
    assert f"- λ of the runs: {said}\n" in merge_card(Path("init"), [Path("a"), Path("b")], **how)


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_merges_folders_are_these_characters_and_nothing_else(attack):
    how = {"method": "slerp", "granularity": "layer", "lam": None, "eta": 1.0}
    plain = merge_card(Path("init"), [Path("a"), Path("b")], **how)
    card = merge_card(Path(attack), [Path("a"), Path(attack)], **how)
    assert ModelCard(card).data.to_dict() == ModelCard(plain).data.to_dict()
    for page, usual in zip(pages(card), pages(plain), strict=True):
        assert page.tags == usual.tags
        assert html.unescape("".join(page.code)).count("a") >= 1


# Where they lie


@pytest.fixture(scope="module")
def experiment(tmp_path_factory, make_tiny_params):
    config = WarpConfig(**make_tiny_params(run_dir=str(tmp_path_factory.mktemp("runs") / "run")))
    run_warp(config)
    return config


@pytest.fixture
def copied(experiment, tmp_path):
    """To spoil."""
    shutil.copytree(experiment.folder.parent, tmp_path / "runs")
    return experiment.model_copy(update={"run_dir": str(tmp_path / "runs" / "run")})


def cards(folder: Path) -> dict[str, str]:
    found = {file.parent.relative_to(folder).as_posix(): file for file in folder.rglob(CARD)}
    return {place: file.read_text(encoding="utf-8") for place, file in found.items()}


def test_every_policy_that_is_shown_has_its_card_and_the_store_has_none(experiment):
    e, summary = Experiment(experiment), read_json(experiment.folder / "summary.json")
    told = cards(experiment.folder / "weights")
    assert told.keys() == e.shown().keys()
    meta = read_json(experiment.folder / "meta.json")
    for place, card in told.items():
        assert card == policy_card(place, experiment.model_dump(), meta, summary)
        folder = experiment.folder / "weights" / place
        verify(folder, "model.safetensors", "config.json")
        AutoModelForCausalLM.from_pretrained(folder)
    assert f"{summary['warp_reward']['mean']:.4g} |" in told["warp"]
    assert not list((experiment.folder.parent / "store").rglob(CARD))
    assert not list(experiment.folder.rglob(".README*"))


def test_a_front_adds_its_numbers_and_duplicates_or_loses_nothing(copied):
    before = cards(copied.folder / "weights")
    files = {path.parent: len(list(path.parent.iterdir())) for path in copied.folder.rglob(CARD)}
    summary = run_front(copied, etas=[0.0, 1.0])
    after = cards(copied.folder / "weights")
    assert {path.parent: len(list(path.parent.iterdir())) for path in files_of(copied)} == files
    assert after.keys() == before.keys()
    changed = {place for place in after if after[place] != before[place]}
    assert changed == {"iteration_2/slerp", "iteration_2/run_1", "iteration_2/run_2"}
    reward = summary["front"][1]["reward"]["mean"]
    assert f"| its reward | {reward:.4g} |" in after["iteration_2/slerp"]


def files_of(config):
    return list(config.folder.rglob(CARD))


def test_weights_that_are_shown_again_have_a_card_again(copied):
    place = copied.folder / "weights" / "warp"
    (place / "config.json").unlink()
    (place / CARD).unlink()
    run_front(copied, etas=[1.0])
    assert (place / "config.json").is_file()
    assert "# WARP policy" in (place / CARD).read_text(encoding="utf-8")
    verify(place)


def test_a_card_keeps_no_weights_from_being_dropped(copied):
    e, store = Experiment(copied), Store(copied.folder.parent / "store")
    shutil.rmtree(copied.folder / "weights")  # copies
    run_front(copied, etas=[1.0])  # shows them again, as links
    assert cards(copied.folder / "weights").keys() == e.shown().keys()
    shutil.rmtree(copied.folder / "weights" / "iteration_1" / "slerp")
    store.drop(e.iterations[0][1])
    assert not store.has(e.iterations[0][1], weights=True)
    store.drop(e.warp)  # which the run folder shows
    assert store.has(e.warp, weights=True)


def test_a_merge_has_its_own_card_and_not_that_of_its_start(copied, tmp_path, capsys):
    weights = copied.folder / "weights"
    theta_init, runs = weights / "iteration_1" / "liti", [weights / "iteration_2" / "run_1"]
    runs.append(weights / "iteration_2" / "run_2")
    out = tmp_path / "out"
    command = [str(theta_init), *map(str, runs), "--out", str(out), "--eta", "0.5"]
    assert main(command) == 0
    card = (out / CARD).read_text(encoding="utf-8")
    assert "\n# 2 runs merged by SLERP\n" in card
    assert "at η = 0.5" in card
    for name, folder in (("θ_init", theta_init), ("run 1", runs[0]), ("run 2", runs[1])):
        assert f"\n- {name}: `{folder}`\n" in card
    assert "of WARP's iteration" not in card
    assert ModelCard(card).data.tags == ["warp", "rlhf", "merge"]
    AutoModelForCausalLM.from_pretrained(out)
    assert json.loads((out / "config.json").read_text())["model_type"] == "gpt2"
