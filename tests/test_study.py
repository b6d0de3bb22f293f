"""Studies at tiny sizes: their rows, what is shared, what is computed again, what is refused."""

import copy
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import yaml
from safetensors.torch import load_file

from reports.text.statistics import common_roots, comparisons, curves_of, differences, load_study
from warp_core import study as study_module
from warp_core.config import load_params
from warp_core.engine import precision
from warp_core.engine.local import LocalEngine
from warp_core.folders import GEOMETRY, geometry
from warp_core.merge import lerp, slerp, task_angles
from warp_core.store.errors import ConfigError
from warp_core.store.files import read_json, read_jsonl, write_text
from warp_core.store.results import Store
from warp_core.study import config_of, policy_of, run_studies, run_study, wanted
from warp_core.train import Run
from warp_core.warp import Experiment
from warp_core.world.models import load_policy, weights_of
from warp_core.world.studies import Point, Study

ROOT = Path(__file__).resolve().parent.parent
STUDIES = sorted((ROOT / "params").glob("study_*.yaml"))
ARMS = {"many": {"runs": 3}, "long": {"runs": 1, "steps": 4}, "sft": {"anchor": "sft", "steps": 4}}
POLICIES = [
    {"arm": "many", "what": "run", "m": [1, 2]},
    {"arm": "many", "what": "slerp", "m": [2, 3], "eta": [0.5, 1.0]},
    {"arm": "many", "what": "lerp", "m": [2], "lam": [0.25], "eta": [1.0, 1.5]},
    {"arm": "many", "what": "warp"},
    {"arm": "long", "what": "run", "t": [1, 2, 4]},
    {"arm": "long", "what": "average", "t": [1, 2, 4], "seeds": 2},
    {"arm": "sft", "what": "ema", "t": [2, 4]},
]


@pytest.fixture
def made(tmp_path, monkeypatch, make_tiny_params, policy_folders):
    """A study of the tiny world, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    params = make_tiny_params(policy=str(policy_folders("gpt2")), run_dir="")
    given = params | {"steps": 2, "iterations": 1, "judge": "", "eval_prompts": 4}
    for key in ("name", "seed", "run_dir"):
        given.pop(key, None)

    def make(**changes):
        about = {"seeds": [1, 2, 3], "base": [], "parameters": given, "arms": ARMS}
        return Study(**about | {"policies": POLICIES} | changes)

    return make


def store() -> Store:
    return Store(study_module.STORE)


def test_a_row_for_each_policy_and_seed_in_the_studys_order(made):
    study = made()
    rows = run_study(study)
    assert rows == read_jsonl(study.path)
    assert len(rows) == 1 + 3 * (2 + 4 + 2 + 1 + 3 + 2) + 2
    assert [rows[0][key] for key in ("arm", "what", "seed")] == ["", "sft", None]
    of_first = [row for row in rows if row["what"] == "run" and row["arm"] == "many"]
    assert [(row["m"], row["seed"]) for row in of_first] == [
        (m, s) for m in (1, 2) for s in (1, 2, 3)
    ]
    for row in rows:
        assert {"mean", "stderr", "n"} == row["reward"].keys() == row["kl"].keys()
        assert (row["kl"]["mean"] > 1e-9) == (row["what"] != "sft")
    geometry = next(row["geometry"] for row in rows if "geometry" in row and row["m"] == 3)
    assert len(geometry["gram"]) == 4
    assert not list(store().folder.glob("run-*/weights"))  # dropped behind the last evaluation
    assert not list(store().folder.glob("merged-*/weights"))


def test_what_a_longer_run_passes_is_what_a_run_by_itself_gives(made):
    study = made()
    for arm, outputs in (("long", ["policy", "ema"]), ("sft", ["policy", "ema"])):
        e = Experiment(config_of(study, arm, 1))
        tasks = [e.rl_run(e.theta_sft, 1, 1, t, output) for t in (1, 2, 4) for output in outputs]
        together, alone = (
            Store(study_module.STORE / "together"),
            Store(study_module.STORE / "alone"),
        )
        assert not e.engine.compute(together, tasks, tasks)
        starts = {task.name: origin_of(together, task)["seconds"] for task in tasks}
        assert len({together.path(task).name for task in tasks}) == 6 == len(starts)
        for task in tasks:
            assert not e.engine.compute(alone, [task], [task])
            for file in ("weights/model.safetensors", "steps.jsonl"):
                assert bits(together.path(task) / file) == bits(alone.path(task) / file), (
                    task.arguments
                )


def test_an_average_is_of_the_steps_of_its_own_run(made):
    e = Experiment(config_of(made(), "many", 1))
    point = Point(arm="many", what="average", iteration=1, m=2, t=[1, 2], eta=1.0)
    _, averaged = policy_of(e, point)
    assert [task.name for task in averaged] == [
        e.rl_run(e.theta_sft, 1, 2, step).name for step in (1, 2)
    ]


def origin_of(where, task):
    return json.loads((where.path(task) / "origin.json").read_text())


def bits(path):
    """What a file holds; of a log all but the seconds."""
    if path.suffix != ".jsonl":
        return path.read_bytes()
    return [{k: v for k, v in row.items() if k != "seconds"} for row in read_jsonl(path)]


def test_an_ema_that_is_asked_for_later_is_in_the_checkpoint_of_before(made, monkeypatch):
    """A run with an SFT anchor is interrupted before anyone wants its EMA."""
    e = Experiment(config_of(made(), "sft", 1))
    alone, broken = Store(study_module.STORE / "alone"), Store(study_module.STORE / "broken")
    ema = e.rl_run(e.theta_sft, 1, 1, 4, "ema")
    assert not e.engine.compute(alone, [ema], [ema])
    run, gradient, calls = e.rl_run(e.theta_sft, 1, 1, 4), Run.gradient, []

    def interrupted(self):
        calls.append(self.t)
        if self.t == 2:
            raise KeyboardInterrupt
        return gradient(self)

    monkeypatch.setattr(Run, "gradient", interrupted)
    with pytest.raises(KeyboardInterrupt):
        LocalEngine(1).compute(broken, [run], [run])
    monkeypatch.setattr(Run, "gradient", gradient)
    assert not LocalEngine(1).compute(broken, [run, ema], [run, ema])
    assert calls == [0, 1, 2]
    for file in ("weights/model.safetensors", "steps.jsonl"):
        assert bits(broken.path(ema) / file) == bits(alone.path(ema) / file)


def test_policies_are_what_their_names_say(made):
    study = made()
    engine_store = store()

    def weights(arm, **point):
        e = Experiment(config_of(study, arm, 1))
        points = Point(arm=arm, iteration=1, **point)
        policy = policy_of(e, points)[0]
        assert not e.engine.compute(engine_store, [policy], [policy])
        return load_file(engine_store.weights(policy) / "model.safetensors")

    def same(a, b):
        for name in a:
            torch.testing.assert_close(a[name], b[name], rtol=0, atol=1e-6)

    e = Experiment(config_of(study, "many", 1))
    engine_store.make(e.theta_sft)
    sft = load_file(engine_store.weights(e.theta_sft) / "model.safetensors")
    runs = [weights("many", what="run", m=m, t=2, eta=1.0) for m in (1, 2, 3)]
    same(weights("many", what="lerp", m=3, eta=1.0), lerp(sft, runs))
    same(weights("many", what="lerp", m=2, lam=0.25, eta=1.0), lerp(sft, runs[:2], 0.25))
    beyond = weights("many", what="lerp", m=2, eta=1.5)
    same(beyond, {n: sft[n] + 1.5 * (w - sft[n]) for n, w in lerp(sft, runs[:2]).items()})
    half = weights("many", what="run", m=2, t=2, eta=0.5)
    same(half, {n: (sft[n] + w) / 2 for n, w in runs[1].items()})
    steps = [weights("long", what="run", m=1, t=t, eta=1.0) for t in (1, 2, 4)]
    average = weights("long", what="average", m=1, t=[1, 2, 4], eta=1.0)
    same(average, {n: sum(w[n] for w in steps) / 3 for n in average})


def test_rows_that_are_there_are_not_computed_again_on_any_machine(made):
    study = made()
    rows = run_study(study)
    shutil.rmtree(study_module.STORE)
    study.path.write_text("".join(json.dumps(row) + "\n" for row in rows if row["what"] != "lerp"))
    again = run_study(study)
    timeless = [{k: v for k, v in row.items() if k not in ("seconds", "commit")} for row in again]
    assert timeless == [
        {k: v for k, v in row.items() if k not in ("seconds", "commit")} for row in rows
    ]
    kinds = {path.name.partition("-")[0] for path in store().folder.iterdir()}
    assert "run" in kinds
    assert len(list(store().folder.glob("evaluation-*"))) == 1 + 3 * 2  # θ_sft's


def test_a_study_that_is_whole_loads_nothing(made, monkeypatch):
    study = made()
    rows = run_study(study)
    monkeypatch.setattr(study_module, "stored_inputs", None)
    assert run_study(study) == rows


def test_bf16_is_refused_before_anything_is_computed_where_it_is_slower(
    made, monkeypatch, tmp_path
):
    monkeypatch.setattr(precision, "bf16_ratio", lambda: 400.0)
    study = made(arms={"many": {"precision": "bf16"}}, policies=[{"arm": "many", "what": "warp"}])
    with pytest.raises(ConfigError, match=r"400\.0 times slower"):
        run_study(study)
    assert not study.path.exists()
    assert not list(tmp_path.rglob("run-*"))


def test_runs_that_do_not_move_have_no_angles(policy_folders, tmp_path):
    start = policy_folders("gpt2")
    geometry(tmp_path, start, [start, start, start])
    found = read_json(tmp_path / GEOMETRY)
    assert found["angle"] is None
    assert np.array(found["gram"]).max() == 0.0
    assert found["cosine"] == pytest.approx(1.0)


def test_a_judge_is_asked_only_for_rows_that_are_missing(made):
    policies = [{"arm": "sft", "what": "run"}]
    study = made(policies=policies, arms={"sft": {"anchor": "sft", "judge": "vader"}})
    rows = run_study(study)
    shutil.rmtree(study_module.STORE)
    study.path.write_text("".join(json.dumps(row) + "\n" for row in rows[:2]))
    assert [row["judge"] for row in run_study(study)] == [row["judge"] for row in rows]
    assert len(list(store().folder.glob("judged-*"))) == 2


def test_rows_that_cannot_be_written_stop_the_computation_with_what_happened(made, monkeypatch):
    def full(*_):
        raise OSError("no room for rows")

    monkeypatch.setattr("warp_core.engine.tables.write_jsonl", full)
    with pytest.raises(OSError, match="no room for rows"):
        run_study(made(arms=ARMS, parameters=made().parameters | {"steps": 1}))
    wanted = 1 + 3 * (2 + 4 + 2 + 1 + 3 + 2) + 2
    assert len(list(store().folder.glob("evaluation-*"))) < wanted / 2  # it looks once a second


# What is refused


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seeds": [1]}, "seeds: [1] given; allowed: two or more different seeds"),
        ({"seeds": [1, 1]}, "two or more different seeds"),
        ({"policies": [{"arm": "few", "what": "run"}]}, "there is no arm 'few'"),
        ({"policies": [{"arm": "many", "what": "runs"}]}, "what: 'runs' given"),
        (
            {"policies": [{"arm": "many", "eat": [1.0]}]},
            "eat: unknown parameter; did you mean 'eta'",
        ),
        ({"arm": {}}, "arm: unknown parameter; did you mean 'arms'"),
        ({"arms": {}, "policies": []}, "arms: {} given"),
        ({"arms": {"many": {"step": 3}}, "policies": [{"arm": "many"}]}, "step: unknown parameter"),
        (
            {"arms": {"many": {"seed": 3}}, "policies": [{"arm": "many"}]},
            "no seed: a training's name",
        ),
    ],
)
def test_a_study_that_cannot_be_is_refused_and_nothing_created(made, changes, said, tmp_path):
    with pytest.raises(ConfigError) as caught:
        run_study(made(**changes))
    assert said in str(caught.value)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("points", "said"),
    [
        ({"what": "run", "m": [4]}, "m: 4 given; it has 3"),
        ({"what": "run", "t": [3]}, "t: 3 given; it has 2"),
        ({"what": "slerp", "iteration": [2]}, "iteration: 2 given; it has 1"),
        ({"what": "slerp", "m": [3], "lam": [0.5]}, "lam: given, and weighs the second of two"),
        ({"what": "run", "lam": [0.5]}, "lam: given, and weighs the second of two"),
        ({"what": "lerp", "t": [1]}, "t: given, and a merge has none"),
    ],
)
def test_policies_that_an_arm_does_not_have_are_refused(made, points, said):
    with pytest.raises(ConfigError, match="policies of arm 'many'") as caught:
        wanted(made(policies=[{"arm": "many", **points}]))
    assert said in str(caught.value)


def test_an_ema_behind_an_update_that_is_taken_back_is_refused(made):
    points = {"arm": "many", "what": "ema", "m": [1]}
    assert wanted(made(policies=[points]))
    with pytest.raises(ConfigError, match="max_kl: 3; an EMA has followed the update"):
        wanted(made(policies=[points], arms={"many": {"runs": 3, "max_kl": 3.0}}))


COMPARED = {"name": "a", "ours": {"arm": "many", "what": "slerp", "m": 2, "eta": 1.0}}


@pytest.mark.parametrize(
    ("comparison", "said"),
    [
        ({"theirs": COMPARED["ours"]}, "compares a thing with itself"),
        ({"theirs": {"arm": "long"}, "at": "equal_kl", "share": 0.5}, "a share is of one policy"),
        (
            {"theirs": {"arm": "many", "what": "warp"}, "at": "equal_kl"},
            "one side at least is a curve",
        ),
        ({"theirs": {"arm": "none"}}, "fits 0 of the evaluated policies"),
        ({"theirs": {"arm": "many", "what": "slerp"}}, "fits 4 of the evaluated policies"),
        ({"theirs": {"arm": "many", "whatever": 1}}, "whatever: unknown parameter"),
        ({"theirs": {"what": "sft"}, "measure": "beauty"}, "measure: 'beauty' given"),
        ({"theirs": {"what": "sft"}, "measure": "judge"}, "no `judge` is set"),
        (
            {"theirs": {"what": "sft"}, "measure": "kl", "expected": "not_less"},
            "not_less is of rewards, which alone have a margin",
        ),
    ],
)
def test_a_comparison_that_cannot_be_is_refused(made, comparison, said):
    with pytest.raises(ConfigError) as caught:
        comparisons(made(comparisons=[COMPARED | comparison]))
    assert said in str(caught.value)


def test_a_judge_is_asked_for_in_the_arms_that_are_compared(made):
    arms = ARMS | {"sft": ARMS["sft"] | {"judge": "vader"}}
    without = {"ours": {"arm": "long", "t": 1, "what": "run"}, "theirs": {"what": "sft"}}
    of_sft = {"ours": {"arm": "sft", "t": 2}, "theirs": {"arm": "sft", "t": 4}}
    assert comparisons(made(arms=arms, comparisons=[of_sft | {"measure": "judge"}]))
    with pytest.raises(ConfigError, match="no `judge` is set"):
        comparisons(made(arms=arms, comparisons=[without | {"measure": "judge"}]))


@pytest.mark.parametrize(
    ("curve", "said"),
    [
        ({"arm": "none"}, "curve 'x': {'arm': 'none'} fits none of the evaluated policies"),
        ({"arm": "many", "step": 1}, "curve 'x': step: unknown parameter"),
        ({"arm": "many", "label": None}, "curve None: a label is needed"),
    ],
)
def test_a_curve_that_goes_through_nothing_is_refused(made, curve, said, tmp_path):
    study = made(curves=[{"label": "x"} | curve])
    write_text(tmp_path / "study.yaml", yaml.safe_dump(study.model_dump()))
    with pytest.raises(ConfigError) as caught:
        load_study(tmp_path / "study.yaml")
    assert said in str(caught.value)


SMALL = {"seeds": [1, 2], "policies": [{"arm": "many", "what": "run", "m": [1]}]}


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda text: text[:-9], "it is damaged"),
        (lambda text: text.replace('"reward"', '"reward', 1), "it is damaged"),
        (lambda text: text.replace('"version": 2', '"version": 1', 1), "rows of another version"),
        (lambda text: text + text.splitlines(keepends=True)[-1], "or a row twice"),
        (lambda text: text.replace('"digest": "', '"digest": "x', 1), "are not asked for now"),
        (lambda text: "[1]\n" + text, "it is damaged"),
    ],
)
def test_rows_that_are_not_a_studys_are_refused_and_stay_as_they_are(made, spoil, said):
    study = made(**SMALL)
    run_study(study)
    text = spoil(study.path.read_text())
    study.path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        run_study(study)
    assert said in str(caught.value)
    assert str(study.path) in str(caught.value)
    assert study.path.read_text() == text


def test_a_row_waits_for_a_run_whose_seconds_it_tells(made):
    """One that was damaged and deleted, behind its evaluation."""
    study = made(**SMALL)
    rows = run_study(study)
    study.path.unlink()
    for run in store().folder.glob("run-*"):
        shutil.rmtree(run)
    again = run_study(study)
    for row, other in zip(again, rows, strict=True):
        assert (row["seconds"]["all"] > 0) == (other["seconds"]["all"] > 0)
    assert any(row["seconds"]["all"] > 0 for row in rows)


def test_a_seed_more_computes_that_seed_alone_and_keeps_the_rows(made):
    rows = run_study(made(**SMALL))
    more = run_study(made(**SMALL | {"seeds": [1, 2, 3]}))
    assert [row for row in more if row["seed"] != 3] == rows
    assert len(more) == len(rows) + 1


# Kills

PROGRAM = """
import json, os, sys
from warp_core import study
from warp_core.world.studies import Study
study.run_study(Study(**json.loads(sys.argv[1])))
"""


def test_rows_survive_kills_at_any_moment(made, tmp_path):
    wanted = made()
    rows = run_study(wanted)
    shutil.rmtree(study_module.STORE)
    wanted.path.unlink()
    command = [sys.executable, "-c", PROGRAM, wanted.model_dump_json()]
    env = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parent.parent)}

    def measured(row):
        return {key: value for key, value in row.items() if key != "seconds"}

    def lines():
        return wanted.path.read_text().splitlines(keepends=True) if wanted.path.is_file() else []

    for there in (0, 1, 6, 20):
        program = subprocess.Popen(command, env=env, cwd=tmp_path, stderr=subprocess.DEVNULL)
        while len(lines()) < there or not study_module.STORE.is_dir():
            assert program.poll() is None
            time.sleep(0.01)
        program.kill()
        assert program.wait() == -signal.SIGKILL
        left = lines()
        assert there <= len(left) < len(rows)
        for line in left:  # each whole, and what it is without a kill
            assert line.endswith("\n")
            assert measured(json.loads(line)) in map(measured, rows)
    assert [*map(measured, run_study(wanted))] == [*map(measured, rows)]


# The studies of the project


def small(path, given):
    """A study of the project with its arms, policies and comparisons, but tiny: T is its rank."""
    params = load_params(path)
    common = {k: v for k, v in params.get("parameters", {}).items() if k in ("runs", "steps")}
    arms = {name: common | arm for name, arm in params["arms"].items()}
    steps = {arm.get("steps", 30) for arm in arms.values()} | {10}
    steps |= {t for points in params["policies"] for t in points.get("t", [])}
    rank = {t: k for k, t in enumerate(sorted(steps), start=1)}

    def shrunk(keys):
        t = keys.get("t", [])
        return keys | (
            {"t": [rank[each] for each in t] if isinstance(t, list) else rank[t]} if t else {}
        )

    tiny = {"batch_size": 4, "lr": 1e-2, "warmup_steps": 1}
    arms = {
        name: {k: v for k, v in arm.items() if k not in tiny}
        | {"steps": rank[arm.get("steps", 30)]}
        for name, arm in arms.items()
    }
    compared = [c for c in params["comparisons"] if c.get("measure") != "judge"]
    compared = [c | {side: shrunk(c[side]) for side in ("ours", "theirs")} for c in compared]
    whole = given | tiny | {"iterations": 1 if "base" not in params else 2}
    changes = {
        "arms": arms,
        "policies": [shrunk(p) for p in params["policies"]],
        "comparisons": compared,
    }
    return Study(
        **params | changes | {"base": [], "parameters": whole, "seeds": params["seeds"][:2]}
    )


def test_every_study_of_the_project_at_tiny_sizes(made):
    given = made().parameters
    studies = [small(path, given) for path in STUDIES]
    for study in studies:
        comparisons(study)
    tables = run_studies(studies)
    computed = len(list(store().folder.glob("run-*")))
    for study, rows in zip(studies, tables, strict=True):
        assert len(rows) == len(wanted(study))
        for comparison in comparisons(study):
            found = differences(rows, comparison, wanted(study))
            there = set(study.seeds)
            if pairs := curves_of(rows, comparison, wanted(study)):
                assert set(pairs) == there, (study.name, comparison.name)
                there = {seed for seed, pair in pairs.items() if common_roots(*pair)}
            assert set(found) == there, (study.name, comparison.name)
    # Studies share runs, and a long one passes short ones.
    e = Experiment(config_of(studies[STUDIES.index(ROOT / "params/study_liti.yaml")], "ema", 1))
    assert store().has(e.rl_run(e.theta_sft, 1, 1))
    assert computed < sum(len(rows) for rows in tables)


def test_policies_are_of_an_arms_last_iteration_where_none_is_named(made):
    arms, policies = {"thrice": {"iterations": 3}}, {"arm": "thrice", "what": "slerp"}
    for named, there in (({}, {None, 3}), ({"iteration": [1, 2]}, {None, 1, 2})):
        study = made(arms=arms, policies=[policies | named])
        assert {point.iteration for _, point in wanted(study)} == there


def test_policies_of_later_iterations_are_merged_from_their_own_start(made):
    """And the front's η leads from θ_sft, whatever the iteration; an EMA is not its policy."""
    arms = {"twice": {"iterations": 2, "runs": 2, "eta": 0.5}, "sft": {"anchor": "sft", "steps": 4}}
    study, there = made(arms=arms, policies=[{"arm": "twice"}]), Store(study_module.STORE)

    def weights(arm, **point):
        e = Experiment(config_of(study, arm, 1))
        task, _ = policy_of(e, Point(arm=arm, **{"eta": 1.0} | point))
        assert not e.engine.compute(there, [task], [task, e.theta_sft])
        return load_file(there.weights(task) / "model.safetensors")

    def same(got, wanted):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-6)

    theta_sft = Experiment(config_of(study, "twice", 1)).theta_sft
    there.make(theta_sft)
    start = sft = load_file(there.weights(theta_sft) / "model.safetensors")
    for i in (1, 2):
        runs = [weights("twice", what="run", iteration=i, m=m) for m in (1, 2)]
        end = weights("twice", what="slerp", iteration=i, m=2)
        same(end, slerp(start, runs))
        assert max((end[n] - w).abs().max() for n, w in lerp(start, runs).items()) > 1e-4
        half = weights("twice", what="slerp", iteration=i, m=2, eta=0.5)
        same(half, {n: (sft[n] + w) / 2 for n, w in end.items()})
        start = {n: (start[n] + w) / 2 for n, w in end.items()}  # LITI
    same(weights("twice", what="warp"), start)
    policy, ema = (weights("sft", what=what, iteration=1, m=1, t=4) for what in ("run", "ema"))
    far, near = (sum(((w[n] - sft[n]) ** 2).sum() for n in sft) for w in (policy, ema))
    assert 0 < near < far


def test_geometry_by_hand(policy_folders, tmp_path):
    """Angles of the runs without their merge, in degrees; dot products; the least cosine of weights."""
    body, tokenizer = load_policy(str(policy_folders("gpt2")))
    start, models = weights_of(body), [copy.deepcopy(body) for _ in range(3)]
    for seed, model in enumerate(models):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    places = [tiny.save(m, tokenizer, tmp_path / f"{k}") for k, m in enumerate(models)]
    (tmp_path / "out").mkdir()
    geometry(tmp_path / "out", policy_folders("gpt2"), places)
    found = read_json(tmp_path / "out" / GEOMETRY)

    of = [weights_of(model) for model in models]
    angles = [group[0, 1].item() for group in task_angles(start, of[:2]).values()]
    wanted = np.degrees([min(angles), np.mean(angles), max(angles)]).tolist()
    assert found["angle"] == pytest.approx(wanted, abs=1e-4)
    names = [name for name, _ in body.named_parameters()]  # tied weights once
    whole = [torch.cat([w[n].double().flatten() for n in names]) for w in (start, *of)]
    deltas = [w - whole[0] for w in whole[1:]]
    gram = [[float(a @ b) for b in deltas] for a in deltas]
    np.testing.assert_allclose(found["gram"], gram, rtol=1e-4, atol=1e-4)
    cosines = [float(a @ b / a.norm() / b.norm()) for a, b in itertools.combinations(whole, 2)]
    assert found["cosine"] == pytest.approx(min(cosines), abs=1e-6)
