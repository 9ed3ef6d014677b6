"""What is looked at before the teacher is loaded, and the settings whose hash names a run and its checkpoints."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from core.environments import versions
from core.errors import PlanError, Problem
from core.files import digest_file, plain
from pipeline.checkpoints.facts import facts_from_folder
from pipeline.config import CalibConfig, DistillConfig
from pipeline.data.wheels import CONTEXTS
from pipeline.distill.checkpoint import CheckpointStore
from pipeline.distill.data import check_sources
from pipeline.distill.preemption import PROBE_BYTES, grace_problem
from pipeline.distill.student_size import num_dropped, student_parameters
from pipeline.distill.students import check_given_student

TOOLS = ("transformers", "torch", "accelerate")
"""Packages whose versions decide a student's bits."""


def what_decides(base_key: str, config: DistillConfig, calib: CalibConfig, seed: int) -> dict[str, object]:
    """All that decides the student's weights; its hash names the run and its checkpoints."""
    settings = {key: value for key, value in plain(config).items() if key not in ("name", "spot")}
    given = config.student.path
    settings["data"]["sources"] = [
        source if source in CONTEXTS or not Path(source).is_file() else digest_file(Path(source))
        for source in config.data.sources
    ]
    if given is not None:
        settings["student"]["path"] = None  # the student's own key stands for its content
    return {
        "base": base_key,
        "distill": settings,
        "calib": plain(calib) if needs_calibration(config) else None,
        "seed": seed,
        "tools": versions(Path(sys.executable), *TOOLS),
    }


def needs_calibration(config: DistillConfig) -> bool:
    """Whether the cut is measured on text."""
    student = config.student
    measured_depth = student.drop_layers is None and student.drop_fraction is not None
    return student.path is None and (
        measured_depth or student.intermediate_size is not None or student.num_kv_heads is not None
    )


def preflight(base: Path, config: DistillConfig, plan_hash: str, plan: Mapping[str, object], own_place: Path) -> None:
    """Look at everything that can be wrong outside the configuration itself, before the teacher is loaded.

    `own_place` is where checkpoints go without a URL.

    Raises:
        PlanError: a problem with the grace period.
        UserError: the text, the student or the place for checkpoints will not do.

    """
    check_sources(config.data.sources)
    facts = facts_from_folder("teacher", base)
    problems = _check_cut(config, facts.num_layers)
    if problems:
        raise PlanError(problems)
    if config.student.path is not None:
        folder = Path(config.student.path)
        check_given_student(base, folder)
        num_parameters = facts_from_folder("student", folder).num_parameters
    else:
        num_parameters = student_parameters(config.student, facts)
    places = CheckpointStore(config.spot.url or str(own_place), config.spot.keep)
    speed = places.probe(PROBE_BYTES)
    if config.spot.url is not None:
        places.check_plan(plan_hash, plan)
    problem = grace_problem(config.spot, num_parameters, speed)
    if problem is not None:
        raise PlanError([problem])


def _check_cut(config: DistillConfig, num_layers: int) -> list[Problem]:
    """The layers, against the checkpoint itself: the plan may have known only the configured shape."""
    student = config.student
    outside = [layer for layer in student.drop_layers or [] if not 0 <= layer < num_layers]
    if outside or num_dropped(student, num_layers) >= num_layers:
        message = f"{outside or student.drop_layers} of a model with layers 0 to {num_layers - 1}"
        return [Problem("distill.student.drop_layers", message)]
    return []
