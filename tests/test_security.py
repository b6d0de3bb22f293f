"""Nobody gets in: by weights, YAML or archives, by what a model writes, by the network."""

import json
import os
import pickle
import shutil
import socket
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import tiny

from reports.build.page import About, Part, compile_page
from reports.text import experiment, figures, show, words
from reports.text.svg import svg_text, tells
from warp_core.config import WarpConfig, load_params
from warp_core.store.errors import ConfigError
from warp_core.warp import run_front, run_warp
from warp_core.world.models import load_classifier, load_policy

ROOT = Path(__file__).resolve().parent.parent


class Creates:
    """Unpickled, it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture
def trap(tmp_path) -> Path:
    """Where an attack that works leaves a folder."""
    return tmp_path / "trap"


# Weights, parameters


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_pickled_weights_are_not_read(name, policy_folders, trap, tmp_path):
    folder = shutil.copytree(policy_folders("llama"), tmp_path / "policy")
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Creates(trap)))
    with pytest.raises(
        ConfigError, match=r"policy: .* cannot load a causal language model from it"
    ):
        load_policy(str(folder))
    assert not trap.exists()
    pickle.loads((folder / name).read_bytes())  # the attack is one
    assert trap.exists()


@pytest.mark.parametrize("load", [load_policy, load_classifier])
def test_code_that_comes_with_a_model_is_not_run(load, trap, policy_folders, tmp_path, monkeypatch):
    """Nor is a terminal asked whether it may be."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    folder = shutil.copytree(policy_folders("gpt2"), tmp_path / "model")
    settings = json.loads((folder / "config.json").read_text())
    names = ("AutoConfig", "AutoModelForCausalLM", "AutoModelForSequenceClassification")
    settings |= {"model_type": "trap", "auto_map": {name: "trap.Trap" for name in names}}
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "trap.py").write_text(f"import os\nos.mkdir({str(trap)!r})\nclass Trap: pass\n")
    with pytest.raises(ConfigError):
        load(str(folder))
    assert not trap.exists()


def test_yaml_makes_no_objects(trap, tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text(f"lr: !!python/object/apply:os.mkdir ['{trap}']\n")
    with pytest.raises(ConfigError, match=r"params\.yaml: cannot be read as YAML"):
        load_params(path)
    assert not trap.exists()


def test_the_project_reads_no_pickles_and_runs_no_models_code():
    for path in [*ROOT.glob("warp_core/**/*.py"), *ROOT.glob("reports/**/*.py")]:
        text = path.read_text(encoding="utf-8").replace('"trust_remote_code": False', "")
        for forbidden in (
            "torch.load",
            "import pickle",
            "trust_remote_code",
            "yaml.load(",
            "eval(",
            "exec(",
        ):
            assert forbidden not in text.replace("literal_eval(", "").replace(".eval(", ""), path


# What a model writes

ATTACKS = [
    "<script>document.title = 'taken'</script>",
    "<img src=x onerror=\"document.title='taken'\">",
    "$x^2$ and $$\\frac{1}{2}$$",
    "a | b | c",
    "[a link](https://example.org)",
    "`code` **bold** _it_",
    "&lt;b&gt; &amp;",
    "</td></table><h1>out</h1>",
    "<style>* {display: none}</style>",
    '"><svg onload=alert(1)>',
    "<!-- comment",
    "\\(x\\) \\[y\\] <a href='javascript:alert(1)'>z</a>",
]


@pytest.fixture(scope="module")
def attacked(tmp_path_factory) -> Path:
    """A page whose title, headings, tables and texts all hold what an attacker would write."""
    folder = tmp_path_factory.mktemp("page")
    rewards = {"sft_reward": 1.0, "warp_reward": 1.0}
    samples = [{"prompt": attack, "sft": attack, "warp": attack} | rewards for attack in ATTACKS]
    tables = [
        experiment.samples_html(samples, count=len(samples)),
        words.table_html(pd.DataFrame({ATTACKS[0]: ATTACKS})),
    ]
    shown = [nbformat.v4.new_output("display_data", {"text/html": table}) for table in tables]
    about = {"kind": "figure", "label": "x", "caption": ATTACKS[0], "panels": [attacked_svg()]}
    about |= {"csv": show.csv_text([{"text": attack} for attack in ATTACKS])}
    shown.append(nbformat.v4.new_output("display_data", {show.MIME: about}))
    cells = [nbformat.v4.new_markdown_cell("# Заголовок"), nbformat.v4.new_code_cell(outputs=shown)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / "a.ipynb")
    (folder / "b.md").write_text(f"# Текст\n\n{ATTACKS[0]}\n\n{ATTACKS[1]}\n", encoding="utf-8")
    parts = [Part("a", folder / "a.ipynb", title=ATTACKS[0]), Part("b", folder / "b.md")]
    page = folder / "page.html"
    text = compile_page(parts, About(ATTACKS[0], ATTACKS[2], ATTACKS[1], ATTACKS[9]))
    page.write_text(text, encoding="utf-8")
    return page


def attacked_svg() -> str:
    """A figure whose labels, marks and name are all attacks."""
    ax = figures.new_axes(440, 900)
    for k, attack in enumerate(ATTACKS):
        (mark,) = ax.plot(0, k, "o")
        tells(mark, attack)
    ax.set_yticks(range(len(ATTACKS)), ATTACKS)
    ax.set_title(ATTACKS[0])
    return svg_text(figures.figure_of(ax), ATTACKS[9])


@pytest.fixture(scope="module")
def browser():
    """Debian's Chromium, driven by Playwright."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("there is no chromium on this machine")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


def visit(browser, path: Path):
    """The page in the browser; what it asked the network for, and what it complained of."""
    page = browser.new_page()
    requests, errors = [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: errors.append(message.text))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("dialog", lambda dialog: errors.append(dialog.message))
    page.goto(path.as_uri(), wait_until="load")
    outside = [url for url in requests if not url.startswith("data:") and url != path.as_uri()]
    return page, outside, errors


def test_in_a_browser_the_attacks_are_just_these_characters(browser, attacked):
    page, outside, errors = visit(browser, attacked)
    assert (outside, errors) == ([], [])
    assert page.title() == ATTACKS[0]
    assert page.locator("script, iframe, form").count() == 0
    assert page.locator("svg").count() == 1  # our own figure
    assert page.locator("img, style").count() == 1  # our own style
    titles = page.locator("svg .told > title").all_text_contents()
    assert titles == page.locator("svg .told > text").all_text_contents() == ATTACKS
    drawn = page.locator("svg text").all_text_contents()
    assert {*ATTACKS} <= {*drawn}
    assert page.locator("svg").get_attribute("aria-label") == ATTACKS[9]
    assert ATTACKS[0] in (page.locator("figcaption").text_content() or "")
    cells = page.locator("table.samples td").all_text_contents()
    assert cells[0::4] == [attack * 2 for attack in ATTACKS]
    assert page.locator("table:not(.samples) tbody th").all_text_contents() == ATTACKS
    assert page.locator("table:not(.samples) thead th").all_text_contents() == [ATTACKS[0]]
    assert (
        page.locator("h1").text_content() == page.locator("h2").first.text_content() == ATTACKS[0]
    )
    assert ATTACKS[1] in (page.locator("footer").text_content() or "")
    assert ATTACKS[0] in (page.locator("main").text_content() or "")
    page.close()


def test_in_a_browser_the_committed_report_asks_for_nothing_and_has_no_error(browser):
    page, outside, errors = visit(browser, ROOT / "reports" / "warp_report.html")
    assert (outside, errors) == ([], [])
    assert page.locator("h1, h2").count() > 5
    assert page.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
    page.close()


# The network


def test_an_experiment_and_its_front_open_no_connection(tiny_params, monkeypatch):
    asked = []

    def refused(*args, **_):
        asked.append(args)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "create_connection", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    config = WarpConfig(**tiny_params)
    run_warp(config)
    run_front(config, etas=[1.0])
    assert not asked


def test_only_a_hub_id_asks_for_the_hub(monkeypatch, tmp_path):
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda *_, **__: pytest.fail("the network was asked")
    )
    for spec in ("./no-such-folder", "/no/such/folder", "runs/no-such-run", str(tmp_path)):
        with pytest.raises(ConfigError, match="given"):
            load_policy(spec)
    tokenizer = tiny.make_tokenizer()
    tiny.save(tiny.make_policy("llama", len(tokenizer)), tokenizer, tmp_path / "policy")
    load_policy(str(tmp_path / "policy"))
