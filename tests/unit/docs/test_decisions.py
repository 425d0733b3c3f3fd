"""The pages of docs/adr: each has a number of its own, and every link to one leads there."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[3]
PAGES = sorted((ROOT / "docs" / "adr").glob("*.md"))


def test_every_decision_has_a_number_of_its_own_which_its_heading_repeats() -> None:
    assert [number for number, count in Counter(page.name[:4] for page in PAGES).items() if count > 1] == []
    for page in PAGES:
        assert page.read_text().startswith(f"# {int(page.name[:4])}. "), page.name


def test_links_to_decisions_lead_to_a_page_and_tell_its_number() -> None:
    link = re.compile(r"\[ADR (\d+)\]\((?:adr/)?((\d{4})-[\w-]+\.md)\)")
    found = [
        (page.name, *each)
        for page in (*(ROOT / "docs").glob("*.md"), *PAGES, *ROOT.glob("*.md"))
        for each in link.findall(page.read_text())
    ]
    assert found
    names = {page.name for page in PAGES}
    assert [each for each in found if each[2] not in names or int(each[1]) != int(each[3])] == []
