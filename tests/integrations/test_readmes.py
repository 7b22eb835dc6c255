"""What the pages of the integrations say can be found."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [*sorted((ROOT / "integrations").rglob("*.md")), ROOT / "docs" / "integrations.md"]


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_files_that_are_named_are_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = set(re.findall(r"(?:integrations|tests|docs)/[\w/.-]+\w", text))
    assert named
    for name in named:
        assert (ROOT / name).exists(), name
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert (page.parent / target).exists(), target
