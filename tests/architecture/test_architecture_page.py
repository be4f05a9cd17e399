from __future__ import annotations

import re

from tests.architecture.python_files import PACKAGE, ROOT

PAGE = ROOT / "ARCHITECTURE.md"
LAYER = re.compile(r"^  (\w+)/ (.*\n(?:^ {22}.*\n)*)", re.MULTILINE)
NAMES = re.compile(r": (\w+(?: · \w+)+)$", re.MULTILINE)
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
    layers = {folder: NAMES.findall(text) for folder, text in LAYER.findall(PAGE.read_text(encoding="utf-8"))}
    pairs = [(folder, name) for folder, lines in layers.items() for names in lines for name in names.split(" · ")]
    assert {("domain", "windows"), ("stores", "lmdb"), ("execution", "publish")} <= set(pairs)
    assert [f"{folder}/{name}" for folder, name in pairs if not (PACKAGE / folder / f"{name}.py").is_file()] == []


def test_every_module_beside_the_folders_is_on_the_architecture_page() -> None:
    text = PAGE.read_text(encoding="utf-8")
    modules = [path.name for path in PACKAGE.glob("*.py") if path.name != "__init__.py"]
    assert [name for name in sorted(modules) if not re.search(rf"\b{re.escape(name)}", text)] == []
