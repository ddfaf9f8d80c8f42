"""What of a folder is published, and what keeps it from being. No Hub is asked here: tests/training/hub does."""

import hashlib
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import HTTPError

from lstmpool.configuration_lstmpool import LstmPoolConfig
from lstmpool.training.code_files import CODE
from lstmpool.training.errors import InputError
from lstmpool.training.hub.card import Lines, pin_card
from lstmpool.training.hub.folder import check_files, choose_files, compare_code, copy_files, prepare_output_dir
from lstmpool.training.hub.publishing import Checked, _lines, describe, main
from lstmpool.training.hub.repository import Hub

from .conftest import tiny_model


CARD = "---\nlibrary_name: transformers\npipeline_tag: text-classification\n---\n\n# Parcels\n"
DATA = Path(__file__).parents[2] / "data"
COMMIT, OLDER = "a" * 40, "b" * 40


@pytest.fixture
def folder(tmp_path, tokenizer):
    folder = tmp_path / "parcels"
    tiny_model(id2label={0: "late", 1: "broken", 2: "other"}).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(CARD)
    return folder


def change_config(folder, **fields):
    config = json.loads((folder / "config.json").read_text()) | fields
    kept = {key: value for key, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(kept))


def test_a_saved_model_with_tokenizer_and_card_is_fit(folder):
    assert check_files(folder) == []


def test_only_known_files_are_published(folder):
    (folder / "README.md").write_text(CARD + "![curve](curve.png) ![far](https://example.com/far.png) ![](../up.png)")
    others = {"training_args.bin", "optimizer.pt", "predictions.csv", "rows.json", "other.png", ".env"}
    others |= {"errors.csv", "validation_predictions.csv", "validation_predictions.parquet"}
    for name in {"curve.png", *others}:
        (folder / name).write_text("x")
    for name in ("checkpoint-3", "runs"):
        (folder / name).mkdir()
    published, left_out = choose_files(folder)
    code, tokenizer = [path.name for path in CODE], ["tokenizer.json", "tokenizer_config.json"]
    assert published == sorted(["README.md", "config.json", "curve.png", "model.safetensors", *code, *tokenizer])
    assert set(left_out) == {"checkpoint-3/", "runs/", *others}


def test_weights_in_several_files_are_published_with_their_index(folder):
    tiny_model(id2label={0: "late", 1: "broken", 2: "other"}).save_pretrained(folder, max_shard_size="20KB")
    (folder / "model.safetensors").unlink()
    published, _ = choose_files(folder)
    parts = [name for name in published if re.fullmatch(r"model-\d+-of-\d+.safetensors", name)]
    assert len(parts) > 1 and "model.safetensors.index.json" in published
    assert check_files(folder) == []
    (folder / parts[0]).unlink()
    assert check_files(folder) == [f"the weights must be safetensors; {parts[0]} not found. " + AGAIN]


AGAIN = "Save again with save_pretrained."


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "bert"}, "must say model_type 'lstmpool', found 'bert'"),
        ({"auto_map": None}, "must have the auto_map .*, found null"),
        ({"auto_map": {**LstmPoolConfig().auto_map, "AutoModel": "a/b--modeling_lstmpool.LstmPoolModel"}}, "auto_map"),
        ({"auto_map": {"AutoConfig": "configuration_lstmpool.LstmPoolConfig"}}, "must have the auto_map"),
        ({"problem_type": None}, "must have a problem_type, .*, found None"),
        ({"problem_type": "guess"}, "found 'guess'"),
        ({"id2label": None}, "must name its labels in id2label, found none"),
        ({"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}, "found LABEL_0, LABEL_1"),
        ({"backbone_config": {"auto_map": {"AutoConfig": "x/y--code.C"}}}, "another repository, x/y--code.C"),
    ],
)
def test_what_is_wrong_with_a_config_is_named(folder, fields, message):
    change_config(folder, **fields)
    assert any(re.search(message, line) for line in check_files(folder)), check_files(folder)


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ("# Parcels\n", "must begin with a header"),
        ("---\nlibrary_name: [\n---\n", "not valid YAML"),
        (CARD.replace("text-classification", "fill-mask"), "must have pipeline_tag: text-classification"),
        (CARD.replace("library_name: transformers\n", ""), "must have library_name: transformers, found None"),
        (None, "README.md, the model card, not found"),
    ],
)
def test_what_is_wrong_with_a_card_is_named(folder, card, message):
    (folder / "README.md").unlink() if card is None else (folder / "README.md").write_text(card)
    (line,) = check_files(folder)
    assert re.search(message, line)


def test_pickled_weights_are_refused_and_so_is_a_pickle_by_any_other_name(folder):
    weights = {"weight": torch.zeros(2)}
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    assert "pytorch_model.bin" not in choose_files(folder)[0]
    torch.save(weights, folder / "vocab.txt")
    torch.save(weights, folder / "merges.txt", _use_new_zipfile_serialization=False)
    (folder / "pytorch_model.bin").unlink()
    lines = check_files(folder)
    assert lines[:2] == [f"{name} is a pickle or an archive. Remove it." for name in ("merges.txt", "vocab.txt")]
    assert lines[2].startswith("the weights must be safetensors; model.safetensors not found")


def test_weights_that_were_cut_off_are_refused(folder):
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    (line,) = check_files(folder)
    assert line.startswith("model.safetensors is not a whole safetensors file")


def test_missing_code_is_named(folder):
    (folder / "modeling_lstmpool.py").unlink()
    (line,) = check_files(folder)
    assert line == "modeling_lstmpool.py, code of the model, not found. Save the model again with save_pretrained."


def test_a_folder_of_an_earlier_release_needs_the_files_of_that_release(tmp_path):
    folder = tmp_path / "old"
    shutil.unpack_archive(DATA / "saved_by_0_1_0.zip", folder)
    (folder / "README.md").write_text("---\nlibrary_name: transformers\npipeline_tag: text-classification\n---\n")
    assert check_files(folder) == []
    files = ["configuration_lstmpool.py", "modeling_lstmpool.py", "pooling_lstmpool.py"]
    assert [file.name for file in compare_code(folder)] == files
    (folder / "pooling_lstmpool.py").unlink()
    (line,) = check_files(folder)
    assert line.startswith("pooling_lstmpool.py, code of the model, not found.")


def test_the_code_is_compared_with_the_installed_one_line_by_line(folder):
    path = folder / "configuration_lstmpool.py"
    path.write_text(path.read_text() + "# mine\n")
    found = {file.name: file for file in compare_code(folder)}
    assert list(found) == [path.name for path in CODE]
    changed, same = found["configuration_lstmpool.py"], found["modeling_lstmpool.py"]
    assert changed.sha256 == hashlib.sha256(path.read_bytes()).hexdigest() != changed.released
    assert changed.difference[-1] == "+# mine"
    released = next(path for path in CODE if path.name == same.name)
    assert same.sha256 == same.released == hashlib.sha256(released.read_bytes()).hexdigest() and same.difference == []
    printed = describe(Checked("parcels", folder, [], [changed, same], []))
    assert "configuration_lstmpool.py differs from the installed release:" in printed and "\n  +# mine" in printed
    assert "modeling_lstmpool.py is that of the installed release:" in printed


def test_all_that_is_wrong_is_told_at_once_with_status_2(folder, capsys):
    change_config(folder, problem_type=None, id2label=None)
    (folder / "README.md").unlink()
    assert main([str(folder), "--check"]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    lines = output.err.splitlines()
    assert len(lines) == 3 and all(line.startswith("error: ") for line in lines)


@pytest.mark.parametrize(
    ("error", "cause", "told"),
    [
        (OSError(28, "No space left on device"), None, "this machine cannot read or write a file: [Errno 28]"),
        (RuntimeError("upload"), PermissionError(13, "Permission denied"), "this machine cannot read or write a file"),
        (RuntimeError("upload"), HTTPError("cut off"), "no whole answer from https://hub.test: cut off. Run"),
        (HTTPError("cut off"), OSError("socket"), "no whole answer from https://hub.test: socket. Run"),
        (ConnectionResetError("reset"), None, "no whole answer from https://hub.test: reset. Run"),
    ],
)
def test_what_fails_on_this_machine_is_not_told_as_the_hub_s_fault(monkeypatch, error, cause, told):
    hub = Hub(HfApi(endpoint="https://hub.test"), "ann/parcels", "main", "token")
    error.__cause__ = cause

    def fails(*_, **__):
        raise error

    monkeypatch.setattr(hub.api, "repo_info", fails)
    with pytest.raises(InputError, match=f"^{re.escape(told)}.*Nothing was pushed"):
        hub.push({})


@pytest.mark.parametrize("flag", ["--tags", "--tags=v1"])
def test_an_unknown_flag_is_one_line_with_status_2(tmp_path, capsys, flag):
    assert main([str(tmp_path), "ann/parcels", flag, "v1"]) == 2
    assert capsys.readouterr().err == f"error: unknown argument {flag!r}. Did you mean '--tag'? --help lists all.\n"


def test_a_card_in_latin_1_is_refused(folder):
    (folder / "README.md").write_bytes(f"{CARD}\nPäckchen\n".encode("latin-1"))
    assert check_files(folder) == ["README.md must be UTF-8, found the byte 0xe4. Save it as UTF-8."]


def test_no_folder_and_no_owner_are_told(tmp_path, capsys):
    assert main([str(tmp_path / "none"), "--check"]) == 2
    assert "expected the folder of a saved model, found none at" in capsys.readouterr().err
    for words in ([], ["parcels"], ["a/b/c"]):
        assert main([str(tmp_path), *words]) == 2
        assert "expected a repository OWNER/NAME, found" in capsys.readouterr().err


def test_an_output_folder_is_made_ready_for_pushes_during_training(tmp_path):
    prepare_output_dir(tiny_model(), tmp_path / "new")
    assert {path.name for path in (tmp_path / "new").iterdir()} == {".gitignore", *(path.name for path in CODE)}
    for path in CODE:
        assert (tmp_path / "new" / path.name).read_bytes() == path.read_bytes()
    assert (tmp_path / "new" / ".gitignore").read_text() == "/training_args.bin\n"


@pytest.mark.parametrize("mine", ["/runs\n", "/runs"])
def test_a_gitignore_keeps_its_lines_and_gets_one_more_once(tmp_path, mine):
    (tmp_path / ".gitignore").write_text(mine)
    for _ in range(2):
        prepare_output_dir(tiny_model(), tmp_path)
        assert (tmp_path / ".gitignore").read_text() == "/runs\n/training_args.bin\n"


ONE = Lines(many=False)
FIRST_LINE = "from transformers import pipeline"
LAST_LINE = 'print(classifier("Your text here."))'


def block(*lines):
    text = "\n".join(lines)
    return f"```python\n{text}\n```\n"


def written(name, revision, options=""):
    """The block that a release writes into a card."""
    named = f'model="{name}", trust_remote_code=True, revision="{revision}"{options}'
    return block(FIRST_LINE, f'classifier = pipeline("text-classification", {named})', LAST_LINE)


@pytest.mark.parametrize("revision", ["main", OLDER])
@pytest.mark.parametrize("name", ["parcels", "Parcels", "ann/parcels"])
@pytest.mark.parametrize("options", ["", ", truncation=True"])
def test_the_lines_that_a_release_has_written_are_pinned(revision, name, options):
    other = block('AutoModel.from_pretrained("distilbert-base-uncased", revision="main")')
    card = f"{CARD}\n{other}\n{written(name, revision, options)}\nMore.\n"
    pinned, lines = pin_card(card, "ann/parcels", COMMIT, "parcels", ONE)
    assert pinned == f"{CARD}\n{other}\n{written('ann/parcels', COMMIT, ', truncation=True')}\nMore.\n"
    assert f"```python\n{lines}\n```" in pinned


def test_the_lines_of_a_card_say_whether_the_model_reads_pairs():
    several = Lines(many=True, max_length=8)
    card = f"{CARD}\n```python\n{replace(several, pair=True).text('parcels', 'main')}\n```\n"
    pinned, lines = pin_card(card, "ann/parcels", COMMIT, "parcels", several)
    assert '"text_pair": "And the other one."' in lines and f'revision="{COMMIT}", top_k=None' in lines
    assert "truncation=True, max_length=8" in lines and lines in pinned and pinned.count("```") == 2


def test_a_card_without_such_lines_gets_them_once():
    card, lines = pin_card(CARD, "ann/parcels", COMMIT, "parcels", ONE)
    assert card == f"{CARD.rstrip()}\n\n## Load this version\n\n{written('ann/parcels', COMMIT, ', truncation=True')}"
    again, _ = pin_card(card, "ann/parcels", OLDER, "parcels", ONE)
    assert again == card.replace(COMMIT, OLDER)
    named = f'model="ann/parcels", revision="{OLDER}", trust_remote_code=True'
    of_old = block(FIRST_LINE, f'classifier = pipeline("text-classification", {named})', LAST_LINE)
    assert pin_card(f"{CARD}\n{of_old}", "ann/parcels", COMMIT, "parcels", ONE)[0].count("```") == 2


@pytest.mark.parametrize(
    "foreign",
    [
        written("parcels", "main").replace(LAST_LINE, f'{LAST_LINE}; __import__("os").system("id")'),
        written("parcels", "main").replace(FIRST_LINE, f"import os\n{FIRST_LINE}"),
        written("parcels", "main", ', model_kwargs={"a": os.system("id")}'),
        written("microsoft/deberta-v3-base", "main"),
        block('classifier = pipeline(model="parcels", revision="main"); __import__("os").system("id")'),
        '`pipeline(model="parcels", revision="main")`\n',
    ],
)
def test_nothing_else_in_a_card_is_taken_for_them(foreign):
    card, lines = pin_card(f"{CARD}\n{foreign}", "ann/parcels", COMMIT, "parcels", ONE)
    assert card.startswith(f"{CARD}\n{foreign}") and card.count("## Load this version") == 1
    assert lines == ONE.text("ann/parcels", COMMIT) and "os" not in lines


def test_a_link_is_not_followed(folder, capsys, tmp_path):
    (tmp_path / "secret.json").write_text("{}")
    for name in ("merges.txt", "LICENSE"):
        (folder / name).symlink_to(tmp_path / "secret.json")
    (folder / "notes.txt").symlink_to(tmp_path / "secret.json")
    (folder / "vocab").symlink_to(tmp_path)
    assert choose_files(folder)[1] == ["notes.txt", "vocab"]
    assert main([str(folder), "--check"]) == 2
    told = f"expected files, found links in {folder}: LICENSE, merges.txt. Links are not followed."
    assert told in capsys.readouterr().err


def test_code_that_is_not_the_installed_release_s_is_shown_and_not_run(folder, capsys, tmp_path):
    ran = tmp_path / "ran"
    for name, line in (("fields_lstmpool.py", "# mine\x1b[2J"), ("capture_lstmpool.py", f"open({str(ran)!r}, 'w')")):
        (folder / name).write_text((folder / name).read_text() + f"\n{line}\n")
    assert main([str(folder), "--check"]) == 2
    output = capsys.readouterr()
    assert not ran.exists()
    (line,) = output.err.splitlines()
    assert line.startswith(
        "error: expected the code of the installed release, found other code in capture_lstmpool.py, "
        "fields_lstmpool.py."
    )
    assert "--trust_remote_code" in line and "  +# mine\\x1b[2J" in output.out
    assert "modeling_lstmpool.py" not in output.out


def test_other_ends_of_lines_are_other_code(folder, capsys):
    path = folder / "fields_lstmpool.py"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert main([str(folder), "--check"]) == 2
    assert "fields_lstmpool.py" in capsys.readouterr().err


def test_a_folder_of_folds_and_one_without_a_card_are_told_what_to_do(folder, capsys, tmp_path):
    for name in ("cv/fold-1", "cv/fold-2", "seeds/seed-5", "seeds/seed-6"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "run.json").write_text("{}")
    assert main([str(tmp_path / "cv"), "--check"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "holds the 2 folds of a cross-validation" in line and line.endswith("/cv/fold-1.")
    assert main([str(tmp_path / "seeds"), "--check"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "holds the 2 runs of several seeds" in line and line.endswith("/seeds/seed-5.")
    (folder / "README.md").unlink()
    (folder / "training_args.bin").write_bytes(b"PK\x03\x04")
    assert main([str(folder), "--check"]) == 2
    assert capsys.readouterr().err == (
        "error: README.md, the model card, not found. Write one that begins with the lines ---, library_name: "
        "transformers, pipeline_tag: text-classification, ---.\n"
    )


@pytest.mark.parametrize(
    ("fields", "limit", "expected"),
    [
        ({}, 32, Lines(many=False)),
        ({}, int(1e30), Lines(many=False, max_length=510)),
        ({"problem_type": "multi_label_classification"}, 32, Lines(many=True)),
        ({"problem_type": "regression"}, 32, Lines(many=True)),
        ({"problem_type": "regression", "num_labels": 1, "id2label": {0: "stars"}}, 32, Lines(many=False)),
    ],
)
def test_the_lines_follow_from_the_model(tmp_path, tokenizer, fields, limit, expected):
    fields = {"id2label": {0: "late", 1: "broken", 2: "other"}} | fields
    tiny_model(**fields).save_pretrained(tmp_path)
    tokenizer.model_max_length = limit
    tokenizer.save_pretrained(tmp_path)
    assert _lines(tmp_path) == expected


def test_paths_that_a_library_left_in_the_configs_stay_behind(folder, tmp_path):
    labels = {"0": "/sports/news", "1": "broken", "2": "other"}
    change_config(folder, id2label=labels, cache="/home/me/x", name="owner/name")
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer | {"file": "~/vocab.txt", "drive": "C:\\x"}))
    copy = tmp_path / "copy"
    copy.mkdir()
    copy_files(folder, copy)
    config = json.loads((copy / "config.json").read_text())
    assert config["id2label"] == labels and config["name"] == "owner/name" and "cache" not in config
    assert json.loads((copy / "tokenizer_config.json").read_text()) == tokenizer
