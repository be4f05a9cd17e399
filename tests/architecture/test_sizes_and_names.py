from __future__ import annotations

import ast
import re

import pytest

from tests.architecture.python_files import body_lines, functions, own_files, package_files

MODULE_LINES = 400
BODY_LINES = 40
UNFINISHED = re.compile(r"\b(?:NotImplementedError|TODO|FIXME|XXX)\b")
EMPTY_NAMES = {"util", "utils", "helper", "helpers", "common", "manager", "managers", "misc"}


def test_no_module_is_longer_than_400_lines() -> None:
    long = [f"{file.name}: {file.lines} lines" for file in own_files() if file.lines > MODULE_LINES]
    assert not long, "split along what the parts mean:\n" + "\n".join(long)


def test_no_function_body_is_longer_than_40_lines() -> None:
    long = [
        f"{file.name}:{body.line} {body.name}: {body.lines} lines"
        for file in own_files()
        for body in file.bodies
        if body.lines > BODY_LINES
    ]
    assert not long, "give the steps names:\n" + "\n".join(long)


def test_no_module_is_named_after_nothing() -> None:
    empty = [file.name for file in own_files() if EMPTY_NAMES & set(file.module.split("."))]
    assert not empty, f"name modules after what they hold: {empty}"


def test_nothing_in_the_package_is_left_unfinished() -> None:
    left = [
        f"{file.name}:{number}: {word}"
        for file in package_files()
        for number, line in enumerate(file.text.splitlines(), 1)
        for word in UNFINISHED.findall(line)
    ]
    assert not left, "\n".join(left)


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("def f():\n    '''Say.'''\n", 0),
        ("def f():\n    '''Say.'''\n    a = 1\n\n    b = 2\n", 3),
        ("def f(): pass\n", 1),
    ],
)
def test_body_lines_count_the_body_without_its_docstring(source: str, lines: int) -> None:
    (function,) = functions(ast.parse(source))
    assert body_lines(function) == lines
