"""The benchmark's workers and files at tiny sizes, and what is said of its figures."""

import json
import sys
from pathlib import Path

import pytest

from reports import bench, performance
from reports.bench import BenchConfig
from warp_core.config import ConfigError


def answer(seconds, **parts):
    return {"seconds": seconds, "tokens": 384, "parts": {"prefill": 1.0, "decode": 2.0} | parts}


def a_round(trl, pair, alone):
    return {"peaks": {"alone": 100.0, "pair": 50.0, "bf16": 1.0}, "trl": {"seconds": trl},
            "pair": [answer(pair), answer(pair - 1)], "alone": answer(alone)}  # fmt: skip


def copying(ours, copy, mergekit=None, memory=500.0):
    row = {"ours": {"seconds": ours, "memory_mb": memory},
           "copying": {"seconds": copy, "memory_mb": 10.0}}  # fmt: skip
    return row | ({"mergekit": {"seconds": mergekit, "memory_mb": 2500.0}} if mergekit else {})


@pytest.fixture
def results():
    growth = [{"what": what, "value": value, "seconds": [1.0, 2.0, 1.5]}
              for what, values in (("batch_size", (4, 8)), ("max_new_tokens", (12, 24)),
                                   ("parameters", (30, 135)))
              for value in values]  # fmt: skip
    growth += [{"what": "side_by_side", "value": n, "threads": t, "seconds": [n + 1.0]}
               for n, t in ((1, 1), (1, 2), (2, 1))]  # fmt: skip
    return {
        "machine": {"processor": "Some CPU", "vector": ["avx2"], "gpu": None, "threads": 2,
                    "torch": "2.13.0", "python": "3.11.2", "date": "2026-11-23"},
        "steps": {
            "operations": {"prefill": 50e9, "decode": 100e9},
            "rounds": [a_round(18.0, 12.0, 9.0), a_round(20.0, 10.0, 8.0), a_round(16.0, 8.0, 10.0)],
        },
        "merge": {"rounds": [copying(4.0, 2.5, 40.0), copying(4.0, 1.0, 28.0)], "difference": 2e-7},
        "stream": {"rounds": [copying(20.0, 5.0)], "runs": 4, "gigabytes": 2.0, "group_mb": 100.0},
        "growth": growth,
    }  # fmt: skip


def test_speedups_are_of_a_runs_step_round_by_round(results):
    assert performance.speedups(results, "pair") == [3.0, 4.0, 4.0]
    assert performance.speedups(results, "alone") == [2.0, 2.5, 1.6]
    table = performance.steps_table(results)
    assert table.iloc[0, 1] == "18,00 (16,00 – 20,00)"
    assert list(table.iloc[:, 2]) == ["–", "2,00 (1,60 – 2,50)", "4,00 (3,00 – 4,00)"]


def test_the_floor_is_operations_over_the_peak_of_the_same_round(results):
    rows = {row["part"]: row for row in performance.floor_rows(results, "pair")}
    assert rows["prefill"] == {"part": "prefill", "gflop": 50.0, "floor": 1.0, "seconds": 1.0,
                               "ratio": 1.0}  # fmt: skip
    assert rows["step"]["floor"] == 3.0
    assert rows["step"]["seconds"] == 9.5  # of six steps of 7 to 12 s
    assert rows["rest"]["seconds"] == 6.5
    assert rows["backward"]["ratio"] is None
    alone = {row["part"]: row for row in performance.floor_rows(results, "alone")}
    assert alone["step"]["ratio"] == 6.0
    table = performance.floor_table(results, "pair")
    assert list(table.iloc[0]) == ["чтение промпта", "50", "1,0", "1,0", "1,0"]
    assert table.iloc[-1, 0] == "весь шаг"


def test_the_conclusion_says_which_targets_were_reached(results):
    said = "\n".join(performance.conclusion(results))
    ours = "Два запуска рядом: быстрее TRL (float32) в 4,00 (3,00 – 4,00) раза"
    assert f"{ours}; цель – не меньше 3,5: достигнута" in said
    assert "Один запуск, весь шаг: 6,0 предела; цель – не больше 1,7: не достигнута" in said
    assert "быстрее mergekit в 8,50 (7,00 – 10,00) раза; цель – не меньше 8,0: достигнута" in said
    assert "с mergekit: 2,0·10⁻⁷; цель – меньше 1,0·10⁻⁶: достигнута" in said
    assert "500 МБ при слое в 100 МБ; цель – меньше 1000 МБ: достигнута" in said
    assert "больших весов: дольше одного лишь чтения и записи в 4,00 (4,00 – 4,00) раза" in said
    assert "пике bf16 в 1,0\u00a0GFLOP/с один его шаг не короче 2\u00a0мин" in said
    for row in results["steps"]["rounds"]:
        row["peaks"]["bf16"] = 200.0
    assert "не измерялся." in "\n".join(performance.conclusion(results))
    for row in results["steps"]["rounds"]:
        del row["trl"]
    results["merge"]["rounds"] = [copying(4.0, 2.0)]
    alone = "\n".join(performance.conclusion(results))  # without the peers
    assert "TRL" not in alone
    assert "mergekit" not in alone


def test_the_machine_is_named(results):
    said = performance.machine_text(results)
    assert "Измерено 23.11.2026: Some CPU (avx2), потоков: 2" in said
    assert "100\u00a0GFLOP/с одним процессом" in said


def test_the_growth_figure_has_a_panel_for_each_thing_that_grows(results):
    performance.growth_figure(results)
    figure = performance.new_row.__globals__["plt"].gcf()
    labels = [ax.get_xlabel() for ax in figure.axes]
    assert labels == ["Ответов в батче $B$", "Новых токенов $N$", "Параметров политики, млн",
                      "Запусков × потоков"]  # fmt: skip
    assert [bar.get_height() for bar in figure.axes[3].patches] == [30.0, 30.0, 40.0]


# The benchmark itself


def test_results_that_are_not_there_and_peers_that_are_not_there_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"no such file\. measure: true makes it"):
        bench.run_bench(BenchConfig(results=str(tmp_path / "none.json")))
    for key in ("trl_python", "mergekit_python"):
        peers = {"trl_python": "", "mergekit_python": ""} | {key: str(tmp_path / "python")}
        with pytest.raises(ConfigError, match=f"{key}: .* there is no such file"):
            bench.run_bench(BenchConfig(measure=True, folder=str(tmp_path / "bench"), **peers))
    assert not list(tmp_path.iterdir())


def test_a_worker_answers_steps_with_their_parts_and_operations(
    policy_folders, tiny_reward_folder, tmp_path
):
    (tmp_path / "prompts.json").write_text(json.dumps(["good film", "the plot"] * 8))
    (tmp_path / "policy").symlink_to(policy_folders("llama"))
    config = BenchConfig(reward_model=str(tiny_reward_folder), batch_size=4, max_new_tokens=5)
    with bench.worker(config, tmp_path, tmp_path / "prompts.json") as process:
        assert process.answer() == {"ready": True}
        process.ask(do="peak", threads=1)
        assert process.answer()["gflops"] > 1
        first, second = (bench._together([process], 1)[0] for _ in range(2))
        process.ask(do="step", threads="many")
        with pytest.raises(
            RuntimeError, match=r"bench_worker ended with 1: [\s\S]*set_num_threads"
        ):
            process.answer()
    parts = set(performance.PARTS) - {"rest"}
    assert parts == set(first["parts"]) == set(second["parts"])
    assert sum(second["parts"].values()) <= second["seconds"]
    assert "operations" not in second
    operations = first["operations"]
    assert operations["forward"] == 0  # of products: they are on the tape
    assert operations["backward"] >= 2 * operations["anchor"] > 0
    assert operations["anchor"] <= operations["prefill"] + operations["decode"]


def test_the_merge_is_timed_against_reading_and_writing(policy_folders, tmp_path):
    (tmp_path / "policy").symlink_to(policy_folders("llama"))
    config = BenchConfig(mergekit_python="", rounds=1)
    measured = bench.measure_merge(config, tmp_path, Path())
    (row,) = measured["rounds"]
    assert set(row) == {"ours", "copying"}
    assert row["ours"]["seconds"] > 0
    assert row["ours"]["memory_mb"] > row["copying"]["memory_mb"] > 1
    sizes = [
        (tmp_path / name / "model.safetensors").stat().st_size for name in ("merged", "copied")
    ]
    assert sizes[0] == sizes[1]
    assert bench.difference(tmp_path / "merged", tmp_path / "merged") == 0
    assert bench.difference(tmp_path / "merged", tmp_path / "run_1") > 1e-4


def test_a_command_that_fails_is_said(tmp_path):
    with pytest.raises(RuntimeError, match=r"ended with 1: .*no such thing"):
        bench.timed([sys.executable, "-c", "raise SystemExit('no such thing')"], tmp_path / "out")


def test_a_large_checkpoint_is_sharded_and_of_the_size_asked_for(tmp_path):
    sizes = bench.make_large(tmp_path / "large", 0.3, seed=0)
    assert sizes == {"gigabytes": 0.3, "group_mb": 100.0}
    files = sorted(path.name for path in (tmp_path / "large").iterdir())
    assert files == ["model-00001.safetensors", "model-00002.safetensors",
                     "model.safetensors.index.json"]  # fmt: skip
    assert sum(path.stat().st_size for path in (tmp_path / "large").glob("*.safetensors")) > 3e8
