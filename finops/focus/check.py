"""A FOCUS file through focus-validator 2.2.1, with the rules that are known to be wrong waived one by one.

The validator exits with 0 when rules fail and skips its conditional rules when not told what applies: so its JUnit
report is read, and every criterion that holds for our files is named. Rules that it passes whatever a file contains are
evaluated beside it (`finops.focus.extra_rules`). It runs from its own folder, since it opens its
currency table by a relative path, and from its own environment (requirements/focus.txt, Python 3.12).
"""

from __future__ import annotations

import subprocess
import tempfile
import xml.etree.ElementTree as ET
from dataclasses import dataclass, replace
from pathlib import Path

from core.errors import ToolError, UserError
from finops.focus.extra_rules import Breach, blind_rules, find_breaches
from finops.focus.files import read_rows

APPLICABLE = (
    "ACCOUNT_NAMING_SUPPORTED",
    "AVAILABILITY_ZONE_SUPPORTED",
    "BILLING_BASED_ON_PROVISIONED_RESOURCES_SUPPORTED",
    "COMMITMENT_DISCOUNT_SUPPORTED",
    "MULTIPLE_BILLING_ACCOUNT_TYPES_SUPPORTED",
    "MULTIPLE_PRICING_CATEGORIES_SUPPORTED",
    "MULTIPLE_SUB_ACCOUNT_TYPES_SUPPORTED",
    "NEGOTIATED_PRICING_SUPPORTED",
    "PRICING_BILLING_CURRENCY_DIFFERENCES_SUPPORTED",
    "PUBLIC_PRICE_LIST_SUPPORTED",
    "REGION_SUPPORTED",
    "RESOURCE_TYPE_ASSIGNMENT_SUPPORTED",
    "SUB_ACCOUNT_SUPPORTED",
    "TAGGING_SUPPORTED",
    "UNIT_PRICING_SUPPORTED",
    "USAGE_MEASUREMENT_SUPPORTED",
)
"""All criteria but capacity reservations and virtual currencies, which the ledger does not have."""

_STATUS = (
    "the requirements model 1.2.0.1 tests `CommitmentDiscountId is null` where the rule says `is not null and the "
    "category is Usage`, so it contradicts CommitmentDiscountStatus-C-003-C on every row without a commitment: "
    "FinOps-Open-Cost-and-Usage-Spec/FOCUS_Spec#2393"
)
WAIVERS = {
    "CommitmentDiscountStatus-C-004-C": _STATUS,
    "CommitmentDiscountStatus-C-002-C": f"parent of C-004-C: {_STATUS}",
    "CommitmentDiscountStatus-C-000-C": f"parent of C-004-C: {_STATUS}",
    "InvoiceId-C-005-C": (
        "`not null when the charge is associated with an invoice` carries no condition in the model, so it and "
        "InvoiceId-C-004-C (`null when it is not`) cannot both pass; their parent C-003-C does pass. The class of "
        "defect is FinOps-Open-Cost-and-Usage-Spec/FOCUS_Spec#2394. Our charges belong to no invoice"
    ),
}
"""Rules that the validator gets wrong, with the defect. Review the list whenever the validator's version changes."""


@dataclass(frozen=True)
class FocusReport:
    """What was found. `failed` are rules outside the waivers; `unused` waivers did not fail and can go."""

    num_rules: int
    """Of the validator."""
    num_skipped: int
    failed: tuple[str, ...]
    waived: tuple[str, ...]
    unused: tuple[str, ...]
    num_blind: int = 0
    """Rules that the validator does not see broken, evaluated here."""
    breaches: tuple[Breach, ...] = ()
    """Which of these are broken."""

    @property
    def passed(self) -> bool:
        """Whether every rule passed, was skipped as untestable, or is waived."""
        return not self.failed and not self.breaches and self.num_rules > 0

    def __str__(self) -> str:
        """A few lines for people."""
        lines = [
            f"{self.num_rules} rules: {len(self.failed)} failed, {len(self.waived)} waived, "
            f"{self.num_skipped} not testable by the validator",
            f"{self.num_blind} rules that the validator does not apply, evaluated here: {len(self.breaches)} failed",
            *(f"  FAILED {name}" for name in self.failed),
            *(f"  FAILED {one.rule}: {one.says} ({one.num_rows} rows, first {one.first})" for one in self.breaches),
            *(f"  waived {name}: {WAIVERS[name]}" for name in self.waived),
            *(f"  waiver not needed any more: {name}" for name in self.unused),
        ]
        return "\n".join(lines)


def check(file: Path, validator: str = "focus-validator", timeout_s: float = 600.0) -> FocusReport:
    """Validate a CSV or Parquet file. Raises `UserError` without file or validator, `ToolError` where it breaks."""
    if not file.is_file():
        raise UserError(f"focus check: there is no file {file}")
    folder = _package_folder(validator)
    with tempfile.TemporaryDirectory() as scratch:
        output, log = Path(scratch) / "report.xml", Path(scratch) / "log.txt"
        command = [
            validator, "--data-file", str(file.resolve()), "--validate-version", "1.2", "--block-download",
            "--applicability-criteria", ",".join(APPLICABLE), "--output-type", "unittest",
            "--output-destination", str(output),
        ]  # fmt: skip
        with log.open("w") as stream:
            done = subprocess.run(
                command,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                timeout=timeout_s,
                check=False,
                start_new_session=True,  # in a background job a terminal would stop it
            )
        if done.returncode != 0 or not output.exists():
            raise ToolError(f"focus-validator ended with {done.returncode}", log)
        found = _read(output)
    rules = blind_rules(folder)
    breaches = find_breaches(rules, read_rows(file))
    return replace(found, num_blind=len(rules), breaches=tuple(breaches))


def _package_folder(validator: str) -> Path:
    """The folder that contains the validator's package, asked of the Python beside its program."""
    import shutil

    program = shutil.which(validator)
    python = Path(program).resolve().parent / "python" if program else None
    if python is None or not python.exists():
        raise UserError(
            f"--validator: no program '{validator}' with its Python beside it\n"
            "    -> make its environment from requirements/focus.txt with Python 3.12 and pass .../bin/focus-validator"
        )
    code = "import focus_validator, pathlib; print(pathlib.Path(focus_validator.__file__).parent.parent)"
    found = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=False, cwd="/")
    if found.returncode != 0:
        raise UserError(f"--validator: {python} cannot import focus_validator: {found.stderr.strip()[-300:]}")
    return Path(found.stdout.strip())


def _read(report: Path) -> FocusReport:
    failed: list[str] = []
    waived: list[str] = []
    num_rules = num_skipped = 0
    for case in ET.parse(report).getroot().iter("testcase"):
        rule = str(case.get("name")).split(" ")[0]
        num_rules += 1
        num_skipped += case.find("skipped") is not None
        if case.find("failure") is not None or case.find("error") is not None:
            (waived if rule in WAIVERS else failed).append(rule)
    unused = tuple(name for name in WAIVERS if name not in waived)
    return FocusReport(num_rules, num_skipped, tuple(failed), tuple(waived), unused)
