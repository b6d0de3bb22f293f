"""Studies at tiny sizes: their rows, what is shared, what is computed again, what is refused."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from warp_core import study as study_module
from warp_core.merge import lerp
from warp_core.store.files import read_jsonl
from warp_core.store.results import Store
from warp_core.study import config_of, policy_of, run_study
from warp_core.warp import Experiment
from warp_core.world.studies import Point, Study

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
        assert not e.engine().compute(together, tasks, tasks)
        starts = {task.name: origin_of(together, task)["seconds"] for task in tasks}
        assert len({together.path(task).name for task in tasks}) == 6 == len(starts)
        for task in tasks:
            assert not e.engine().compute(alone, [task], [task])
            for file in ("weights/model.safetensors", "steps.jsonl"):
                assert bits(together.path(task) / file) == bits(alone.path(task) / file), (
                    task.arguments
                )


def origin_of(where, task):
    return json.loads((where.path(task) / "origin.json").read_text())


def bits(path):
    """What a file holds; of a log all but the seconds."""
    if path.suffix != ".jsonl":
        return path.read_bytes()
    return [{k: v for k, v in row.items() if k != "seconds"} for row in read_jsonl(path)]


def test_policies_are_what_their_names_say(made):
    study = made()
    engine_store = store()

    def weights(arm, **point):
        e = Experiment(config_of(study, arm, 1))
        points = Point(arm=arm, iteration=1, **point)
        policy = policy_of(e, points)[0]
        assert not e.engine().compute(engine_store, [policy], [policy])
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
    assert len(list(store().folder.glob("evaluation-*"))) == 3 * 2
