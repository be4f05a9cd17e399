"""Which code of a project belongs to a transformation, tried on modules that are written to disk and imported."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import itertools
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from featurekit_dagster import (
    BatchSource,
    Entity,
    Field,
    FileConfig,
    FilteredSource,
    Int64,
    String,
    Timestamp,
    batch_feature_view,
)
from featurekit_dagster.planning.called_code import called_code_text
from featurekit_dagster.planning.fingerprint import fingerprint

Text = Callable[..., str]
_numbers = itertools.count()
VIEW = "from helpers import clean\ndef view(rows):\n    return clean(rows)\n"
CLEAN = "def clean(rows):\n    return rows + 1\n"


@pytest.fixture
def text_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Text]:
    """Write modules, import `features` afresh, and return the text of its `view`."""

    def forget() -> None:
        for name, module in list(sys.modules.items()):
            if str(getattr(module, "__file__", None)).startswith(str(tmp_path)):
                del sys.modules[name]

    def read(**modules: str) -> str:
        folder = tmp_path / f"project{next(_numbers)}"
        for name, source in modules.items():
            path = folder / f"{name.replace('__', '/')}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(dedent(source))
        forget()
        importlib.invalidate_caches()
        with monkeypatch.context() as patched:
            patched.setattr(sys, "path", [str(folder), *sys.path])
            return called_code_text(importlib.import_module("features").view)

    yield read
    forget()


def test_a_changed_helper_changes_the_text(text_of: Text) -> None:
    assert text_of(features=VIEW, helpers=CLEAN) != text_of(features=VIEW, helpers=CLEAN.replace("1", "2"))


@pytest.mark.parametrize(
    "same",
    [
        "def clean(rows):\n    # plainly\n    return rows + 1\n",
        'def clean(rows):\n    """Clean."""\n    return (\n        rows\n        + 1\n    )\n',
        "def clean(rows: int) -> int:\n    return rows + 1\n",
        "def other(rows):\n    return rows - 1\n\n\n" + CLEAN,
        CLEAN + "UNUSED = 3\n",
        "import math\n" + CLEAN,
    ],
    ids=["comment", "docstring and layout", "annotations", "another helper", "another constant", "another import"],
)
def test_what_is_not_the_helpers_code_changes_nothing(text_of: Text, same: str) -> None:
    assert text_of(features=VIEW, helpers=CLEAN) == text_of(features=VIEW, helpers=same)


def test_a_local_variables_name_is_code(text_of: Text) -> None:
    renamed = "def clean(lines):\n    return lines + 1\n"
    assert text_of(features=VIEW, helpers=CLEAN) != text_of(features=VIEW, helpers=renamed)


def test_neither_order_nor_module_of_definitions_matters(text_of: Text) -> None:
    one = "def b():\n    return 2\ndef a():\n    return b()\n"
    two = "def a():\n    return b()\ndef b():\n    return 2\n"
    view = "def view(rows):\n    return a() + b()\n"
    texts = {
        text_of(features=one + view),
        text_of(features=two + view),
        text_of(features="from others import a, b\n" + view, others=one),
    }
    assert len(texts) == 1


def test_two_helpers_that_change_places_are_a_change(text_of: Text) -> None:
    view = "import one, two\ndef view(rows):\n    return one.clean(rows) - two.clean(rows)\n"
    first, second = CLEAN, CLEAN.replace("1", "2")
    assert text_of(features=view, one=first, two=second) != text_of(features=view, one=second, two=first)


@pytest.mark.parametrize(
    "view",
    [
        "import helpers\ndef view(rows):\n    return helpers.clean(rows)\n",
        "import helpers as h\ndef view(rows):\n    return h.clean(rows)\n",
        "from helpers import *\ndef view(rows):\n    return clean(rows)\n",
        "from helpers import clean as tidy\ndef view(rows):\n    return tidy(rows)\n",
        "def view(rows):\n    from helpers import clean\n    return clean(rows)\n",
        "def view(rows):\n    import helpers\n    return helpers.clean(rows)\n",
        "from helpers import clean\nview = lambda rows: clean(rows)\n",
        "from helpers import clean\none, view = lambda rows: rows, lambda rows: clean(rows)\n",
        "from functools import partial\nfrom helpers import clean\nview = partial(clean)\n",
        "from helpers import clean\ndef view(rows, how=clean):\n    return how(rows)\n",
        "from helpers import clean\nDO = {'it': clean}\ndef view(rows):\n    return DO['it'](rows)\n",
        "from helpers import clean\ndef view(rows):\n    return [(lambda row: clean(row))(row) for row in rows]\n",
        "from helpers import clean\nclass Cleaner:\n    def do(self, rows):\n        return clean(rows)\n"
        "cleaner = Cleaner()\ndef view(rows):\n    return cleaner.do(rows)\n",
        "from helpers import clean\nfrom functools import cache\n@cache\ndef view(rows):\n    return clean(rows)\n",
        "from helpers import clean\ndef make(how):\n    def view(rows):\n        return how(rows)\n    return view\n"
        "view = make(clean)\n",
        "from helpers import clean\nimport functools\ndef twice(f):\n    @functools.wraps(f)\n    def g(rows):\n"
        "        return f(f(rows))\n    return g\n@twice\ndef view(rows):\n    return clean(rows)\n",
        "import functools, helpers\nclean = functools.cache(helpers.clean)\ndef view(rows):\n    return clean(rows)\n",
    ],
)
def test_a_helper_is_followed_however_it_is_reached(text_of: Text, view: str) -> None:
    first = text_of(features=view, helpers=CLEAN)
    assert first == text_of(features=view, helpers="# a comment\n" + CLEAN)
    assert first != text_of(features=view, helpers=CLEAN.replace("1", "2"))


def test_helpers_of_helpers_constants_and_classes_are_followed(text_of: Text) -> None:
    modules = {
        "features": VIEW,
        "helpers": "from rates import RATE\nfrom deep.models import Model\n"
        "def clean(rows):\n    return Model(rows).value * RATE\n",
        "rates": "BASE = 2\nRATE = BASE * 3\n",
        "deep____init__": "",
        "deep__models": "from .base import Base\nclass Model(Base):\n    pass\n",
        "deep__base": "class Base:\n    def __init__(self, rows):\n        self.value = rows\n",
    }
    texts = {
        text_of(**modules),
        text_of(**modules | {"rates": modules["rates"].replace("2", "4")}),
        text_of(**modules | {"rates": modules["rates"] + "RATE += 1\n"}),
        text_of(**modules | {"deep__base": modules["deep__base"].replace("= rows", "= rows + 1")}),
        text_of(**modules | {"deep__models": modules["deep__models"].replace("pass", "value = 3")}),
    }
    assert len(texts) == 5


def test_a_decorator_of_the_project_belongs_to_it_and_what_it_is_given_too(text_of: Text) -> None:
    view = "from marks import times\n@times({})\ndef view(rows):\n    return rows\n"
    marks = """
        import functools

        def times(number):
            def decorate(function):
                @functools.wraps(function)
                def call(rows):
                    return function(rows) * number
                return call
            return decorate
        """
    texts = [
        text_of(features=view.format(2), marks=marks),
        text_of(features=view.format(3), marks=marks),
        text_of(features=view.format(2), marks=marks.replace("*", "+")),
    ]
    assert len(set(texts)) == 3
    assert texts[0] == text_of(features=view.format(2), marks=marks)


def test_what_a_function_was_made_with_belongs_to_it(text_of: Text) -> None:
    view = "def make(columns, rate):\n    def view(rows):\n        return rows[columns] * rate\n    return view\n"
    given = ["(['a'], 2)", "(['a', 'b'], 2)", "(['a'], 3)", "({'a': 1}, 2)", "({1, 2}, 2)", "(None, b'x')"]
    assert len({text_of(features=f"{view}view = make{each}\n") for each in given}) == len(given)


def test_functions_that_call_each_other_end(text_of: Text) -> None:
    view = "def even(n):\n    return n == 0 or odd(n - 1)\ndef odd(n):\n    return n != 0 and even(n - 1)\n"
    view += "def view(rows):\n    return even(rows) or view(rows)\n"
    assert text_of(features=view) == text_of(features=view)
    assert text_of(features=view) != text_of(features=view.replace("!=", ">"))


def test_a_chain_of_two_thousand_helpers_is_followed_to_its_end(text_of: Text) -> None:
    chain = "".join(f"def f{n}(x):\n    return f{n + 1}(x)\n" for n in range(2000)) + "def f2000(x):\n    return x\n"
    view = "def view(rows):\n    return f0(rows)\n"
    assert text_of(features=chain + view) != text_of(features=chain.replace("return x", "return -x") + view)


def test_libraries_are_not_followed(text_of: Text) -> None:
    view = "import json, pandas as pd\nfrom statistics import mean\n"
    view += "def view(rows):\n    return json.dumps(pd.DataFrame(rows).size) + mean(rows)\n"
    assert "#" not in text_of(features=view)
    assert "#" in text_of(features=view.replace("from statistics import mean", "def mean(rows):\n    return rows"))


def _compiled(source: str) -> dict[str, Any]:
    made: dict[str, Any] = {"__name__": "nowhere"}
    exec(source, made)
    return made


def test_what_a_function_remembers_while_it_runs_is_not_its_code() -> None:
    made = _compiled("def make():\n    seen = []\n    def view(x):\n        return seen.append(x)\n    return view\n")
    view = made["make"]()
    before = called_code_text(view)
    view(1)
    assert called_code_text(view) == before


def test_a_module_under_another_name_and_an_environment_variable_change_nothing(
    text_of: Text, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = "import os\nHOME = os.environ.get('SOME_HOME')\ndef view(rows):\n    return HOME\n"
    monkeypatch.setenv("SOME_HOME", "a")
    first = text_of(features=view)
    monkeypatch.setenv("SOME_HOME", "b")
    assert text_of(features="from elsewhere import view\n", elsewhere=view) == first


def test_a_file_that_is_loaded_by_its_path_has_the_same_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, source in {"__init__": "", "views": VIEW.replace("helpers", "project_rates.clean")}.items():
        (tmp_path / "project_views").mkdir(exist_ok=True)
        (tmp_path / "project_views" / f"{name}.py").write_text(source)
    (tmp_path / "project_rates").mkdir()
    (tmp_path / "project_rates" / "clean.py").write_text(CLEAN)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    imported = importlib.import_module("project_views.views")
    spec = importlib.util.spec_from_file_location("views", tmp_path / "project_views" / "views.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    assert called_code_text(imported.view) == called_code_text(loaded.view)
    assert "Add" in called_code_text(loaded.view)


def test_a_file_of_a_project_is_parsed_once_for_all_of_its_views(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    helpers = "".join(
        f"RATE_{n} = {n}\ndef clean_{n}(rows):\n" + "".join(f"    rows = rows + {m} * RATE_{n}\n" for m in range(20))
        for n in range(100)
    )
    views = "import many_helpers\n" + "".join(
        f"def view_{n}(rows):\n    return many_helpers.clean_{n}(rows) + many_helpers.clean_{(n + 1) % 100}(rows)\n"
        for n in range(100)
    )
    (tmp_path / "many_helpers.py").write_text(helpers)
    (tmp_path / "many_views.py").write_text(views)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    module = importlib.import_module("many_views")
    declared = [_declared(getattr(module, f"view_{n}"), f"v{n}") for n in range(100)]
    parsed: list[str] = []
    parse = ast.parse

    def counted(source: str) -> ast.AST:
        parsed.append(source)
        return parse(source)

    monkeypatch.setattr(ast, "parse", counted)
    assert len(set(map(fingerprint, declared))) == 100
    assert sorted(parsed) == sorted([helpers, views])


def _declared(function: Callable[..., Any], name: str) -> Any:
    source = BatchSource(name="s", batch_config=FileConfig(uri="f.parquet", file_format="parquet", timestamp_field="t"))
    return batch_feature_view(
        name=name,
        sources=[FilteredSource(source)],
        entities=[Entity(name="user", join_keys=[Field("user_id", String)])],
        mode="pandas",
        schema=[Field("user_id", String), Field("t", Timestamp), Field("n", Int64)],
        batch_schedule=timedelta(days=1),
        feature_start_time=datetime(2024, 1, 1, tzinfo=UTC),
        offline=True,
    )(function)
