"""The documents say what there is: the README's tree, the guide's tables, the links, the code blocks."""

import ast
import importlib.util
import re
from pathlib import Path

import pytest

from pipeline.compress import registry
from pipeline.config import RunConfig

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("core", "finops", "evals", "pipeline")
NOT_HERE = {
    "core/_data": "where an installed wheel has it",
    "pipeline/compress/methods/rtn_int4_asym.py": "what CONTRIBUTING tells the reader to write",
    "conf/quant/rtn-int4-asym.yaml": "what CONTRIBUTING tells the reader to write",
}
"""Paths that documents name and a checkout does not have."""
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]


def folders(place: Path) -> set[str]:
    """The folders here that hold something of the product."""
    ignored = {line.strip("/*\n") for line in (ROOT / ".gitignore").read_text().splitlines()} | {"__pycache__"}
    ignored -= {"mlruns"}
    found = {path.name for path in place.iterdir() if path.is_dir() and any(path.iterdir())}
    return {name for name in found if not name.startswith(".") and name not in ignored and "egg-info" not in name}


def tree() -> dict[str, set[str]]:
    """The README's tree: top-level folder -> its rooms."""
    text = (ROOT / "README.md").read_text()
    block = text[text.index("## The tree") :].split("```")[1]
    found: dict[str, set[str]] = {}
    for line in block.strip().splitlines():
        name = line.split("/")[0]
        if line.startswith("  "):
            found[list(found)[-1]].add(name.strip())
        else:
            found[name] = set()
    return found


def test_the_trees_top_is_the_repositorys() -> None:
    assert set(tree()) == folders(ROOT)


@pytest.mark.parametrize("package", PACKAGES)
def test_the_trees_rooms_are_the_packages(package: str) -> None:
    rooms = {name for name in folders(ROOT / package) if (ROOT / package / name / "__init__.py").exists()}
    assert tree()[package] == rooms


def test_the_readme_is_one_screen() -> None:
    text = (ROOT / "README.md").read_text()
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    assert len(prose.split()) <= 450
    for command in ("scripts/pipeline model=smollm2-135m-q4_1 quant=int8", "scripts/test", "auto-gptq", "autoawq"):
        assert command in text


def table_names(page: str, heading: str) -> set[str]:
    """The names in the first column of the first table below a heading."""
    text = (ROOT / "docs" / page).read_text()
    rows = re.findall(r"^\|(.*?)\|", text[text.index(heading) :].split("\n## ")[0], re.MULTILINE)
    return {name for row in rows for name in re.findall(r"`([\w.-]+)`", row)}


def test_the_guide_has_every_method() -> None:
    aliases = {"as-is", "external"}
    assert table_names("guide.md", "## Compression methods") - aliases == set(registry.COMPRESS) - aliases


def test_the_guide_has_every_group() -> None:
    groups = {path.name for path in (ROOT / "conf").iterdir() if path.is_dir()} & set(RunConfig.__dataclass_fields__)
    assert table_names("guide.md", "## Groups and keys") == groups


def test_the_statistics_name_functions_that_exist() -> None:
    rows = re.findall(
        r"^\|.*\| (`.*`) \| `(evals/.*\.py)` \|$", (ROOT / "docs/statistics.md").read_text(), re.MULTILINE
    )
    assert len(rows) >= 9
    for names, path in rows:
        for name in re.findall(r"`(\w+)`", names):
            assert re.search(rf"\b(def|class) {name}\b", (ROOT / path).read_text()), f"{path} has no {name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        if "://" in target:
            continue
        found = page.parent / path if path else page
        assert found.exists(), f"{page.name}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", found.read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in anchors, f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_code_blocks_import_exists(page: Path) -> None:
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
        if not block.startswith(("from ", "import ", '"""')):
            continue
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in PACKAGES:
                assert importlib.util.find_spec(node.module), f"{page.name}: {node.module}"
                file = Path(str(importlib.util.find_spec(node.module).origin))  # type: ignore[union-attr]
                for alias in node.names:
                    known = re.search(rf"\b{alias.name}\b", file.read_text())
                    assert known or (file.parent / f"{alias.name}.py").exists(), f"{page.name}: {alias.name}"


def test_files_that_documents_name_exist() -> None:
    for page in PAGES:
        if page.name == "log.md":  # the log keeps the names of its dates
            continue
        for name in re.findall(
            r"`((?:core|finops|evals|pipeline|conf|scripts|tests|benchmarks|examples)/[^`]*)`", page.read_text()
        ):
            path = name.split(" ")[0]
            if path not in NOT_HERE and not re.search(r"[A-Z<>*]", path):
                assert (ROOT / path).exists(), f"{page.name}: {name}"


def test_the_sites_navigation_has_every_page() -> None:
    pages = {path.name for path in (ROOT / "docs").glob("*.md")}
    assert set(re.findall(r"[\w-]+\.md", (ROOT / "mkdocs.yml").read_text())) == pages
