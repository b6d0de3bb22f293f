"""What is said of the benchmark's figures."""

import pytest

from reports.text import performance


def answers(*seconds):
    parts = {"prefill": 1.0, "decode": 2.0}
    return [{"seconds": each, "tokens": 384, "parts": parts} for each in seconds]


def a_round(trl, ours, alone):
    """Seconds of a TRL step, both ways; of ours side by side, and alone."""
    return {
        "peaks": {"alone": 100.0, "pair": 50.0},
        "trl": {"pair": answers(trl, trl + 2), "alone": answers(trl)},
        "ours": {"pair": answers(ours, ours - 1), "alone": answers(alone)},
    }


def merged(runs, gigabytes, *rows, memory=100.0):
    """A case of the merge, of rows of seconds: ours, copying and, if there is one, mergekit's."""
    names = {"ours": memory, "copying": 10.0, "mergekit": 2500.0}
    rounds = [
        {
            who: {"seconds": row[i], "memory_mb": names[who]}
            for i, who in enumerate([*names][: len(row)])
        }
        for row in rows
    ]
    return {"runs": runs, "gigabytes": gigabytes, "rounds": rounds, "difference": 2e-7}


@pytest.fixture
def results():
    return {
        "machine": {
            "processor": "Some CPU",
            "vector": ["avx2"],
            "gpu": None,
            "threads": 2,
            "torch": "2.13.0",
            "python": "3.11.2",
            "date": "2026-11-23",
        },
        "steps": {
            "peaks": {"fp32": 100.0, "bf16": 200.0},
            "operations": {"prefill": 50e9, "decode": 100e9},
            "rounds": {
                "fp32": [a_round(18, 10, 9), a_round(20, 11, 8), a_round(16, 6, 10)],
                "bf16": [a_round(10, 6, 20)],
            },
        },
        "merge": {
            "tiny_2": merged(2, 1e-4, (0.5, 0.1, 8.0)),
            "policy_2": merged(2, 0.54, (4.0, 2.5, 40.0), (4.0, 1.0, 28.0)),
            "large_2": merged(2, 2.0, (10.5, 5.0, 58.0)),
            "large_4": merged(4, 2.0, (20.0, 5.0), memory=120.0),
        },
        "resume": {
            "ours": {"straight": [-1e-6, 1.0, 1.5, 2.0], "resumed": [-1e-6, 1.0, 1.5, 2.0]},
            "trl": {"straight": [0.0, 1.85, 1.4, 2.4], "resumed": [0.0, 1.85, 10.18, 5.8]},
        },
    }


def test_like_is_compared_with_like_round_by_round(results):
    assert performance.speedups(results, "pair") == [2.0, 2.0, 3.0]  # 20/10, 22/11, 18/6
    assert performance.speedups(results, "alone") == [2.0, 2.5, 1.6]
    assert performance.speedups(results, "alone", "bf16") == [0.5]
    table = performance.steps_table(results)
    assert list(table.iloc[:, 0]) == [
        "два запуска одновременно, float32",
        "один запуск, float32",
        "два запуска одновременно, bf16",
        "один запуск, bf16",
    ]
    pair = ["10,00 (9,00–11,00)", "5,00 (3,00–5,50)", "2,00 (2,00–3,00)"]
    assert list(table.iloc[0, 1:]) == pair  # seconds of one of the two steps
    assert list(table.iloc[1, 1:])[::2] == ["18,00 (16,00–20,00)", "2,00 (1,60–2,50)"]


def test_the_floor_is_operations_over_the_peak_of_the_same_round(results):
    rows = {row["part"]: row for row in performance.floor_rows(results, "pair")}
    row = {"part": "prefill", "gflop": 50.0, "floor": 1.0, "seconds": 1.0, "ratio": 1.0}
    assert rows["prefill"] == row
    assert rows["step"]["floor"] == 3.0
    assert rows["step"]["seconds"] == 9.5  # of six steps of 5 to 11 s
    assert rows["rest"]["seconds"] == 6.5
    assert rows["backward"]["ratio"] is None
    alone = {row["part"]: row for row in performance.floor_rows(results, "alone")}
    assert alone["step"]["ratio"] == 6.0
    table = performance.floor_table(results, "pair")
    assert list(table.iloc[0]) == ["чтение промпта", "50", "1,0", "1,0", "1,0"]
    assert table.iloc[-1, 0] == "весь шаг"


def test_the_merge_table_names_the_start_up_and_every_size(results):
    table = performance.merge_table(results)
    assert list(table.iloc[:, 0].unique()) == [
        "M = 2, старт программы",
        "M = 2, 0,54 ГБ",
        "M = 2, 2,00 ГБ",
        "M = 4, 2,00 ГБ",
    ]
    assert len(table) == 11  # no mergekit of four
    assert list(table.iloc[0, 1:]) == ["mergekit nuslerp", "8,00 (8,00–8,00)", "2500"]


def test_a_resume_is_shown_step_by_step(results):
    table = performance.resume_table(results)
    assert list(table.iloc[1]) == ["TRL, продолжено после шага 2", "0,00", "1,85", "10,18", "5,80"]
    assert list(table.iloc[3]) == ["мы, продолжено после шага 2", "0,00", "1,00", "1,50", "2,00"]


def test_the_conclusion_says_what_was_measured_and_which_targets_were_reached(results):
    said = "\n".join(performance.conclusion(results))
    for expected in (
        "Два запуска одновременно, float32: быстрее двух запусков TRL одновременно в 2,00 "
        "(2,00–3,00) раза.",
        "Один запуск, float32: быстрее одного запуска TRL в 2,00 (1,60–2,50) раза; цель — быстрее в 2,0 "
        "раза: достигнута.",
        "Один запуск, bf16: медленнее одного запуска TRL в 2,00 (2,00–2,00) раза.",
        "Один запуск, весь шаг: в 6,0 раза дольше нижней границы; цель — не больше чем в 1,7 "
        "раза: не достигнута",
        "0,54 ГБ: быстрее mergekit в 8,50 (7,00–10,00) раза; цель — быстрее в 8,0 раза: достигнута",
        "Слияние M = 2, 2,00 ГБ: быстрее mergekit в 5,52 (5,52–5,52) раза.",
        "Слияние M = 2, 2,00 ГБ, без времени старта обеих программ: быстрее в 5,0 раза.",
        "не больше чем на 2,0·10⁻⁷; цель — меньше 1,0·10⁻⁶: достигнута",
        "Память слияния M = 4, 2,00 ГБ: не больше 120 МБ ни в одном раунде; цель — меньше 150 МБ: "
        "достигнута",
        "M = 4, 2,00 ГБ: дольше чтения и записи в 4,00 (4,00–4,00) раза",
        "Обучение TRL, продолженное после шага 2: KL к якорю на шаге 3 — 10,18 ната на ответ, без "
        "остановки — 1,40; шаги разошлись.",
        "без остановки — 1,50; все шаги те же бит в бит.",
    ):
        assert expected in said


def test_without_the_peers_and_without_fast_bf16(results):
    rounds = results["steps"]["rounds"]
    del rounds["bf16"], results["resume"]["trl"]
    results["steps"]["peaks"]["bf16"] = 0.9
    for row in rounds["fp32"]:
        del row["trl"]
    for case in results["merge"].values():
        for row in case["rounds"]:
            row.pop("mergekit", None)
    said = "\n".join(performance.conclusion(results))
    assert "TRL" not in said
    assert "mergekit" not in said
    assert "не быстрее, чем во float32 (0,9 и 100,0 Гфлоп/с)" in said
    assert list(performance.steps_table(results).iloc[0, [1, 3]]) == ["—", "—"]
    assert len(performance.resume_table(results)) == 2


def test_the_machine_is_named(results):
    said = performance.machine_text(results)
    assert "Измерено 23.11.2026: Some CPU (avx2), потоков: 2" in said
    assert "100\u00a0Гфлоп/с одним процессом на всех ядрах, по 50 у двух" in said
