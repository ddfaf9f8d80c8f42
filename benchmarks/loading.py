"""Times the import of the Hub files and the loading of a local folder, beside the stock class.

    python -m lstmpool.benchmarks.loading
    python -m lstmpool.benchmarks.loading --table

Every run is a process of its own. The folder holds a BERT of 6 x 384.

    import                  the statement that names the class, and so reads torch and transformers
    load                    the first `AutoModelForSequenceClassification.from_pretrained` of the folder, for this
                            project with `trust_remote_code=True`
    load again              the second one in the same process
    load again, installed   the second one if the class itself was imported before, so that no remote code is needed

Runs that the CSV holds are not repeated.
"""

import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import torch

from lstmpool.benchmarks.rounds import Arguments, Comparison
from lstmpool.benchmarks.variants import backbone_config, build


COMPARED = Comparison("loading", ("import", "load", "load again", "load again, installed"), ("lstmpool", "stock"))
IMPORT = {
    "lstmpool": "from lstmpool.modeling_lstmpool import LstmPoolForSequenceClassification",
    "stock": "from transformers import BertForSequenceClassification",
}
LOAD = "AutoModelForSequenceClassification.from_pretrained({folder!r}{options})"
PROGRAM = """
import time
{ready}
started = time.perf_counter()
{statement}
print(time.perf_counter() - started)
"""


def measure(home: Path, args: Arguments, subject: str, variant: str) -> float:
    """Seconds of the statement, in a process of its own. The models are in folders of `home`.

    Raises:
        SystemExit: with the last lines of the process, if it failed.
    """
    folder = home / variant
    local = LOAD.format(folder=str(folder), options="")
    load = LOAD.format(folder=str(folder), options=", trust_remote_code=True") if variant == "lstmpool" else local
    auto = "from transformers import AutoModelForSequenceClassification"
    if not folder.exists():
        torch.manual_seed(0)
        build(variant, backbone_config(6, 384)).model.save_pretrained(folder)
        for statement in (IMPORT[variant], load):  # makes the library's copy of the code, and the bytecode
            _seconds(home, auto, statement)
    ready, statement = {
        "import": ("", IMPORT[variant]),
        "load": (auto, load),
        "load again": (f"{auto}\n{load}", load),
        "load again, installed": (f"{auto}\n{IMPORT[variant]}\n{local}", local),
    }[subject]
    return _seconds(home, ready, statement)


def _seconds(home: Path, ready: str, statement: str) -> float:
    program = PROGRAM.format(ready=ready, statement=statement)
    settings = os.environ | {"HF_HOME": str(home / "hub"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", program], env=settings, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{done.stderr[-2000:]}\n{statement} ended with status {done.returncode}.")
    return float(done.stdout)


def main(argv: list[str] | None = None) -> int:
    """Measures what the CSV lacks, or makes the table; returns the exit status."""
    with tempfile.TemporaryDirectory() as home:
        return COMPARED.main(Arguments, partial(measure, Path(home)), __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
