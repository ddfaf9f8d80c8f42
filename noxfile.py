"""The model tests on every supported version of transformers, each in a fresh environment.

pip install -c constraints.txt nox
nox                              # all that follows
nox -s models                    # the model tests, and saved folders loaded by strangers, on each version
nox -s "models(4.57.6)"          # on one of them
nox -s exchange                  # folders saved with the oldest version load with the newest, and the other way round
nox -s page                      # the page of recipes/space, in a browser; Chromium must be there
nox -t ci                        # what .ci/run adds to the README's commands: the oldest version, and the exchange

A version is supported if there is a file of constraints for it, which says what it is tested next to.
"""

from __future__ import annotations

import re
import shutil
import sys
from importlib.metadata import distributions
from pathlib import Path

import nox


ROOT = Path(__file__).parent
MODEL_TESTS = [
    f"tests/model/test_{name}.py"
    for name in "configuration_lstmpool modeling_lstmpool pooling_lstmpool capture library backbones "
    "families own_code_backbone remote_code pairs_lstmpool exits_lstmpool trainer".split()
]
TEST_REQUIREMENTS = ("accelerate", "datasets", "hypothesis", "pytest")  # no extra: those are for the newest version


def constraints_by_version() -> dict[str, str]:
    """Version of transformers -> name of its file of constraints, the oldest first."""
    found = {}
    for path in ROOT.glob("constraints*.txt"):
        found[re.search(r"^transformers==(\S+)$", path.read_text(), re.MULTILINE).group(1)] = path.name
    return dict(sorted(found.items(), key=lambda item: [int(part) for part in item[0].split(".")]))


CONSTRAINTS = constraints_by_version()
OLDEST, *_, NEWEST = CONSTRAINTS
VERSIONS = [nox.param(version, id=version, tags=["ci"] if version == OLDEST else []) for version in CONSTRAINTS]


@nox.session
@nox.parametrize("version", VERSIONS)
def models(session: nox.Session, version: str) -> None:
    """The model tests, and saved folders loaded by strangers."""
    session.install("-c", CONSTRAINTS[version], "-e", ".", *TEST_REQUIREMENTS)
    session.run("pytest", "-q", *MODEL_TESTS, *session.posargs)


def interpreter(session: nox.Session, version: str, work: Path) -> str:
    """A Python with this version of transformers: the one that runs nox if it has it, else a new environment's."""
    here = {name: [found.version for found in distributions(name=name)] for name in ("transformers", "lstmpool")}
    if here["transformers"] == [version] and here["lstmpool"]:
        return sys.executable
    python = str(work / version / "venv" / "bin" / "python")
    requirements = ("-c", CONSTRAINTS[version], "-e", ".", "pytest")  # the tests' tiny models come with pytest
    session.run("python3", "-m", "venv", str(work / version / "venv"), external=True)
    session.run(python, "-m", "pip", "install", "-q", *requirements, external=True)
    return python


@nox.session(venv_backend="none", tags=["ci"])
def exchange(session: nox.Session) -> None:
    """A folder saved with one version loads with the other, and gives the same logits."""
    work = Path(session.create_tmp())
    shutil.rmtree(work)
    python = {version: interpreter(session, version, work) for version in (OLDEST, NEWEST)}
    for version in python:
        models = str(work / version / "models")
        session.run(python[version], "-m", "tests.model.exchange", "save", models, external=True)
    (work / "empty").mkdir()
    with session.chdir(work / "empty"):
        for saved_with, loaded_with in ((OLDEST, NEWEST), (NEWEST, OLDEST)):
            check = (str(ROOT / "tests/model/exchange.py"), "check", str(work / saved_with / "models"))
            session.run(python[loaded_with], "-I", *check, external=True)


@nox.session
def page(session: nox.Session) -> None:
    """The page to try a model on, in a browser."""
    session.install("-c", "constraints.txt", "-e", ".[page-test]", *TEST_REQUIREMENTS)
    session.run("pytest", "-q", "-m", "slow or not slow", "tests/pages/test_demo_page.py", *session.posargs)
