"""Model cards: the README.md of a policy's folder, in the hub's form.

What a policy is, of what it was made, what it gave, how to load it. Texts by others (titles, paths,
names) stand in code spans and JSON alone, on one line, where they can become no Markdown, HTML or
YAML. It imports neither torch nor YAML: the command that merges does not wait for them.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from warp_core.store.adapter import CONFIG, is_adapter
from warp_core.store.files import sealed_json, write_text

CARD = "README.md"
PAPER = "[arXiv 2406.16768](https://arxiv.org/abs/2406.16768)"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", re.ASCII)
NOT_SHOWN = {"run_dir"}
QUANTITIES = {
    "sft_reward": "reward of θ_sft",
    "warp_reward": "reward of WARP",
    "reward_difference": "difference of the two, paired by prompt",
    "sft_judge": "judge's score of θ_sft",
    "warp_judge": "judge's score of WARP",
    "kl_warp_sft": "KL(WARP‖θ_sft), nats per completion",
    "kl_sft_warp": "KL(θ_sft‖WARP), nats per completion",
}
OF_ONE = {
    "reward": "its reward",
    "gain": "its reward above that of θ_sft, paired by prompt",
    "judge": "its judge's score",
    "kl": "its KL to θ_sft, nats per completion",
}
LOAD = """## How to load it

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # where this file lies, or the hub id that it was uploaded to
policy = AutoModelForCausalLM.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
```
"""
ADAPTER = """## How to load it

It is a LoRA adapter; `sft` beside it in the run's weights/ is its body.

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

folder, body = ".", "../sft"  # where this file lies, and the body; or their hub ids
policy = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(body), folder)
tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
```
"""


def write_cards(run_dir: Path, params: Mapping[str, Any], summary: Mapping[str, Any]) -> None:
    """A card into every policy's folder that a run folder shows, in place of the one before.

    Args:
        params: of the experiment, all of them.
        summary: what summary.json holds, or will.
    """
    made_by = sealed_json(run_dir / "meta.json")
    for folder in (run_dir / "weights").glob("**/"):
        place = folder.relative_to(run_dir / "weights").as_posix()
        if place != "sft" and any(map(Path.is_file, (folder / "config.json", folder / CONFIG))):
            write_text(folder / CARD, policy_card(place, params, made_by, summary))


def policy_card(
    place: str, params: Mapping[str, Any], made_by: Mapping[str, Any], summary: Mapping[str, Any]
) -> str:
    """The card of the policy at `place` in weights/: iteration_1/run_2, iteration_1/slerp, warp, …

    Args:
        made_by: what meta.json holds.
    """
    title, what = _what(place, params)
    specs = {name: params[name] for name in ("policy", "reward_model", "positive_label", "prompts")}
    made_of = [f"- {name}: {_code(spec)}" for name, spec in specs.items() if spec]
    made_of += [f"- {name}: {_code(digest)}" for name, digest in made_by["identity"].items()]
    made_of.append(f"- code: `warp_core`, commit {_code(made_by['commit'])}")
    shown = {key: value for key, value in params.items() if key not in NOT_SHOWN}
    return "\n".join([
        _front_matter(
            params["policy"], params["prompts"], "run_" not in place, bool(params["lora_rank"])
        ),
        f"# {title}\n",
        f"{what} WARP is described in {PAPER}.\n",
        f"Experiment {_code(params['name'])}: {_code(params['title'])}\n",
        "## What it was made of\n",
        *made_of,
        "\n## Results\n",
        *_results(place, params, summary),
        "## Parameters\n",
        "```yaml",
        *(f"{key}: {_json(value)}" for key, value in shown.items()),
        "```\n",
        ADAPTER if params["lora_rank"] else LOAD,
    ])  # fmt: skip


def merge_card(
    theta_init: Path,
    thetas: Sequence[Path],
    method: str,
    granularity: str,
    lam: float | None,
    eta: float,
) -> str:
    """The card of what `python -m warp_core.merge` writes."""
    name = method.upper()
    each = "1/m at step m (Eq. 26), in this order" if method == "slerp" else "1/M each"
    weight = each if lam is None else f"{lam:g} for the second of two"
    alone = len(thetas) == 1
    adapter = is_adapter(thetas[0])
    runs = [f"- run {m}: {_code(str(theta))}" for m, theta in enumerate(thetas, start=1)]
    return "\n".join([
        _front_matter("", "", True, adapter),
        "# LITI of one run\n" if alone else f"# {len(thetas)} runs merged by {name}\n",
        f"(1 − η)·θ_init + η·{method}(θ_init, runs) at η = {eta:g}: lines 12 and 13 of WARP, {PAPER}.\n",
        "## What it was made of\n",
        f"- θ_init: {_code(str(theta_init))}",
        *runs,
        "\n## Parameters\n",
        f"- method: {name} of task vectors, one angle for each {granularity}",
        f"- λ of the runs: {weight}",
        f"- η: {eta:g}\n",
        "It has not been evaluated.\n",
        ADAPTER if adapter else LOAD,
    ])  # fmt: skip


def _front_matter(policy: Any, prompts: Any, merged: bool, adapter: bool) -> str:
    """YAML: names of ours, and hub ids, which hold nothing that YAML reads otherwise."""
    tags = ["warp", "rlhf", *(["merge"] if merged else [])]
    library = "peft" if adapter else "transformers"
    lines = [f"library_name: {library}", "pipeline_tag: text-generation", "tags:"]
    lines += [f"- {tag}" for tag in tags]
    lines += [f"base_model: {json.dumps(id)}" for id in _hub_ids(policy)]
    lines += [f"datasets:\n- {json.dumps(id)}" for id in _hub_ids(prompts)]
    return "\n".join(["---", *lines, "---\n"])


def _hub_ids(spec: str) -> list[str]:
    """The hub id that a policy or a data set was given by, if it was, without its revision."""
    name = spec.partition("@")[0]
    return [name] if HUB_ID.fullmatch(name) and not Path(spec).exists() else []


def _what(place: str, params: Mapping[str, Any]) -> tuple[str, str]:
    """A policy's name, and a sentence on it."""
    iteration, _, kind = place.rpartition("/")
    i = int(iteration.partition("_")[2] or params["iterations"])
    m, name, eta = params["runs"], params["merge"].upper(), f"η = {params['eta']:g}"
    start = "θ_sft" if i == 1 else f"θ_init of iteration {i} (`iteration_{i - 1}/liti`)"
    merged = f"the {name} of the {m} runs of iteration {i}, on their task vectors from {start}"
    if kind.startswith("run_"):
        number = int(kind.partition("_")[2])
        what = f"θ^{number} after {params['steps']} steps of policy gradient from {start}, with a KL to"
        anchor = "its own moving average" if params["anchor"] == "ema" else "θ_sft"
        return f"Run {number} of WARP's iteration {i}", f"{what} {anchor} in the reward."
    if kind == "slerp":
        return f"{name} of WARP's iteration {i}", f"θ_slerp, {merged}."
    pulled = f"{merged}, interpolated from {start} with {eta} (LITI)"
    if kind == "liti":
        return f"θ_init of WARP's iteration {i + 1}", f"It is {pulled}."
    return "WARP policy", f"The policy after all {i} iterations: {pulled}."


def _results(place: str, params: Mapping[str, Any], summary: Mapping[str, Any]) -> Iterator[str]:
    own = _of_one(place, params, summary)
    rows = [(name, own[key]) for key, name in OF_ONE.items() if key in own]
    rows += [(name, summary[key]) for key, name in QUANTITIES.items() if key in summary]
    yield (
        "Rewards are in the reward model's points. Errors are the standard errors of the evaluation, over "
        "n held-out prompts; they are those of one training.\n"
    )
    yield "| | mean | standard error | n |\n|---|---|---|---|"
    yield from (f"| {name} | {e['mean']:.4g} | {e['stderr']:.2g} | {e['n']} |" for name, e in rows)
    yield "" if place == "warp" or own else "\nThis policy itself was not evaluated.\n"


def _of_one(place: str, params: Mapping[str, Any], summary: Mapping[str, Any]) -> Mapping[str, Any]:
    """What was measured of a policy that is not WARP's, by the front or at the end of its way."""
    last = f"iteration_{params['iterations']}"
    points = {f"{last}/slerp": point for point in summary["front"] if point["eta"] == 1}
    points |= {
        f"iteration_{p['iteration']}/run_{p['run']}": p
        for p in summary.get("trajectory", [])
        if p["step"] == params["steps"]
    }
    points |= {f"{last}/run_{p['run']}": p for p in summary.get("front_runs", [])}
    return points.get(place, {})


def _code(value: Any) -> str:
    """A code span: nothing in it is Markdown or HTML, and nothing ends it or its line."""
    text = value if isinstance(value, str) else _json(value)
    text = "".join(letter if letter.isprintable() else " " for letter in text)
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence} {text} {fence}" if "`" in text else f"`{text}`"


def _json(value: Any) -> str:
    """On one line, which YAML reads as well."""
    text = json.dumps(value, ensure_ascii=False)
    return text if text.isprintable() else json.dumps(value)
