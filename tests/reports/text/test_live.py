"""An experiment's curves grow while it is computed; Ctrl-C leaves them and a sentence."""

import pytest

from reports.text import live
from warp_core.config import WarpConfig
from warp_core.store.files import sealed_jsonl
from warp_core.warp import run_warp


@pytest.fixture
def shown(monkeypatch):
    """What was drawn (rows of each figure) and said."""
    drawn, said = [], []

    def figure(panels, label, caption, curves, live):
        assert caption.startswith("Эксперимент tiny, по шагам: ")
        drawn.append(curves.to_dict("records"))

    monkeypatch.setattr(live.show, "figure", figure)
    monkeypatch.setattr(live.show, "text", said.append)
    monkeypatch.setattr(live, "display", lambda *_, **__: None)
    monkeypatch.setattr(live, "SECONDS", 0.05)
    return drawn, said


def test_the_curves_grow_and_the_last_ones_are_the_run_folders(tiny_params, shown):
    drawn, said = shown
    config = WarpConfig(**tiny_params)
    with live.curves(config):
        run_warp(config)
    lengths = [len(rows) for rows in drawn]
    assert lengths == sorted(lengths)
    assert len(lengths) > 1
    metrics = sealed_jsonl(config.folder / "metrics.jsonl")
    assert drawn[-1] == metrics
    assert len(metrics) == config.iterations * config.runs * config.steps
    assert not said


def test_ctrl_c_leaves_a_sentence_and_goes_on_as_an_error(tiny_params, shown):
    drawn, said = shown
    config = WarpConfig(**tiny_params)
    run_warp(config)
    with pytest.raises(KeyboardInterrupt), live.curves(config):
        raise KeyboardInterrupt
    assert said == ["Остановлено. Записанные шаги сохранены, та же ячейка продолжит с них."]
    assert len(drawn[-1]) == config.iterations * config.runs * config.steps
