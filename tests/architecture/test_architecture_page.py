from __future__ import annotations

import re

from tests.architecture.python_files import PACKAGE, ROOT

PAGE = ROOT / "ARCHITECTURE.md"
MODULES = re.compile(r"^  (\w+)/ .*: (\w+(?: · \w+)*)$", re.MULTILINE)
FOLDER = re.compile(r"(?<![\w./-])((?:\w+/)+)(?=[\s`|)]|$)", re.MULTILINE)


def test_every_folder_named_in_the_architecture_page_exists() -> None:
    missing = [
        folder
        for folder in sorted(set(FOLDER.findall(PAGE.read_text(encoding="utf-8"))))
        if not (ROOT / folder).is_dir() and not (PACKAGE / folder).is_dir() and not (ROOT / "tests" / folder).is_dir()
    ]
    assert not missing


def test_every_folder_of_the_package_is_on_the_architecture_page() -> None:
    text = PAGE.read_text(encoding="utf-8")
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert [folder for folder in sorted(folders) if f"{folder}/" not in text] == []


def test_every_module_named_beside_a_folder_is_in_it() -> None:
    lines = MODULES.findall(PAGE.read_text(encoding="utf-8"))
    pairs = [(folder, name) for folder, names in lines for name in names.split(" · ")]
    assert pairs
    assert [f"{folder}/{name}" for folder, name in pairs if not (PACKAGE / folder / f"{name}.py").is_file()] == []
