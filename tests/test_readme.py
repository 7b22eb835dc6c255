"""What the README shows can be done: its Python runs, its commands exist, its links lead somewhere."""

import re
from pathlib import Path

import pytest

from scsco_fast.cli import main

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    with pytest.warns(UserWarning, match="RANDOM"):
        exec(compile(code, "README.md", "exec"), {})
    assert "'consistency'" in capsys.readouterr().out


def test_the_commands_exist() -> None:
    for command in set(re.findall(r"^    scsco ([\w-]+)", README, re.MULTILINE)):
        assert main([command, "--help"]) == 0
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(re.findall(r"make (demo|test|lint|docs|bench)", README)) <= set(targets)


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert target.startswith("http") or (page.parent / target).exists(), target
