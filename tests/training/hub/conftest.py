"""A Hub on 127.0.0.1, and clients of it: each a process of its own, with an empty cache, that reaches nothing else."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ...conftest import tiny_model, word_tokenizer
from .localhub import LocalHub


ROOT = Path(__file__).resolve().parents[3]
ANN, READER, BOB, YOU = "token-of-ann", "token-that-reads", "token-of-bob", "token-of-the-reader-of-the-readme"
USERS = {
    ANN: {"name": "ann", "orgs": ["lab", "firm"]},
    READER: {"name": "ann", "role": "read"},
    BOB: {"name": "bob"},
    YOU: {"name": "your-name"},
}
SHARED = "your-name/support-mail"  # where the README publishes
TEXTS = ["where is my order", "money back", "the parcel is broken and late please when"]
CARD = """---
library_name: transformers
pipeline_tag: text-classification
tags: [lstmpool]
---

# parcels

```python
from transformers import pipeline
classifier = pipeline("text-classification", model="parcels", revision="main", trust_remote_code=True)
print(classifier("where is my order"))
```
"""
# Refuses every connection but those to the test's Hub. A stranger has no lstmpool.
PREAMBLE = """
import sys

def no_other_host(event, args):
    allowed = [("127.0.0.1", port) for port in {ports}]
    if event == "socket.connect" and isinstance(args[1], tuple) and args[1][:2] not in allowed:
        raise RuntimeError(f"connection to another host: {{args[1]}}")
    if event == "socket.getaddrinfo" and args[0] not in ("127.0.0.1", None):
        raise RuntimeError(f"another host looked up: {{args[0]}}")

sys.addaudithook(no_other_host)
if {stranger}:
    sys.modules["lstmpool"] = None
sys.executable = {python!r}
"""
# Stands in for the Python with which a client starts another process: `python -I FILE WORDS`, under the same hook.
GUARDED = """#!{python} -I
import runpy, sys
{hook}
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
MODULE = "import runpy\nrunpy.run_module({name!r}, run_name='__main__', alter_sys=True)"
LOADING = """
import torch
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoTokenizer, pipeline
torch.set_num_threads(1)

def logits(name, **options):
    model = AutoModelForSequenceClassification.from_pretrained(name, trust_remote_code=True, **options)
    assert type(model).__module__.startswith("transformers_modules."), type(model).__module__
    with torch.no_grad():
        return model(**torch.load({inputs!r})).logits
"""


class Clients:
    """Starts processes that talk to `hub` alone."""

    def __init__(self, hub: LocalHub, folder: Path):
        self.hub, self.folder, self.homes = hub, folder, 0
        self.inputs = str(folder / "inputs.pt")  # the tokens of TEXTS
        self.guarded = folder / "python"
        hook = PREAMBLE.format(ports=hub.ports, stranger=False, python=sys.executable)
        self.guarded.write_text(GUARDED.format(python=sys.executable, hook=hook))
        self.guarded.chmod(0o755)
        torch.save(dict(word_tokenizer()(TEXTS, padding=True, return_tensors="pt")), self.inputs)

    def environment(self, token: str | None = None, home: Path | None = None, **extra: str) -> dict[str, str]:
        """The settings of a client: its Hub, its token, and a proxy where nobody listens."""
        self.homes += 1
        dropped = re.compile(r"HF_|HUGGING|TRANSFORMERS_|.*_PROXY$", re.IGNORECASE)
        settings = {key: value for key, value in os.environ.items() if not dropped.match(key)}
        settings |= {name: "http://127.0.0.1:9" for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")}
        settings |= {"NO_PROXY": "127.0.0.1", "HF_ENDPOINT": self.hub.url, "HF_HUB_DISABLE_XET": "1"}
        settings |= {"HF_HOME": str(home or self.folder / f"home{self.homes}"), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        settings |= {"OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}:{settings['PATH']}"}
        return settings | ({"HF_TOKEN": token} if token else {}) | extra

    def run(
        self, words: list[str], cwd: Path | None = None, ok: bool = True, **settings: Any
    ) -> subprocess.CompletedProcess:
        """A command, without standard input, since the library would ask there whether to trust."""
        cwd = cwd or self.folder / "empty"
        cwd.mkdir(exist_ok=True)
        done = subprocess.run(
            words,
            cwd=cwd,
            env=self.environment(**settings),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert not ok or done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        return done

    def python(self, code: str, *words: object, stranger: bool = False, **options: Any) -> subprocess.CompletedProcess:
        """A program that no connection leaves for another host, nor that of a process which it starts."""
        start = PREAMBLE.format(ports=self.hub.ports, stranger=stranger, python=str(self.guarded))
        isolated = ["-I"] if stranger else []
        return self.run([sys.executable, *isolated, "-c", f"{start}\n{code}", *map(str, words)], **options)

    def stranger(self, code: str, **options: Any) -> subprocess.CompletedProcess:
        """Python that has torch and transformers, and nothing of this project."""
        return self.python(f"{LOADING.format(inputs=self.inputs)}\n{code}", stranger=True, **options)

    def publish(self, *words: object, **options: Any) -> subprocess.CompletedProcess:
        """The command of this project that publishes a folder."""
        return self.python(MODULE.format(name="lstmpool.training.publish"), *words, **options)

    def load_commits(self, commits: list[tuple[str, str]], **options: Any) -> list[torch.Tensor]:
        """The logits (B, C) of `TEXTS` by each commit of a repository, as a stranger gets them who has none cached."""
        path = str(self.folder / f"logits{self.homes}.pt")
        self.stranger(f"torch.save([logits(n, revision=r) for n, r in {commits!r}], {path!r})", **options)
        return torch.load(path)


@pytest.fixture(scope="session")
def hub():
    with LocalHub(USERS) as server:
        yield server


@pytest.fixture(scope="session")
def clients(hub, tmp_path_factory):
    return Clients(hub, tmp_path_factory.mktemp("clients"))


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """A model with its tokenizer and card, as a training leaves it, and with what is not to be published."""
    folder = tmp_path_factory.mktemp("models") / "parcels"
    model = tiny_model(id2label={0: "late", 1: "broken", 2: "other"}, label2id={"late": 0, "broken": 1, "other": 2})
    torch.nn.init.normal_(model.classifier.weight)  # so that the texts have different answers
    model.save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    (folder / "README.md").write_text(CARD)
    torch.save({"anything": 1}, folder / "training_args.bin")
    for name in ("test_predictions.csv", "validation_predictions.csv", "errors.csv"):
        (folder / name).write_text("text,prediction\nmine,late\n")
    (folder / "checkpoint-3").mkdir()
    torch.save({"step": 3}, folder / "checkpoint-3" / "optimizer.pt")
    return folder


@pytest.fixture
def folder(model_folder, tmp_path):
    """A copy of it, for a test to spoil."""
    return Path(shutil.copytree(model_folder, tmp_path / "parcels"))


@pytest.fixture(scope="session")
def local_logits(model_folder, clients):
    """(B, C) of `TEXTS`, by the local code."""
    from lstmpool.modeling_lstmpool import LstmPoolForSequenceClassification

    torch.set_num_threads(1)
    model = LstmPoolForSequenceClassification.from_pretrained(model_folder).eval()
    with torch.no_grad():
        return model(**torch.load(clients.inputs)).logits


@pytest.fixture(scope="session")
def shared(clients, model_folder, tmp_path_factory):
    """What the commands of the README's section "Share it" print, run as they are written there."""
    section = (ROOT / "README.md").read_text().split("## Share it")[1].split("\n## ")[0]
    work, done = tmp_path_factory.mktemp("reader"), []
    shutil.copytree(model_folder, work / "outputs" / "demo")
    for line in re.findall(r"```bash\n(.*?)```", section, re.DOTALL)[0].splitlines():
        python, dash_m, name, *words = shlex.split(line)
        assert (python, dash_m) == ("python", "-m")
        before = len(clients.hub.requests)
        done.append(clients.python(MODULE.format(name=name), *words, token=YOU, cwd=work))
        done[-1].requests = len(clients.hub.requests) - before
    return done
