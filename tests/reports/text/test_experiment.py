"""The sentences and tables about an experiment follow from its numbers."""

import pytest
from invented import OWN_SEEDS, PARAMS, SAME, metrics, summary

from reports.text import experiment
from warp_core.config import WarpConfig


def said(s, curves=SAME, params=PARAMS):
    return " ".join(experiment.conclusion(s, metrics(curves), params))


def test_conclusion_says_whether_the_policy_moved():
    assert "практически не сдвинулась" in said(summary(kl=1e-6, difference=0.0))
    assert "едва заметно" in said(summary(kl=7e-4, difference=0.0))
    assert "Модель сдвинулась" in said(summary(kl=5.0))
    assert "очень далеко" in said(summary(kl=70.0))


def test_conclusion_gives_the_difference_as_that_of_one_training_and_judges_nothing_by_it():
    text = said(summary(difference=0.21))
    assert "Разность наград 0,21\u00a0±\u00a00,10 балла (ошибка оценки, одно обучение)." in text
    assert not {"выросла", "упала", "изменилась"} & {*text.split()}


@pytest.mark.parametrize("broken", [{"repetition": 0.9}, {"distinct": 0.1}, {"empty": 0.8}])
def test_conclusion_does_not_trust_the_reward_of_collapsed_text(broken):
    text = said(summary(difference=2.0, **broken))
    assert "выродился, награде здесь верить нельзя" in text
    assert "lr слишком велик, его нужно уменьшить" in text
    assert ("пустых ответов 80,0\u00a0%" in text) == ("empty" in broken)


@pytest.mark.parametrize("poorer", [{"repetition": 0.12}, {"pairs": 0.7}])
def test_conclusion_does_not_call_text_whole_that_repeats_itself(poorer):
    text = said(summary(difference=2.0, **poorer))
    assert "стал заметно однообразнее" in text
    assert "lr слишком велик, его нужно уменьшить" in text
    assert "как у SFT-модели" not in text
    assert "Вырождения и заметного однообразия в тексте не видно: слов в ответе" in said(
        summary(difference=2.0, repetition=0.09, pairs=0.8)
    )


def test_runs_that_share_a_seed_coincide_by_construction_and_that_is_no_finding():
    text = said(summary())
    assert "один и тот же расчёт" in text
    assert "о методе это ничего не говорит" in text
    assert "совпали полностью" not in text


def test_curves_of_runs_with_seeds_of_their_own_are_compared():
    apart = SAME | {(1, 2): [0.0, 1.0, 2.5]}
    text = said(summary(), apart, OWN_SEEDS)
    assert "различаются при любом lr (наибольшее расхождение, баллы: 0,50)" in text
    assert "совпали полностью, хотя seed у каждого свой" in said(summary(), SAME, OWN_SEEDS)
    assert "Кривые запусков" not in said(summary(), {(1, 1): [0.0, 1.0, 2.0]}, OWN_SEEDS)


def test_curves_of_iterations_that_draw_the_same_are_compared():
    assert "Кривые разных итераций почти совпали" in said(summary())
    one_step = {key: values[:1] for key, values in SAME.items()}
    assert "почти совпали" in said(summary(), one_step, PARAMS | {"steps": 1})
    later = SAME | {(2, 1): [2.0, 3.0, 4.0], (2, 2): [2.0, 3.0, 4.0]}
    assert "Кривые разных итераций различаются: наибольшее расхождение 2,0 при" in said(
        summary(), later
    )
    assert "Кривые разных итераций" not in said(summary(), later, OWN_SEEDS)


def test_a_run_that_hardly_moved_is_told_what_to_change():
    still = summary(kl=1e-6, difference=0.0)
    warmed = PARAMS | {"warmup_steps": 30}
    assert "lr дошёл лишь до 10\u00a0% заданного" in said(still, params=warmed)
    assert "без прогрева" in said(still, params=warmed)
    assert "lr слишком мал" in said(still)


def test_long_answers_go_further_and_repeat_more_and_have_not_fallen_apart():
    """A bound of so many nats a token; repetition beside θ_sft's own."""
    far, long = summary(kl=60.0), PARAMS | {"max_new_tokens": 256}
    assert "ушла от SFT-модели очень далеко" in said(far)
    assert "lr слишком велик" in said(far)
    assert "очень далеко" not in said(far, params=long)
    assert "lr слишком велик" not in said(far, params=long)
    assert "Текст выродился" in said(summary(repetition=0.6))
    assert "Текст выродился" not in said(summary(repetition=0.6, before=0.55))


def stopped_at(step):
    """Rows of metrics.jsonl; max_kl ended run 2 of iteration 2 at this step."""
    rows = metrics(SAME | {(2, 2): SAME[2, 2][:step]})
    rows[-1] |= {"kl_anchor": 12.5, "stopped": True}
    return rows


LIMITED = OWN_SEEDS | {"max_kl": 10.0}
LIMIT_REACHED = "Обучение остановил max_kl; нужен меньший lr или больший предел."


def test_a_run_that_was_stopped_or_collapsed_is_told():
    rows = metrics(SAME)
    assert experiment.health(rows, OWN_SEEDS) == []
    *_, second, third = rows  # steps of run 2 of iteration 2
    second["same"] = third["same"] = 0.75
    third["empty"] = 0.625
    (same, empty) = experiment.health(rows, OWN_SEEDS)
    assert (
        "Запуск 2 итерации 2: на шаге 2 впервые больше половины ответов батча одинаковы (75,0"
        in same
    )
    assert "на шаге 3 впервые больше половины ответов батча пусты (62,5\u00a0%)" in empty
    assert experiment.health(rows, OWN_SEEDS | {"batch_size": 1}) == []
    assert experiment.health(rows, OWN_SEEDS | {"shared_run_seed": True}) == []  # as run 1

    stopped = stopped_at(2)
    stopped[-1]["same"] = 0.75
    (stop, same) = experiment.health(stopped, LIMITED)
    assert "Запуск 2 итерации 2 остановлен на шаге 2: KL к якорю 12,50 нат" in stop
    assert "max_kl = 10,00; взяты веса до последнего обновления." in stop
    (at_once, *_) = experiment.health(stopped_at(1), LIMITED)
    assert at_once.endswith("ни одного обновления не было.")
    assert "на шаге 2 впервые больше половины ответов батча одинаковы (75,0\u00a0%)" in same


@pytest.mark.parametrize("step", [1, 2, 3])
@pytest.mark.parametrize("kl", [1e-6, 5.0])
def test_a_run_that_max_kl_ended_is_seen_at_whatever_step(step, kl):
    still = summary(kl=kl, difference=0.0)
    rows = stopped_at(step)
    assert experiment.conclusion(still, rows, LIMITED)[-1] == LIMIT_REACHED
    del rows[-1]["stopped"]
    assert experiment.conclusion(still, rows, LIMITED)[-1] != LIMIT_REACHED


def test_what_a_policy_wrote_is_shown_as_text():
    sample = {
        "prompt": "<b>",
        "sft": "<script>x</script> $a$ | [b](c)",
        "warp": "&amp; <img>",
        "sft_reward": 1.0,
        "warp_reward": -1.0,
    }
    table = experiment.samples_html([sample])
    assert "<script>" not in table
    assert "<img>" not in table
    assert "&lt;script&gt;x&lt;/script&gt; $a$ | [b](c)" in table
    assert "&amp;amp; &lt;img&gt;" in table
    assert '<td class="n">1,00</td>' in table
    assert '<td class="n">−1,00</td>' in table


def test_an_answer_that_both_gave_stands_once_and_failures_are_among_the_chosen():
    def sample(gain, warp="b"):
        return {"prompt": "p", "sft": "a", "warp": warp, "sft_reward": 0.0, "warp_reward": gain}

    table = experiment.samples_html([sample(0.0, warp="a")])
    assert table.count("<b>p</b>") == 1
    assert "тот же ответ" in table
    gains = [-3.0, 2.0, 0.0, 1.0, -1.0, 0.5]
    chosen = experiment.chosen_samples([sample(gain) for gain in gains], each=1)
    assert [s["warp_reward"] for s in chosen] == [2.0, 0.0, -3.0]


def test_tables_show_the_quantities_the_text_and_the_parameters():
    results = experiment.results_table(summary(kl=5.0))
    assert list(results.iloc[3]) == ["KL(sft‖warp), нат на ответ", "5,00\u00a0±\u00a00,10", 16]
    text = experiment.text_table(summary(empty=0.25))
    assert list(text.iloc[-1]) == ["Пустых ответов, %", "0,0", "25,0"]
    params = WarpConfig(lr=1e-6, shared_run_seed=True, max_kl=2.5, baseline="loo").model_dump()
    shown = dict(experiment.parameters_table(params).itertuples(index=False))
    assert shown["Adam, lr"] == "10⁻⁶"
    assert shown["Коэффициент при KL, β"] == "0,1"
    assert shown["Seed запусков"] == "один на всех"
    assert shown["Линейный прогрев, шагов"] == "нет"
    assert shown["Остановка запуска при KL к якорю больше, нат"] == "2,5"
    unlimited = experiment.parameters_table(WarpConfig().model_dump())
    assert not any("Остановка" in name for name in unlimited["Параметр"])


def test_angles_say_what_the_merge_averages():
    apart, still = ([{"0": [[0.0, a], [a, 0.0]]}] for a in (85.5, None))
    together = [{"0": [[0.0, 0.0], [0.0, 0.0]], "1": [[0.0, None], [None, 0.0]]}]
    assert experiment.runs_differ(apart)
    assert not experiment.runs_differ(together)
    assert not experiment.runs_differ(still)
    assert list(experiment.angle_rows(apart).iloc[0]) == [1, 1, "85,5", "85,5", "85,5"]
    assert list(experiment.angle_rows(still).iloc[0]) == [1, 1, "—", "—", "—"]
    assert "тензоров — 85,5°;" in experiment.angle_sentence(apart, shared_run_seed=False)
    assert "Угла нет" in experiment.angle_sentence(still, shared_run_seed=False)
    by_construction = "вектор задачи у них один по построению"
    assert by_construction in experiment.angle_sentence(together, shared_run_seed=True)
    measured = experiment.angle_sentence(together, shared_run_seed=False)
    assert by_construction not in measured
    assert "совпадают по направлению" in measured
