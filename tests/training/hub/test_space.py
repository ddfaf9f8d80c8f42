"""A model and the page to try it on, published by one command: what goes up, what is checked, and what is refused."""

import configparser
import json
import re
from importlib.metadata import version
from types import SimpleNamespace

import pytest
import torch
import yaml
from packaging.requirements import Requirement
from transformers import AutoTokenizer

from lstmpool.modeling_lstmpool import LstmPoolForSequenceClassification
from lstmpool.pairs_lstmpool import pair_template
from lstmpool.training.errors import InputError
from lstmpool.training.hub import space as module
from lstmpool.training.hub.clean_load import probe_logits
from lstmpool.training.hub.publishing import _push_beside, main
from lstmpool.training.hub.repository import PushError
from lstmpool.training.hub.space import FILES, RECIPE, SpaceHub, checked_page

from ...conftest import tiny_model, word_tokenizer
from .conftest import ANN, ROOT
from .localhub_repo import Repo


pytestmark = pytest.mark.hub
LABELS = {"id2label": {0: "late", 1: "broken", 2: "other"}, "label2id": {"late": 0, "broken": 1, "other": 2}}


def logits_of(folder):
    """Those of the probes, by the installed code."""
    model = LstmPoolForSequenceClassification.from_pretrained(folder).eval()
    return probe_logits(model, AutoTokenizer.from_pretrained(folder))


def header_of(card):
    return yaml.safe_load(card.split("---\n")[1])


# -------------------------------------------------------------------------------------------------------- what goes up
PUSH = """
from pathlib import Path
from lstmpool.training.hub.folder import choose_files
from lstmpool.training.hub.options import Options
from lstmpool.training.hub.repository import Hub
from lstmpool.training.hub.space import SpaceHub, checked_page

folder, options = Path(FOLDER), Options(private=True, tag="v1")
model, space = Hub.connect("ann/tried", "main"), SpaceHub.connect("ann/tried-demo", "main")
model.open(True)
with checked_page(folder, LOGITS, space) as page:
    page.open(model, options)
    commit = model.push({name: folder / name for name in choose_files(folder)[0]})
    mine = page.push(model, commit)
    space.tag("v1")
    print(page.told(model, mine))
    print(page.link("# tried"))
"""


@pytest.fixture(scope="module")
def pushed(clients, model_folder):
    """What is said of a page that was pushed beside a private model, and the line that leads to it from a card."""
    code = PUSH.replace("FOLDER", repr(str(model_folder))).replace("LOGITS", repr(logits_of(model_folder)))
    return clients.python(code, token=ANN).stdout


def test_the_space_holds_the_page_and_loads_the_commit_of_the_model(hub, pushed):
    model, space = hub.repos["ann/tried"], hub.repos["spaces/ann/tried-demo"]
    (mine,) = space.pushed()
    assert set(mine.files) == {"README.md", "app.py", "requirements.txt", "space.json", ".gitattributes"}
    assert mine.files["app.py"] == (ROOT / "recipes" / "space" / "app.py").read_bytes()
    needed = [f"{name}=={version(name).split('+')[0]}" for name in ("torch", "transformers")]
    assert mine.files["requirements.txt"].decode().split() == needed  # with which the page was checked
    (commit,) = model.pushed()
    assert json.loads(mine.files["space.json"]) == {"model": "ann/tried", "revision": commit.id}
    card = mine.files["README.md"].decode()
    header = header_of(card)
    assert header["models"] == ["ann/tried"] and header["title"] == "Try tried" and header["sdk"] == "gradio"
    assert header["sdk_version"] == "6.31.0" and header["python_version"] == "3.11"  # texts, or YAML cuts 3.10 to 3.1
    assert f"It loads [ann/tried]({hub.url}/ann/tried) at commit `{commit.id}`." in card
    assert space.private and space.tags == {"v1": mine.id}


def test_it_says_where_the_page_is_and_that_a_private_model_needs_a_secret(hub, pushed):
    (mine,) = hub.repos["spaces/ann/tried-demo"].pushed()
    address = f"{hub.url}/spaces/ann/tried-demo"
    assert f"ann/tried-demo at commit {mine.id} is its page, which gives the same logits: {address}\n" in pushed
    assert "The model is private: give the Space a secret HF_TOKEN" in pushed
    assert f"# tried\n\n## Try it\n\n[ann/tried-demo]({address}) is a page to try this model on.\n" in pushed


@pytest.mark.slow
def test_one_command_publishes_both_and_tags_both(hub, clients, model_folder):
    words = ["parcels", "ann/both", "--private", "--tag", "v1", "--space"]
    printed = clients.publish(*words, token=ANN, cwd=model_folder.parent).stdout
    model, space = hub.repos["ann/both"], hub.repos["spaces/ann/both-demo"]
    first, second = model.pushed()
    (mine,) = space.pushed()
    assert json.loads(mine.files["space.json"])["revision"] == first.id
    assert model.private and space.private
    assert model.tags == {"v1": second.id} and space.tags == {"v1": mine.id}
    assert "is a page to try this model on" in second.files["README.md"].decode()
    assert "Its page answers as the model does." in printed and f"ann/both-demo at commit {mine.id} is its" in printed


@pytest.mark.slow
def test_the_page_of_a_public_model_moves_on_with_it_under_a_name_of_its_own(hub, clients, folder):
    for _ in range(2):
        printed = clients.publish(folder, "ann/open", "--space=lab/open", token=ANN).stdout
        assert "secret" not in printed
        tiny_model(layer_pooling="max", **LABELS).save_pretrained(folder)
    one, other = hub.repos["spaces/lab/open"].pushed()
    revisions = [json.loads(commit.files["space.json"])["revision"] for commit in (one, other)]
    models = hub.repos["ann/open"].pushed()
    assert revisions == [models[0].id, models[2].id]  # and not those whose card is pinned
    assert models[-1].files["README.md"].decode().count("is a page to try this model on") == 1


def test_a_page_has_the_versions_that_the_tests_run_with():
    pins = dict(re.findall(r"^(\S+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    lines = (RECIPE / "requirements.txt").read_text().splitlines()
    assert {line for line in lines if "==" in line} == {f"{name}=={pins[name]}" for name in ("torch", "transformers")}
    assert header_of((RECIPE / "README.md").read_text())["sdk_version"] == pins["gradio"]


def test_the_page_is_part_of_what_is_installed():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    patterns = parser["options.package_data"]["lstmpool"].split()
    packed = {path.relative_to(ROOT).as_posix() for pattern in patterns for path in ROOT.glob(pattern)}
    assert {f"recipes/space/{name}" for name in FILES} <= packed
    needs = {Requirement(line).name for line in parser["options.extras_require"]["test"].split()}
    assert not needs & {"gradio", "playwright"}  # which are large


# ----------------------------------------------------------------------------------------------------- what is refused
@pytest.mark.parametrize("words", [["parcels", "--space", "ann/parcels"], ["--space", "parcels", "ann/parcels"]])
def test_a_flag_that_takes_the_repository_for_its_name_is_told(words, capsys):
    assert main(words) == 2
    told = capsys.readouterr().err
    assert re.search("--space has taken '.*parcels' for its name. Write the flag last, or as --space=OWNER/NAME", told)


def test_a_branch_that_no_space_shows_is_refused(capsys):
    assert main(["parcels", "ann/parcels", "--branch", "next", "--space"]) == 2
    assert "--space expects the branch main, which is the one that a Space shows, found --branch next" in (
        capsys.readouterr().err
    )


def test_a_name_without_an_owner_is_refused():
    with pytest.raises(InputError, match="expected a repository OWNER/NAME, found 'demo', which names no owner"):
        SpaceHub.connect("demo", "main")


def test_a_page_that_answers_otherwise_is_not_published(model_folder):
    logits = logits_of(model_folder)
    logits[1][0] += 0.5
    with pytest.raises(InputError, match="does not answer as the model does: its logits differ by"):
        checked_page(model_folder, logits, None).__enter__()


def test_an_installation_without_the_page_is_told(model_folder, monkeypatch, tmp_path):
    monkeypatch.setattr(module, "RECIPE", tmp_path)
    with pytest.raises(InputError, match="the files of the page cannot be copied: .* Install lstmpool again"):
        checked_page(model_folder, [], None).__enter__()


@pytest.mark.slow
@pytest.mark.parametrize("fields", [{"early_exit": True, "exit_threshold": 0.4}, {"pair_encoding": "apart"}])
def test_a_model_with_exits_and_one_that_reads_pairs_apart_have_pages(folder, fields):
    if "pair_encoding" in fields:
        fields = fields | {"pair_template": pair_template(word_tokenizer())}
    model = tiny_model(**LABELS, **fields)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    model.save_pretrained(folder)
    with checked_page(folder, logits_of(folder), None) as page:
        assert [len(texts) for texts in page.asked] == [2 if "pair_encoding" in fields else 1] * 3


@pytest.mark.slow
def test_a_check_alone_is_for_the_page_too(model_folder, capsys, monkeypatch):
    monkeypatch.chdir(model_folder.parent)
    assert main(["parcels", "--check", "--space"]) == 0
    assert "Its page answers as the model does." in capsys.readouterr().out


@pytest.mark.slow
def test_another_kind_of_space_is_not_written_over_and_nothing_is_pushed(hub, clients, model_folder):
    """Neither is a public one written to beside a private model, nor one that has the tag."""
    for name, private in (("ann/occupied", False), ("lab/secret", True), ("ann/marked", False)):
        hub.repos[name] = Repo(private=private)
        hub.repos[f"spaces/{name}-demo"] = Repo(private=False)
    hub.repos["spaces/ann/occupied-demo"].commit("main", {"app.py": b"theirs"}, "theirs")
    hub.repos["spaces/ann/marked-demo"].tags["v1"] = hub.repos["spaces/ann/marked-demo"].heads["main"]
    for name, message in (
        ("ann/occupied", "the name ann/occupied-demo is taken by something that is not the page of an lstmpool model"),
        ("lab/secret", "lab/secret-demo exists and is public. Choose another name"),
        ("ann/marked", "ann/marked-demo has a tag v1 already."),
    ):
        words = ["parcels", name, "--tag", "v1", "--space"]
        done = clients.publish(*words, token=ANN, cwd=model_folder.parent, ok=False)
        assert done.returncode == 2 and message in done.stderr
        assert not hub.repos[name].pushed() and not hub.repos[name].tags


@pytest.mark.slow
def test_a_page_that_does_not_answer_on_the_hub_is_named_with_status_3(hub, clients, model_folder):
    hub.repos["spaces/ann/dumb-demo"] = repo = Repo(private=False)
    record = b'{"model": "ann/dumb", "revision": ""}'
    repo.commit("main", {".gitignore": b"/app.py\n", "space.json": record}, "the Hub leaves it out")
    done = clients.publish("parcels", "ann/dumb", "--space", token=ANN, cwd=model_folder.parent, ok=False)
    assert done.returncode == 3
    (model,) = hub.repos["ann/dumb"].pushed()
    (line,) = done.stderr.splitlines()
    assert line.startswith(
        f"error: ann/dumb has the new commit {model.id}, which is right, but its card is not pinned, and its page is"
    )
    assert f"ann/dumb-demo has the new commit {repo.pushed()[-1].id}, which does not answer as it should" in line


class Beside:
    """Stands in for the export or the page of a model."""

    def __init__(self, name, wrong=""):
        self.hub = SimpleNamespace(repo_id=name)
        self.wrong = wrong

    def push(self, model, commit):
        if self.wrong:
            raise PushError(self.wrong)
        return f"{commit}-{self.hub.repo_id}"

    def link(self, card):
        return f"{card} -> {self.hub.repo_id}"

    def told(self, model, commit):
        return f"{commit} is there"


def test_an_export_that_was_pushed_before_a_page_that_fails_is_named():
    export, page, broken = Beside("onnx"), Beside("demo"), Beside("demo", wrong="the page is not right.")
    said = "\n\nc-onnx is there\n\nc-demo is there"
    assert _push_beside([export, page], None, "c", "card") == (said, "card -> onnx -> demo")
    told = "the page is not right. onnx has the new commit c-onnx, which is right."
    with pytest.raises(PushError, match=f"^{re.escape(told)}$"):
        _push_beside([export, broken], None, "c", "card")


def test_what_an_older_page_left_does_not_stand_beside_the_new_one():
    hub = SpaceHub(None, "ann/parcels-demo", "main", "")
    assert {name for name in (*FILES, "space.json", "notes.txt", "LICENSE") if hub._is_stale(name)} == {
        "app.py",
        "requirements.txt",
        "space.json",
    }
