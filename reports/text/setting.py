"""In what the experiments here differ from the paper's and from the seed report's."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from reports.text.words import decimal, power_text

PAPER = {  # arXiv 2406.16768; «—» is what it does not say
    "policy": "Gemma 7B",
    "reward": "модель предпочтений (размер не указан)",
    "iterations": "до 5",
    "runs": "2 (до 5)",
    "steps": "9000",
    "batch_size": "128",
    "lr": "10⁻⁶",
    "warmup_steps": "100",
    "beta": "0,1",
    "mu": "0,01",
    "eta": "0,5; конечный 0,3",
    "temperature": "0,9",
    "max_new_tokens": "—",
    "baseline": "—",
    "differ": "порядком промптов",
    "trainings": "1; рис. 4b — 5",
}
SEED_REPORT = {
    "policy": "—", "reward": "почти постоянна", "iterations": "2", "runs": "2", "steps": "10",
    "batch_size": "—", "lr": "10⁻⁶, 10⁻³, меньше 10⁻³", "warmup_steps": "длинный или нет",
    "beta": "0,1", "mu": "0,01", "eta": "0,5", "temperature": "—", "max_new_tokens": "—",
    "baseline": "—", "differ": "видимо, ничем (общий seed)", "trainings": "1",
}  # fmt: skip
NAMES = {
    "policy": "Политика",
    "reward": "Награда",
    "iterations": "Итераций I",
    "runs": "Запусков M",
    "steps": "Шагов T",
    "batch_size": "Ответов в батче",
    "lr": "lr (Adam)",
    "warmup_steps": "Прогрев, шагов",
    "beta": "Коэффициент при KL, β",
    "mu": "Скорость EMA, μ",
    "eta": "LITI, η",
    "temperature": "Температура",
    "max_new_tokens": "Новых токенов, не более",
    "baseline": "Бейзлайн",
    "differ": "Запуски различаются",
    "trainings": "Обучений на утверждение",
}


def deviations_table(base: Mapping[str, Any], studies: Mapping[str, Any]) -> pd.DataFrame:
    """A row a setting: the paper, the seed report, the four experiments, and the studies that do not have
    their parameters.

    Args:
        base: flat parameters of the four experiments. studies: those of the studies.
    """
    here = {"policy": "SmolLM2-135M-Instruct", "reward": "MiniLM-L6, оценки людей"}
    ours = _texts(base) | here | {"lr": "10⁻⁶, 10⁻³, 10⁻⁴", "warmup_steps": "100 или нет"}
    ours |= {"differ": "ничем; в контроле — значением seed", "trainings": "1 и 5 (исследование)"}
    of_studies = _texts(studies) | here
    of_studies |= {"iterations": "1 (до 4)", "runs": "1–5", "steps": f"{studies['steps']} (до 240)"}
    eta = f"{decimal(studies['eta'])} (от 0,3 до 0,8); у фронта от 0 до 2"
    of_studies |= {"eta": eta, "beta": f"{decimal(studies['beta'])} (от 0 до 0,2)"}
    of_studies |= {
        "mu": f"{decimal(studies['mu'])} (от 0,01 до 0,2)",
        "differ": "значением seed: промптами и ответами",
        "trainings": "3 или 5",
    }
    columns = (PAPER, SEED_REPORT, ours, of_studies)
    rows = [(name, *(column.get(key, "—") for column in columns)) for key, name in NAMES.items()]
    names = ["Статья", "Исходный отчёт", "Четыре эксперимента", "Остальные исследования"]
    return pd.DataFrame(rows, columns=["Что", *names])


def _texts(params: Mapping[str, Any]) -> dict[str, str]:
    plain = ("iterations", "runs", "steps", "batch_size", "max_new_tokens")
    texts = {key: str(params[key]) for key in plain if key in params}
    texts |= {key: decimal(params[key]) for key in ("beta", "mu", "eta", "temperature")}
    texts |= {"lr": power_text(params["lr"]), "warmup_steps": str(params["warmup_steps"] or "нет")}
    return texts | {"baseline": {"none": "нет", "loo": "leave-one-out"}[params["baseline"]]}
