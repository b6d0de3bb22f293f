"""Every notebook through papermill at tiny sizes; its numbers are those that the run stored."""

import html
import json
import shutil
from pathlib import Path

import nbformat
import papermill
import pytest
from peft import PeftModel
from tiny import WORDS
from transformers import AutoModelForCausalLM

from reports.text import policies, verdicts
from reports.text.experiment import QUANTITIES
from reports.text.show import MIME
from reports.text.statistics import comparisons, load_study
from reports.text.words import estimate_text, unbroken
from warp_core.config import WarpConfig
from warp_core.store.files import read_json, read_jsonl

ROOT = Path(__file__).resolve().parent.parent


def run_notebook(name: str, out: Path, parameters: dict) -> nbformat.NotebookNode:
    papermill.execute_notebook(
        str(ROOT / "notebooks" / name),
        str(out),
        parameters=parameters,
        cwd=str(ROOT),
        kernel_name="python3",
        progress_bar=False,
    )
    return nbformat.read(out, as_version=4)


def outputs(notebook: nbformat.NotebookNode, mime: str) -> list[str]:
    return [
        output.data[mime]
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if mime in output.get("data", {})
    ]


def figures(notebook: nbformat.NotebookNode) -> dict[str, dict]:
    """What the report takes as figures, by label."""
    shown = outputs(notebook, MIME)
    return {each["label"]: each for each in shown if each["kind"] == "figure"}


@pytest.fixture(scope="module")
def executed(tmp_path_factory, make_tiny_params):
    """The experiment's notebook, executed once, and its parameters."""
    folder = tmp_path_factory.mktemp("runs")
    params = make_tiny_params(run_dir=str(folder / "experiment_4"), name="experiment_4")
    return run_notebook("experiment.ipynb", folder / "out.ipynb", params), params


def test_experiment_notebook_shows_what_the_run_stored(executed):
    notebook, params = executed
    config = WarpConfig(**params)
    summary = read_json(config.folder / "summary.json")
    tables = outputs(notebook, "text/html")
    for key in QUANTITIES:
        assert any(estimate_text(summary[key]) in table for table in tables), key
    assert not outputs(notebook, "image/png")
    shown = figures(notebook)["curves"]
    assert len(shown["panels"]) == 4
    curves = [each for each in outputs(notebook, MIME) if each["label"] == "curves"]
    assert len(curves) == 1  # whatever was shown while it ran
    assert not any("появятся" in text for text in outputs(notebook, "text/plain"))
    assert all(panel.startswith("<svg") and "</text>" in panel for panel in shown["panels"])
    metrics = read_jsonl(config.folder / "metrics.jsonl")
    assert len(metrics) == config.iterations * config.runs * config.steps
    for row in metrics:
        assert row["objective"] == pytest.approx(
            row["reward"] - config.beta * row["kl_anchor"], abs=1e-5
        )
    samples = read_jsonl(config.folder / "samples.jsonl")
    assert len(samples) == config.eval_prompts
    mean = sum(s["warp_reward"] for s in samples) / len(samples)
    assert mean == pytest.approx(summary["warp_reward"]["mean"])
    conclusion = outputs(notebook, "text/markdown")[-1]
    assert estimate_text(summary["kl_sft_warp"]) in conclusion


def test_front_notebook_adds_the_front_to_the_summary(executed, tmp_path):
    _, params = executed
    etas = [0.0, 0.5, 1.0]
    notebook = run_notebook(
        "pareto_front.ipynb", tmp_path / "out.ipynb", {"run_dir": params["run_dir"], "etas": etas}
    )
    summary = read_json(Path(params["run_dir"]) / "summary.json")
    assert [point["eta"] for point in summary["front"]] == etas
    start = summary["front"][0]
    assert start["kl"]["mean"] == 0
    assert start["reward"] == summary["sft_reward"]
    assert [point["run"] for point in summary["front_runs"]] == [1, 2]
    table = outputs(notebook, "text/html")[0]
    for point in summary["front"] + summary["front_runs"]:
        assert estimate_text(point["kl"]) in table
    assert list(figures(notebook)) == ["front"]


def test_reward_model_notebook_stores_a_model_that_experiments_load(tmp_path, tiny_reward_folder):
    run_dir = tmp_path / "reward_model"
    body = {"reward_body": str(tiny_reward_folder), "train_sentences": 128}
    parameters = body | {"run_dir": str(run_dir)}
    notebook = run_notebook("reward_model.ipynb", tmp_path / "out.ipynb", parameters)
    summary = read_json(run_dir / "summary.json")
    held_out = read_jsonl(run_dir / "held_out.jsonl")
    pairs = [(a, b) for a in held_out for b in held_out if a["rating"] - b["rating"] > 0.5]
    right = sum(a["score"] > b["score"] for a, b in pairs)
    assert summary["accuracy"]["mean"] == pytest.approx(right / len(pairs))
    assert any(estimate_text(summary["accuracy"]) in t for t in outputs(notebook, "text/html"))
    assert {"calibration", "learning"} == {*figures(notebook)}
    assert len(read_jsonl(run_dir / "training.jsonl")) == 128 // 32
    assert (run_dir / "model" / "model.safetensors").is_file()


def test_every_experiment_is_shown(executed, tmp_path):
    _, params = executed
    names = [f"experiment_{k}" for k in (1, 2, 3, 4)]
    ignore = shutil.ignore_patterns("weights")
    for name in [*names, "experiment_1_control", "experiment_4_control"]:
        shutil.copytree(params["run_dir"], tmp_path / name, ignore=ignore)
    difference = read_json(tmp_path / "experiment_4" / "summary.json")["kl_warp_sft"]
    for name in ("seed_report", "experiments", "reproduction"):
        notebook = run_notebook(
            f"{name}.ipynb", tmp_path / f"{name}.ipynb", {"runs_dir": str(tmp_path)}
        )
        if name != "reproduction":
            tables = "".join(outputs(notebook, "text/html"))
            assert tables.count(estimate_text(difference)) >= len(names)
    assert len(figures(nbformat.read(tmp_path / "experiments.ipynb", 4))["curves"]["panels"]) == 6


@pytest.mark.parametrize("name", ["overview", "summary"])
def test_what_holds_is_shown_for_every_claim(name, tmp_path):
    notebook = run_notebook(f"{name}.ipynb", tmp_path / "out.ipynb", {})
    said = "".join([*outputs(notebook, "text/html"), *outputs(notebook, "text/markdown")])
    if name == "overview":
        assert "claims" in figures(notebook)
        assert all(html.escape(unbroken(claim)) in said for claim in verdicts.MAIN.values())
    else:
        for study in verdicts.load_studies(ROOT / "params"):
            assert all(html.escape(unbroken(each.claim)) in said for each in comparisons(study))


def test_study_notebook_shows_the_rows_of_the_repository(tmp_path):
    notebook = run_notebook("study.ipynb", tmp_path / "out.ipynb", {"study": "merge"})
    study = load_study(ROOT / "params/study_merge.yaml")
    rows = read_jsonl(ROOT / study.path)
    tables = outputs(notebook, "text/html")
    for name, of_policy in policies.by_policy(rows).items():
        text = policies.mean_text([row["reward"]["mean"] for row in of_policy], 2)
        assert any(unbroken(name) in table and text in table for table in tables), name
    for comparison in comparisons(study):
        assert any(html.escape(unbroken(comparison.claim)) in table for table in tables)
    assert len(figures(notebook)) > 2


def test_ones_own_chat_model_prompts_and_reward_go_to_the_front_and_peft_loads_the_adapter(
    policy_folders, tmp_path
):
    """A template, two stop tokens, conversations, k = 4, a Python reward, a judge, LoRA."""
    policy = shutil.copytree(policy_folders("llama"), tmp_path / "policy")
    (policy / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ ' ' + m.content }}{% endfor %}{% if add_generation_prompt %}"
        "{{ ' so' }}{% endif %}"
    )
    generation = read_json(policy / "generation_config.json")
    (policy / "generation_config.json").write_text(
        json.dumps(generation | {"eos_token_id": [0, 5]})
    )
    chats = [[{"role": "user", "content": f"{a} {b}"}] for a in WORDS[:6] for b in WORDS[10:16]]
    rows = "".join(json.dumps({"messages": chat}) + "\n" for chat in chats)
    (tmp_path / "chats.jsonl").write_text(rows)
    (tmp_path / "own.py").write_text(
        "def good(chats):\n    return [chat[-1]['content'].count('good') for chat in chats]\n"
        "def length(chats):\n    return [len(chat[-1]['content']) for chat in chats]\n"
    )
    parameters = {
        "policy": str(policy), "prompts": str(tmp_path / "chats.jsonl"), "eval_prompts": 5,
        "reward_model": f"python:{tmp_path / 'own.py'}:good", "max_new_tokens": 5, "steps": 2,
        "judge": f"python:{tmp_path / 'own.py'}:length", "batch_size": 8, "lora_rank": 2,
        "lr": 3e-2, "iterations": 2, "run_dir": str(tmp_path / "runs" / "own"),
    }  # fmt: skip
    notebook = run_notebook("own_model.ipynb", tmp_path / "out.ipynb", parameters)
    run = tmp_path / "runs" / "own"
    summary = read_json(run / "summary.json")
    assert [point["eta"] for point in summary["front"]] == [0.0, 0.5, 1.0]
    assert summary["front"][2]["kl"]["mean"] > 0
    assert all("judge" in point for point in summary["front"])
    assert any(estimate_text(summary["warp_reward"]) in t for t in outputs(notebook, "text/html"))
    assert {"curves", "front"} == {*figures(notebook)}
    body = AutoModelForCausalLM.from_pretrained(run / "weights" / "sft")
    assert body.generation_config.eos_token_id == [0, 5]
    adapter = PeftModel.from_pretrained(body, run / "weights" / "warp")
    assert adapter.peft_config["default"].r == 2 * 2 * 2
