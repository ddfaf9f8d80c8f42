"""A model and its ONNX export, published by one command: what is checked, what goes up, and what is refused."""

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lstmpool.export import main as export
from lstmpool.modeling_lstmpool import LstmPoolForSequenceClassification
from lstmpool.training.errors import InputError
from lstmpool.training.exporting.options import VARIANTS
from lstmpool.training.hub.exported import ExportHub, checked_export
from lstmpool.training.hub.folder import PUBLISHED_EXPORT, PUBLISHED_GRAPHS
from lstmpool.training.hub.publishing import main
from lstmpool.training.predicting.engine import FLOAT
from lstmpool.training.writing import digest_of

from ...conftest import tiny_model, word_tokenizer
from .conftest import ANN, MODULE, TEXTS
from .localhub_repo import POINTER, Repo


pytestmark = pytest.mark.hub
LABELS = {"id2label": {0: "late", 1: "broken", 2: "other"}, "label2id": {"late": 0, "broken": 1, "other": 2}}


@pytest.fixture(scope="module")
def pair(model_folder, tmp_path_factory):
    """A folder with the model `parcels`, and what the export makes of it."""
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    place = tmp_path_factory.mktemp("pair")
    shutil.copytree(model_folder, place / "parcels")
    assert export([str(place / "parcels"), "--quantize=quantized", "--handler"]) == 0
    (place / "parcels-onnx" / "errors.csv").write_text("text\nmine\n")
    (place / "parcels-onnx" / "onnx" / "notes.txt").write_text("mine")
    return place


@pytest.fixture
def here(pair, tmp_path, monkeypatch):
    """A copy of it, for a test to spoil."""
    shutil.copytree(pair, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture(scope="module")
def pushed(hub, clients, pair):
    """What the command prints that publishes both, as private ones, with a tag."""
    words = ["parcels", "ann/parcels", "--private", "--tag", "v1", "--onnx"]
    return clients.publish(*words, token=ANN, cwd=pair).stdout


# -------------------------------------------------------------------------------------------------------- what goes up
def test_names_of_graphs_that_are_published_are_those_that_the_export_gives():
    assert PUBLISHED_GRAPHS == {FLOAT, *(variant.file for variant in VARIANTS.values())}


def test_both_repositories_hold_their_files_alone_and_lead_to_one_another(hub, pushed):
    model, graphs = hub.repos["ann/parcels"], hub.repos["ann/parcels-onnx"]
    names = {"README.md", "config.json", "export.json", "tokenizer.json", "tokenizer_config.json"}
    names |= {"handler.py", "requirements.txt", ".gitattributes", "onnx/model.onnx", "onnx/model_quantized.onnx"}
    first, second = graphs.pushed()
    assert set(first.files) == set(second.files) == names
    assert {name for name in names if POINTER.fullmatch(first.files[name])} == {
        name for name in names if "onnx/" in name
    }
    assert {name for name in names if first.files[name] != second.files[name]} == {"README.md"}
    assert model.private and graphs.private
    assert model.tags == {"v1": model.pushed()[-1].id} and graphs.tags == {"v1": second.id}
    assert "Left out: errors.csv, onnx/notes.txt." in pushed
    of = model.pushed()[0].id
    card = second.files["README.md"].decode()
    assert f"Made from [ann/parcels]({hub.url}/ann/parcels) at commit `{of}`" in card
    assert "\nbase_model: ann/parcels\n" in card and "library_name: transformers.js" in card
    assert f"[ann/parcels-onnx]({hub.url}/ann/parcels-onnx)" in model.pushed()[-1].files["README.md"].decode()


def test_the_line_that_it_prints_downloads_the_commit_for_the_cards_snippet(hub, clients, pair, pushed, tmp_path):
    commit = hub.repos["ann/parcels-onnx"].pushed()[0].id
    line = f"hf download ann/parcels-onnx --revision {commit} --local-dir parcels-onnx"
    card = hub.repos["ann/parcels-onnx"].pushed()[1].files["README.md"].decode()
    assert f"ann/parcels-onnx at commit {commit} gives the same logits without torch:\n\n{line}" in pushed
    assert line in card
    clients.python(MODULE.format(name="huggingface_hub.cli.hf"), *line.split()[1:], cwd=tmp_path, token=ANN)
    program = re.findall(r"```python\n(.*?)```", card, re.DOTALL)[0]
    program = program.replace("model_quantized", "model")
    program = re.sub(r"texts = \[.*\]", f"texts = {TEXTS!r}", program)
    blocked = "import sys\nfor name in ('torch', 'transformers', 'lstmpool'):\n    sys.modules[name] = None\n"
    done = clients.run([sys.executable, "-I", "-c", f"{blocked}{program}\nprint(logits.tolist())"], cwd=tmp_path)
    model = LstmPoolForSequenceClassification.from_pretrained(pair / "parcels").eval()
    with torch.no_grad():
        expected = model(**word_tokenizer()(TEXTS, padding=True, return_tensors="pt")).logits.numpy()
    np.testing.assert_allclose(json.loads(done.stdout.splitlines()[-1]), expected, atol=1e-4)


@pytest.mark.slow
def test_the_same_command_again_publishes_the_same_graphs(hub, clients, pair, pushed):
    graphs = hub.repos["ann/parcels-onnx"]
    before = graphs.pushed()[-1]
    clients.publish("parcels", "ann/parcels", "--onnx=parcels-onnx", token=ANN, cwd=pair)
    after = graphs.pushed()[-1]
    assert {name for name in after.files if after.files[name] != before.files[name]} == {"README.md"}
    assert hub.repos["ann/parcels"].pushed()[-2].id in after.files["README.md"].decode()  # of which it is


# ----------------------------------------------------------------------------------------------------- what is refused
def change_record(folder, **fields):
    path = folder / "export.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def of_other_weights(here):
    model = tiny_model(**LABELS)
    torch.nn.init.normal_(model.classifier.weight, std=2.0)
    model.save_pretrained(here / "parcels")


def of_the_hub(here):
    change_record(here / "parcels-onnx", made_from={"ann/parcels": "a" * 40})


def without_made_from(here):
    record = json.loads((here / "parcels-onnx" / "export.json").read_text())
    del record["made_from"]
    (here / "parcels-onnx" / "export.json").write_text(json.dumps(record))


def with_another_graph(here):
    graphs = here / "parcels-onnx" / "onnx"
    shutil.copy(graphs / "model.onnx", graphs / "model_quantized.onnx")


def with_a_graph_that_answers_otherwise(here):
    """All of the record fits, and the graph does not."""
    model = tiny_model(**LABELS)
    torch.nn.init.normal_(model.classifier.weight, std=2.0)
    model.save_pretrained(here / "other")
    word_tokenizer().save_pretrained(here / "other")
    assert export(["other", "--quantize=none"]) == 0
    path = shutil.copy(here / "other-onnx" / "onnx" / "model.onnx", here / "parcels-onnx" / "onnx" / "model.onnx")
    record = json.loads((here / "parcels-onnx" / "export.json").read_text())
    change_record(here / "parcels-onnx", digests=record["digests"] | {"onnx/model.onnx": digest_of(Path(path))})


def with_another_handler(here):
    path = here / "parcels-onnx" / "handler.py"
    path.write_text(path.read_text().replace("ROWS = 32", "ROWS = 64"))


def with_another_config(here):
    """By which a client would cut texts elsewhere."""
    path = here / "parcels-onnx" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": 3}))


def with_code_in_its_config(here):
    path = here / "parcels-onnx" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": {"AutoModel": "handler.Mine"}}))


def with_other_labels(here):
    path = here / "parcels-onnx" / "config.json"
    path.write_text(path.read_text().replace("broken", "early"))


def with_a_graph_too_many(here):
    graphs = here / "parcels-onnx" / "onnx"
    shutil.copy(graphs / "model_quantized.onnx", graphs / "model_qint8_arm64.onnx")


def with_a_link(here):
    shutil.move(here / "parcels-onnx" / "config.json", here / "config.json")
    (here / "parcels-onnx" / "config.json").symlink_to(here / "config.json")


def with_a_folder_that_is_a_link(here):
    shutil.move(here / "parcels-onnx" / "onnx", here / "graphs")
    (here / "parcels-onnx" / "onnx").symlink_to(here / "graphs")


def without_a_header(here):
    (here / "parcels-onnx" / "README.md").write_text("# parcels\n")


def that_is_none(here):
    shutil.rmtree(here / "parcels-onnx")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            of_other_weights,
            r"was not made from this model: its record names other weights .* \(parcels\)\. Export the",
        ),
        (of_the_hub, "its record names no folder, but ann/parcels. Export the model again"),
        (without_made_from, "export.json cannot be read: 'made_from'. Export the model again"),
        (with_another_graph, r"onnx/model_quantized.onnx is not what was written .*--output parcels-onnx --overwrite"),
        (with_a_graph_that_answers_otherwise, "its float graph's logits differ by .* from the model's"),
        (with_another_handler, "handler.py is not what was written"),
        (with_another_config, "tokenizer_config.json is not what was written"),
        (with_code_in_its_config, "config.json is not what was written"),
        (with_other_labels, "names other labels than the model"),
        (with_a_graph_too_many, "holds other graphs than its record names"),
        (with_a_link, "found links in parcels-onnx: config.json"),
        (with_a_folder_that_is_a_link, "onnx must be a folder of graphs, and no link"),
        (without_a_header, "README.md must begin with a header such as .*transformers.js"),
        (that_is_none, "found no export.json in parcels-onnx. Export the model first. The flag is written last"),
    ],
)
def test_what_is_no_export_of_this_model_is_refused(here, spoil, message):
    spoil(here)
    with pytest.raises(InputError, match=message), checked_export(Path("parcels-onnx"), Path("parcels")):
        pass


@pytest.mark.parametrize("words", [["parcels", "--onnx", "ann/parcels"], ["--onnx", "parcels", "ann/parcels"]])
def test_a_flag_that_takes_the_repository_for_its_folder_is_told(words, capsys):
    assert main(words) == 2
    assert re.search("--onnx has taken '.*parcels' for its folder. Write the flag last", capsys.readouterr().err)


def test_without_the_package_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match=r"ONNX Runtime is missing: .* Install it: pip install"):
        checked_export(Path("parcels-onnx"), Path("parcels")).__enter__()


@pytest.mark.slow
def test_a_check_is_for_both_and_without_the_flag_a_line_tells_of_it(here, capsys):
    assert main(["parcels", "--check", "--onnx"]) == 0
    names = "README.md, config.json, export.json, handler.py, onnx/model.onnx, onnx/model_quantized.onnx"
    assert f"Fit to be published beside it: {names}" in capsys.readouterr().out
    assert main(["parcels", "--check"]) == 0
    assert "parcels-onnx is not published: for that, add --onnx." in capsys.readouterr().out


@pytest.mark.parametrize("fields", [{"early_exit": True, "exit_threshold": 0.1}, {"pair_encoding": "apart"}])
def test_a_model_with_exits_and_one_that_reads_pairs_apart_are_compared_as_they_were_exported(here, fields):
    from lstmpool.pairs_lstmpool import pair_template

    if "pair_encoding" in fields:
        fields = fields | {"pair_template": pair_template(word_tokenizer())}
    model = tiny_model(**LABELS, **fields)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    model.save_pretrained(here / "parcels")
    texts = 2 if "pair_encoding" in fields else 1
    (here / "parcels" / "metrics.json").write_text(json.dumps({"data": {"train": {"texts_a_row": texts}}}))
    assert export(["parcels", "--quantize=none", "--overwrite"]) == 0
    with checked_export(Path("parcels-onnx"), Path("parcels")) as found:
        assert found.asked["batches"][0] == ([("Yes.", "Yes.")] if texts == 2 else ["Yes."])


@pytest.mark.slow
def test_another_kind_of_repository_is_not_written_over_and_nothing_is_pushed(hub, clients, pair):
    """Neither is a public one written to beside a private model."""
    hub.repos["ann/taken-onnx"] = Repo(private=False)
    hub.repos["ann/taken-onnx"].commit("main", {"config.json": b'{"model_type": "bert"}'}, "theirs")
    hub.repos["lab/shown-onnx"] = Repo(private=False)
    hub.repos["lab/shown"] = Repo(private=True)
    for name, message in (
        ("ann/taken", "the name ann/taken-onnx is taken by something that is not an ONNX export of an lstmpool model"),
        ("lab/shown", "lab/shown-onnx exists and is public. Choose another name"),
    ):
        done = clients.publish("parcels", name, "--onnx", token=ANN, cwd=pair, ok=False)
        assert done.returncode == 2 and message in done.stderr
        assert not hub.repos[name].pushed()


@pytest.mark.slow
def test_an_export_that_does_not_answer_on_the_hub_is_named_with_status_3(hub, clients, pair):
    hub.repos["ann/half-onnx"] = repo = Repo(private=False)
    repo.commit("main", {".gitignore": b"/tokenizer.json\n", "export.json": b'{"made_from": {}}'}, "left out")
    done = clients.publish("parcels", "ann/half", "--onnx", token=ANN, cwd=pair, ok=False)
    assert done.returncode == 3
    (model,) = hub.repos["ann/half"].pushed()
    (line,) = done.stderr.splitlines()
    assert line.startswith(
        f"error: ann/half has the new commit {model.id}, which is right, but its card is not pinned"
    )
    assert f"ann/half-onnx has the new commit {repo.pushed()[-1].id}, which does not answer as it should" in line


def test_what_an_older_export_left_does_not_stand_beside_the_new_graphs():
    hub = ExportHub(None, "ann/parcels-onnx", "main", "")
    stale = {"onnx/model_quint8_avx2.onnx", "handler.py", "model.safetensors", "vocab.txt", "training_args.bin"}
    kept = {"README.md", "LICENSE", "notes.txt", "onnx/of_a_person.onnx"}
    assert {name for name in stale | kept if hub._is_stale(name)} == stale
    assert "modeling_lstmpool.py" not in PUBLISHED_EXPORT and "metrics.json" not in PUBLISHED_EXPORT
