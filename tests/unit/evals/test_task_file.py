"""lm-eval task files of the user's own, looked at before anything is loaded."""

from pathlib import Path

import pytest

from evals.config import SuiteConfig
from evals.quality.task_file import task_file_problem, task_files_digest
from pipeline.plan.plan import make_plan
from tests.unit.pipeline.shapes import FACTS, MACHINE
from tests.unit.pipeline.test_plan import FREE, PRICE, a_config, problems_of

TASK = "task: mine\ndataset_path: json\noutput_type: multiple_choice\ndoc_to_text: !function utils.text\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(TASK)
    return path


def test_a_good_file_has_no_problem(file: Path) -> None:
    assert task_file_problem("mine", file) is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (TASK.replace("mine", "theirs"), "holds the task 'theirs', not 'mine'"),
        ("group: g\ntask: [a, b]\n", "holds no single task: it needs a line 'task: mine'"),
        ("- a\n", "holds no single task"),
        ("a: [", "cannot be read as YAML"),
    ],
)
def test_a_wrong_file_is_one_sentence(file: Path, content: str, message: str) -> None:
    file.write_text(content)
    assert message in str(task_file_problem("mine", file))


def test_an_edited_task_or_its_data_is_another_suite(file: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.json"
    data.write_text("[]")
    file.write_text(TASK + f"dataset_kwargs: {{data_files: {{test: {data}}}}}\n" + f"description: /{'x' * 5000}\n")
    seen = {task_files_digest({"mine": file})}
    data.write_text("[1]")
    seen.add(task_files_digest({"mine": file}))
    (tmp_path / "utils.py").write_text("def text(row): ...")
    seen.add(task_files_digest({"mine": file}))
    file.write_text(file.read_text() + "num_fewshot: 3\n")
    seen.add(task_files_digest({"mine": file}))
    assert len(seen) == 4
    assert task_files_digest({"mine": file}) in seen


def suite_problems(**changes: object) -> dict[str, str]:
    return problems_of(a_config(suite=SuiteConfig(name="own", source="files", tasks=["mine"], **changes)))


def test_the_plan_names_what_is_wrong_with_a_suite_of_files() -> None:
    assert suite_problems() == {"suite.files": "no task file is given for 'mine'"}
    assert "did you mean 'mina'" in suite_problems(files={"mina": "x"})["suite.files"]
    found = suite_problems(files={"mine": "/nowhere/mine.yaml"})
    assert found == {"suite.files.mine": "there is no file /nowhere/mine.yaml"}


def test_a_good_suite_of_files_is_planned(file: Path) -> None:
    suite = SuiteConfig(name="own", source="files", tasks=["mine"], files={"mine": str(file)})
    assert make_plan(a_config(suite=suite), FACTS, MACHINE, PRICE, FREE).candidate is not None
