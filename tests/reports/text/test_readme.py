"""README's tables: between their marks, in English, with decimal points."""

import pandas as pd
import pytest

from reports.text import readme
from warp_core.config import ConfigError

README = "before\n<!-- a, by `make publish` -->\nold\n<!-- end of a -->\nbehind\n"


def test_a_table_stands_between_its_marks():
    made = readme.with_tables(README, {"a": "| new |"})
    assert made == README.replace("old", "| new |")
    assert readme.with_tables(made, {"a": "| new |"}) == made


@pytest.mark.parametrize("damaged", ["", README.replace("<!-- end", "<!-- the end"), README[40:]])
def test_a_readme_without_a_place_for_it_is_refused(damaged):
    with pytest.raises(ConfigError, match=r"<!-- a, by `make publish` --> and <!-- end of a -->"):
        readme.with_tables(damaged, {"a": "| new |"})


def test_experiments_in_english():
    table = pd.DataFrame(
        {
            "№": ["4, контроль"],
            "lr": ["10⁻⁴"],
            "Прирост по обучениям (их число)": ["1,05 (1)"],
            "Прирост, одно обучение": ["1,14\u00a0±\u00a00,13"],
            "KL(warp‖sft)": ["3,84"],
        }
    )
    last = readme.experiments_table(table).splitlines()[-1]
    assert last == "| 4 control | 1.05 (1) | 1.14 ± 0.13 | 3.84 |"
