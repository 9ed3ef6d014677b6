"""The documentation site builds without a warning, in the environment of requirements/docs.txt."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from core.environments import set_defaults

pytestmark = pytest.mark.integration
set_defaults()
ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = 'source scripts/environment.sh && ensure_environment docs && echo "$environment"'
"""Builds the environment where there is none yet: 29 small packages."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    ready = subprocess.run(
        ["bash", "-ec", ENVIRONMENT], cwd=ROOT, capture_output=True, text=True, check=False, timeout=300
    )
    assert ready.returncode == 0, ready.stderr
    mkdocs = Path(ready.stdout.splitlines()[-1]) / "bin" / "mkdocs"
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [str(mkdocs), "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},  # its authors' notice about another product
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert built.returncode == 0, built.stderr
    assert "WARNING" not in built.stderr, built.stderr
    return folder


def test_the_site_has_every_page(site: Path) -> None:
    assert {path.stem for path in (ROOT / "docs").glob("*.md")} <= {path.stem for path in site.glob("*.html")}


def test_lists_and_tables_are_lists_and_tables(site: Path) -> None:
    """Python-Markdown wants an empty line before a list or a table that follows a paragraph."""
    for path in site.glob("*.html"):
        text = re.sub(r"<(pre|script|style).*?</\1>", "", path.read_text(), flags=re.DOTALL)
        broken = re.findall(r"^(?:<p>)?(?:[-*] |\d+\. |\|).*$", text, re.MULTILINE)
        assert not broken, f"{path.name}: {broken[:3]}"


def test_no_page_asks_another_host_for_fonts(site: Path) -> None:
    for path in site.glob("*.html"):
        assert "fonts.googleapis" not in path.read_text()
