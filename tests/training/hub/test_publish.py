"""The command that publishes a folder: what it checks, what it pushes, what it says, and where it stops."""

import hashlib
import json
import os
import re
from pathlib import Path

import pytest
import torch

from lstmpool.pairs_lstmpool import pair_template
from lstmpool.training.code_files import CODE
from lstmpool.training.hub.publishing import main

from ...conftest import tiny_model, word_tokenizer
from ..output.test_model_card import ON_HUB, RESULTS, SETS, card
from .conftest import ANN, BOB, READER, SHARED
from .localhub_repo import POINTER, Repo


pytestmark = pytest.mark.hub


def test_a_check_alone_asks_the_hub_for_nothing(shared):
    checked, _ = shared
    assert checked.requests == 0 and "Fit to be published" in checked.stdout


def test_every_commit_holds_the_model_alone_and_loads_by_itself(hub, clients, shared, local_logits):
    first, second = hub.repos[SHARED].pushed()
    code, tokenizer = [path.name for path in CODE], ["tokenizer.json", "tokenizer_config.json"]
    names = {".gitattributes", "README.md", "config.json", "model.safetensors", *code, *tokenizer}
    assert set(first.files) == set(second.files) == names
    assert {name for name in names if first.files[name] != second.files[name]} == {"README.md"}
    in_lfs = {name for name in names if POINTER.fullmatch(first.files[name])}
    assert in_lfs == {"model.safetensors"}  # and the rest inline
    for logits in clients.load_commits([(SHARED, first.id), (SHARED, second.id)]):
        assert torch.equal(logits, local_logits)


def test_it_prints_the_commit_and_whose_code_it_is(hub, shared):
    commit, printed = hub.repos[SHARED].pushed()[0], shared[1].stdout
    assert f"{SHARED} at commit {commit.id} loads and gives the same logits" in printed
    for path in CODE:
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        assert hashlib.sha256(commit.files[path.name]).hexdigest() == sha256
        assert f"  sha256 {sha256}  this folder\n  sha256 {sha256}  installed release" in printed
    assert (
        "Left out: checkpoint-3/, errors.csv, test_predictions.csv, training_args.bin, validation_predictions.csv."
        in printed
    )


def test_the_snippet_that_it_prints_and_puts_into_the_card_loads_that_commit(hub, clients, shared):
    first, second = hub.repos[SHARED].pushed()
    snippet = shared[1].stdout.split("same logits:\n\n")[1]
    assert f'model="{SHARED}", trust_remote_code=True, revision="{first.id}"' in snippet
    assert snippet.strip() in second.files["README.md"].decode()
    printed = clients.stranger(snippet).stdout
    assert re.search(r"'label': '(late|broken|other)'", printed)


def test_the_tag_names_the_commit_whose_card_is_pinned(hub, shared):
    repo = hub.repos[SHARED]
    assert repo.tags == {"v1": repo.pushed()[1].id} and repo.heads["main"] == repo.tags["v1"]


def test_code_that_answers_otherwise_than_the_installed_is_refused(folder, capsys):
    path, body = folder / "modeling_lstmpool.py", "logits = self.classifier(self.dropout(outputs.pooler_output))"
    assert body in path.read_text()
    path.write_text(path.read_text().replace(body, f"{body} + 0.001"))
    assert main([str(folder), "--check", "--trust_remote_code"]) == 2
    assert re.search("in a fresh process .* its logits differ by 0.001", capsys.readouterr().err)


def test_the_code_that_is_run_sees_no_secret_of_the_environment(folder, monkeypatch, tmp_path):
    seen = tmp_path / "seen.json"
    path = folder / "fields_lstmpool.py"
    line = f"import json, os\njson.dump(dict(os.environ), open({str(seen)!r}, 'w'))\n"
    path.write_text(path.read_text() + line)
    for name in ("AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "MY_PASSWORD", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, "secret")
    proxy = {"https_proxy": "http://127.0.0.1:9", "SSL_CERT_FILE": "/etc/ssl/cert.pem"}
    for name, value in proxy.items():
        monkeypatch.setenv(name, value)
    assert main([str(folder), "--check"]) == 2 and not seen.exists()
    assert main([str(folder), "--check", "--trust_remote_code"]) == 0
    found = json.loads(seen.read_text())
    assert "secret" not in found.values() and proxy.items() <= found.items()
    assert found["PATH"] == os.environ["PATH"] and "lstmpool-publish-" in found["HOME"]
    assert found["HF_HOME"].startswith(found["HOME"]) and not Path(found["HOME"]).exists()


def test_a_model_that_reads_pairs_apart_is_checked_with_pairs(folder, capsys):
    labels = {"id2label": {0: "late", 1: "broken", 2: "other"}, "label2id": {"late": 0, "broken": 1, "other": 2}}
    template = pair_template(word_tokenizer())
    tiny_model(pair_encoding="apart", pair_template=template, linear_skip=True, **labels).save_pretrained(folder)
    assert main([str(folder), "--check"]) == 0, capsys.readouterr().err
    assert "Fit to be published" in capsys.readouterr().out


def test_weights_that_would_come_back_random_are_refused(folder, capsys):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if ".pooler." not in name}
    assert len(kept) < len(weights)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    assert main([str(folder), "--check"]) == 2
    assert "lstmpool.pooler" in (line := capsys.readouterr().err) and "missing_keys" in line


def test_without_a_token_that_may_write_nothing_is_pushed(hub, clients, folder):
    code = f"""
import os
from lstmpool.training.errors import InputError
from lstmpool.training.hub.repository import Hub
from lstmpool.training.hub.publishing import main
print(main([{str(folder)!r}, "ann/forbidden"]))
os.environ["HF_TOKEN"] = "wrong"
print(main([{str(folder)!r}, "ann/forbidden"]))
for token in ({READER!r}, {BOB!r}):
    try:
        Hub.connect("ann/forbidden", "main", token).open(False, None)
    except InputError as error:
        print(error)
"""
    done = clients.python(code)
    status, again, *others = done.stdout.splitlines()
    assert status == again == "2"
    none, wrong = done.stderr.splitlines()
    assert none == "error: no token found. Log in with `hf auth login`, or set HF_TOKEN. Nothing was pushed."
    assert "answered 401: " in wrong and "The token is wrong or has expired: log in again" in wrong
    for line in others:
        assert "answered 403: " in line and "This token may not write to ann/forbidden" in line
    assert len(others) == 2 and "ann/forbidden" not in hub.repos


def test_what_is_on_the_hub_already_is_not_written_over(hub, clients):
    """Neither a name taken by something else, nor a public repository for a private one, a tag, or a push of now."""
    hub.repos["ann/bert"] = Repo(private=False)
    hub.repos["ann/bert"].commit("main", {"config.json": b'{"model_type": "bert"}'}, "a model")
    hub.repos["ann/rows"] = Repo(private=False)
    hub.repos["ann/rows"].commit("main", {"rows.csv": b"text"}, "rows")
    hub.repos["ann/tagged"] = Repo(private=False)
    hub.repos["ann/tagged"].tags["v1"] = hub.repos["ann/tagged"].heads["main"]
    hub.repos["ann/busy"] = Repo(private=False)

    def fault(method, path):
        if "/ann/busy/preupload/" in path:  # somebody else is faster
            hub.repos["ann/busy"].commit("main", {"notes.txt": b"theirs"}, "faster")

    hub.fault = fault
    code = """
from pathlib import Path
from lstmpool.training.errors import InputError
from lstmpool.training.hub.repository import Hub, PushError
for name, private, tag in (("bert", 0, None), ("rows", 0, None), ("tagged", 1, None), ("tagged", 0, "v1")):
    try:
        Hub.connect(f"ann/{name}", "main").open(bool(private), tag)
    except InputError as error:
        print(error)
Hub.connect("ann/tagged", "next").open(False, "v2")
Hub.connect("lab/new", "main").open(True, None)
Path("notes.txt").write_text("mine")
try:
    Hub.connect("ann/busy", "main").push({"notes.txt": Path("notes.txt")})
except PushError as error:
    print(error)
"""
    bert, rows, public, tag, busy = clients.python(code, token=ANN).stdout.splitlines()
    assert bert.startswith("the name ann/bert is taken by something that is not an lstmpool model (config.json)")
    assert rows.startswith("the name ann/rows is taken by something that is not an lstmpool model (rows.csv)")
    assert public.startswith("ann/tagged exists and is public. Choose another name")
    assert tag.startswith("ann/tagged has a tag v1 already.")
    assert hub.repos["ann/tagged"].heads.keys() == {"main", "next"}
    assert hub.repos["lab/new"].private
    (theirs,) = hub.repos["ann/busy"].pushed()
    assert theirs.files["notes.txt"] == b"theirs"
    assert busy.startswith(f"ann/busy may have the new commit {theirs.id}, by this push or another's: ")
    assert "answered 412" in busy and "Somebody pushed at the same time: run the command again." in busy


def test_a_card_is_not_pinned_on_top_of_what_somebody_else_has_pushed(hub, clients):
    hub.repos["ann/raced"] = repo = Repo(private=False)

    def fault(method, path):
        if "/ann/raced/preupload/" in path and len(repo.pushed()) == 1:  # between the model and its card
            repo.commit("main", {"modeling_lstmpool.py": b"theirs"}, "faster")

    hub.fault = fault
    code = """
from pathlib import Path
from lstmpool.training.hub.repository import Hub, PushError
Path("modeling_lstmpool.py").write_text("mine")
hub = Hub.connect("ann/raced", "main")
hub.open(False)
commit = hub.push({"modeling_lstmpool.py": Path("modeling_lstmpool.py")})
try:
    hub.push_card("pinned", commit)
except PushError as error:
    print(error)
"""
    (line,) = clients.python(code, token=ANN).stdout.splitlines()
    mine, theirs = repo.pushed()
    assert line.startswith(f"ann/raced may have the new commit {theirs.id}, by this push or another's: ")
    assert "README.md" not in theirs.files and repo.heads["main"] == theirs.id


def test_a_new_repository_is_private_on_request_or_by_the_default_of_its_owner(hub, clients):
    code = """
from lstmpool.training.hub.repository import Hub
for name, private in (("lab/shown", False), ("lab/hidden", True), ("firm/hidden", False)):
    Hub.connect(name, "main").open(private)
"""
    clients.python(code, token=ANN)
    private = {name: hub.repos[name].private for name in ("lab/shown", "lab/hidden", "firm/hidden")}
    assert private == {"lab/shown": False, "lab/hidden": True, "firm/hidden": True}


PUSH = """
import time
from pathlib import Path
from lstmpool.training.errors import InputError
from lstmpool.training.hub.repository import Hub, PushError
from lstmpool.training.hub.publishing import Options, checked, push

time.sleep = lambda seconds: None  # the client waits longer and longer between its attempts
with checked(Path(FOLDER)) as model:
    for attempt in range(ATTEMPTS):
        try:
            print(push(model, Hub.connect(NAME, "main"), Options(private=True)).commit)
        except (InputError, PushError) as error:
            print(f"{type(error).__name__}: {error}")
"""


@pytest.mark.slow
def test_a_connection_that_breaks_leaves_nothing_or_names_the_commit_and_the_next_run_is_whole(
    hub, clients, folder, local_logits
):
    faults = [*["lost"] * 6, "unanswered"]  # six times the client tries to upload, and gives up

    def fault(method, path):
        hit = (method, path.split("/")[1]) == ("PUT", "lfs") if len(faults) > 1 else "/commit/" in path
        return faults.pop(0) if hit and faults else None

    hub.fault = fault
    code = PUSH.replace("FOLDER", repr(str(folder))).replace("NAME", "'ann/cut'").replace("ATTEMPTS", "3")
    first, second, third = clients.python(code, token=ANN).stdout.splitlines()
    repo = hub.repos["ann/cut"]
    whole, pinned = repo.pushed()
    assert first.startswith("InputError: no whole answer from http://127.0.0.1")
    assert first.endswith("Run the command again. The new repository ann/cut is there, and empty.")
    # the second run made the commit, and never heard of it
    assert second.startswith(f"PushError: ann/cut may have the new commit {whole.id}, by this push or another's")
    assert "Nothing was pushed" not in second
    assert third == whole.id and repo.private
    for logits in clients.load_commits([("ann/cut", whole.id), ("ann/cut", pinned.id)], token=ANN):
        assert torch.equal(logits, local_logits)


@pytest.mark.slow
def test_a_pushed_commit_that_does_not_load_is_named_with_status_3(hub, clients, folder):
    hub.repos["ann/broken"] = Repo(private=False)
    hub.repos["ann/broken"].commit("main", {".gitignore": b"/tokenizer.json\n"}, "the Hub leaves this out")
    done = clients.publish(folder, "ann/broken", token=ANN, ok=False)
    assert done.returncode == 3
    _, pushed = hub.repos["ann/broken"].pushed()
    assert "tokenizer.json" not in pushed.files
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: ann/broken has the new commit {pushed.id}, which does not load as it should: ")


def test_what_an_older_push_left_does_not_stand_beside_the_new_model(hub, clients, folder):
    """Weights in parts, a vocabulary, pickles and a checkpoint; but not what a person may have added."""
    config = json.dumps({"model_type": "lstmpool"}).encode()
    stale = [
        "model-1-of-2.safetensors",
        "vocab.txt",
        "training_args.bin",
        "old/optimizer.pt",
        "last-checkpoint/a.json",
    ]
    kept = ["LICENSE", "notes.txt", ".gitattributes"]
    hub.repos["lab/old"] = Repo(private=False)
    changes = {name: b"old" for name in [*stale, "LICENSE", "notes.txt"]}
    hub.repos["lab/old"].commit("main", {"config.json": config, **changes}, "old")
    tiny_model(layer_pooling="max").save_pretrained(folder / "other")
    code = f"""
from pathlib import Path
from lstmpool.training.hub.repository import Hub
hub = Hub.connect("lab/old", "main")
hub.open(False, None)
print(hub.push({{path.name: path for path in Path({str(folder / "other")!r}).iterdir()}}))
"""
    done = clients.python(code, token=ANN)
    files = set(hub.repos["lab/old"].commits[done.stdout.strip()].files)
    assert not files & set(stale) and set(kept) <= files and "model.safetensors" in files


VALIDATE = """
from huggingface_hub import ModelCard
for path in PATHS:
    card = ModelCard.load(path)
    try:
        card.validate()
        print("valid", len(card.data.eval_results or []))
    except ValueError as error:
        print("refused", error)
"""


def test_the_hub_takes_the_header_of_a_card_with_and_without_results(clients, tmp_path):
    texts = [
        card(tmp_path, data=SETS, rows=ON_HUB, results=RESULTS)[0],
        card(tmp_path, on_hub=False)[0],
    ]
    paths = [str(tmp_path / f"{number}.md") for number in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        Path(path).write_text(text)
    assert clients.python(VALIDATE.replace("PATHS", repr(paths))).stdout.splitlines() == ["valid 2", "valid 0"]
