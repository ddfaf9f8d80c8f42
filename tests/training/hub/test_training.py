"""`train_trainer.py --push_to_hub`, as it is typed: what arrives on the Hub, and what is said when it does not."""

import json
import shutil

import pytest

from ...conftest import CODE
from ...training_fixtures import ROOT, save_backbone, sentences, write_csv
from .conftest import ANN
from .localhub_repo import POINTER, Repo


pytestmark = pytest.mark.hub

RUN = f"""
import json, sys
sys.path.insert(0, {str(ROOT)!r})
from lstmpool.train_trainer import main
for words in json.loads(sys.argv[1]):
    print("status", main(words), flush=True)
    print("end of a run", file=sys.stderr)
"""
INTERRUPTED = """
from lstmpool.training.loop.trainer import LstmPoolTrainer
evaluate = LstmPoolTrainer.evaluate
def stopped(self, *args, **options):
    if self.state.global_step > 2:
        raise KeyboardInterrupt
    return evaluate(self, *args, **options)
LstmPoolTrainer.evaluate = stopped
"""

INTERRUPTED_PUSH = """
from lstmpool.training.hub import saves
push = saves.push
def stopped(*args):
    saves.push = push
    raise KeyboardInterrupt
saves.push = stopped
"""


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with a backbone and rows of a regression: its checkpoints must hold real units, too."""
    folder = tmp_path_factory.mktemp("work")
    save_backbone(folder / "backbone")
    for split, n in (("train", 24), ("validation", 8)):
        write_csv(
            folder / f"{split}.csv", {"text": sentences(n), "stars": [f"{100 * (i % 5) + 0.5}" for i in range(n)]}
        )
    return folder


def train(clients, work, *runs, program=RUN, **options):
    """Runs the command once for each of `runs`, flags on top of the same ones, in one process."""
    common = ["--backbone=backbone", "--train_file=train.csv", "--validation_file=validation.csv", "--use_cpu"]
    common += ["--label_column_name=stars", "--num_train_epochs=2", "--lstm_hidden_size=4", "--push_to_hub"]
    words = json.dumps([[*common, *run] for run in runs])
    done = clients.python(program, words, cwd=work, **options)
    statuses = [int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("status")]
    return statuses, done.stderr.split("end of a run\n")[: len(runs)], done


@pytest.fixture(scope="module")
def pushed(hub, clients, work):
    """The commits of a run with each strategy, and what the runs printed."""
    strategies = ("end", "every_save", "checkpoint")
    runs = [
        [f"--output_dir={name}", f"--hub_model_id=lab/{name}", f"--hub_strategy={name}", "--hub_private_repo"]
        for name in strategies
    ]
    statuses, _, done = train(clients, work, *runs, token=ANN)
    assert statuses == [0, 0, 0], done.stderr
    assert "lab/checkpoint is private. All that a run resumes from goes up with each checkpoint" in done.stdout
    return {name: hub.repos[f"lab/{name}"].pushed() for name in strategies}, done.stdout


def test_every_commit_of_a_training_loads_by_itself(hub, clients, pushed):
    commits = [(name, commit) for name, found in pushed[0].items() for commit in found]
    results = clients.load_commits([(f"lab/{name}", commit.id) for name, commit in commits], token=ANN)
    for (name, commit), logits in zip(commits, results, strict=True):
        assert POINTER.fullmatch(commit.files["model.safetensors"]) and CODE <= set(commit.files)
        assert 100 < logits.mean() < 300, (name, commit.title)  # the targets lie around 200: not in units of spread
        assert hub.repos[f"lab/{name}"].private
    titles = {name: [commit.title.split(",")[0] for commit in found] for name, found in pushed[0].items()}
    assert titles["end"] == ["Upload model", f"Pin the snippet to {pushed[0]['end'][0].id[:7]}"]
    for name in ("every_save", "checkpoint"):
        assert titles[name][0] == "Training in progress" and titles[name][-2] == "Upload model"


def test_only_what_belongs_to_a_model_is_on_the_hub(pushed, work):
    for name, commits in pushed[0].items():
        assert {"errors.csv", "validation_predictions.csv"} <= {path.name for path in (work / name).iterdir()}
        for commit in commits:
            others = {path for path in commit.files if not path.startswith("last-checkpoint/")}
            assert not [path for path in others if path.endswith((".bin", ".pt", ".pth", ".csv")) or "runs" in path]
            in_progress = name == "checkpoint" and commit.title.startswith("Training in progress")
            assert ("last-checkpoint/optimizer.pt" in commit.files) == in_progress  # from which to resume
        assert {"README.md", "metrics.json", "learning_curve.png"} <= set(commits[-1].files)


def test_the_card_on_the_hub_is_pinned_and_the_lines_are_printed(pushed):
    for name, commits in pushed[0].items():
        whole, pinned = commits[-2:]
        line = f'model="lab/{name}", trust_remote_code=True, revision="{whole.id}", truncation=True'
        assert line in pinned.files["README.md"].decode() and line in pushed[1]


def contents(repo):
    """Name and content of all that was ever pushed to a repository."""
    for commit in repo.pushed():
        for path, data in commit.files.items():
            pointer = POINTER.fullmatch(data)
            yield path, repo.large[pointer[1].decode()] if pointer else data


def test_nothing_pickled_and_no_path_goes_up_to_a_public_repository(hub, clients, work):
    """By any strategy, and from a backbone whose own files name folders."""
    shutil.copytree(work / "backbone", work / "named")
    for name in ("config.json", "tokenizer_config.json"):
        config = json.loads((work / "named" / name).read_text())
        (work / "named" / name).write_text(json.dumps(config | {"cache": str(work / "cache"), "kept": "a/b"}))
    strategies = ("checkpoint", "end")
    runs = [
        [f"--output_dir={work / f'public_{name}'}", f"--hub_model_id=lab/public_{name}", f"--hub_strategy={name}"]
        for name in strategies
    ]
    for run in runs:
        run += [f"--backbone={work / 'named'}", f"--train_file={work / 'train.csv'}"]
    statuses, _, done = train(clients, work, *runs, token=ANN)
    assert statuses == [0, 0], done.stderr
    for name in strategies:
        repo = hub.repos[f"lab/public_{name}"]
        pushed = list(contents(repo))
        assert not repo.private and pushed
        for path, data in pushed:
            assert not path.endswith((".bin", ".pt", ".pth")) and "checkpoint" not in path
            assert str(work).encode() not in data, (name, path)
            assert not data.startswith((b"PK\x03\x04", b"\x80\x02")), path
        configs = [json.loads(data) for path, data in pushed if path == "config.json"]
        assert all(config["backbone_config"]["kept"] == "a/b" for config in configs)
    before = done.stdout.split("epoch 1/")[0]
    assert "lab/public_checkpoint is public. Only the model of each checkpoint goes up" in before


@pytest.mark.slow
def test_a_failed_push_in_the_background_or_at_the_end_is_told_and_the_folder_is_whole(hub, clients, work):
    commits, strategies = [], {"once": "every_save", "never": "end"}

    def fault(method, path):
        """The first commit to each repository cannot be made, and none to ann/never."""
        if method != "POST" or "/commit/" not in path:
            return None
        commits.append(path)
        return "refused" if "never" in path or commits.count(path) == 1 else None

    hub.fault = fault
    runs = [[f"--output_dir={n}", f"--hub_model_id=ann/{n}", f"--hub_strategy={s}"] for n, s in strategies.items()]
    statuses, told, done = train(clients, work, *runs, token=ANN)
    hub.fault = lambda method, path: None
    assert statuses == [3, 3], done.stderr
    assert "error: the push of step 2 failed: " in told[0] and "model is whole" not in told[0]
    (never,) = [line for line in told[1].splitlines() if line.startswith("error: ")]
    assert "The model is whole in never; to publish it: python -m lstmpool.training.publish never ann/never" in never
    assert hub.repos["ann/once"].pushed()[-1].title.startswith("Pin") and not hub.repos["ann/never"].pushed()
    for name in strategies:
        assert {"model.safetensors", "README.md", "config.json", *CODE} <= {p.name for p in (work / name).iterdir()}
    clients.publish("never", "ann/never", token=ANN, cwd=work)


@pytest.mark.slow
def test_a_training_that_ends_early_tells_what_was_pushed_and_what_was_not(hub, clients, work):
    """Ctrl-C in the second epoch: the checkpoint of the first, step 2, was on its way then."""
    hub.fault = lambda method, path: "refused" if method == "POST" and "/models/ann/lost/commit/" in path else None
    runs = [[f"--output_dir={name}", f"--hub_model_id=ann/{name}"] for name in ("lost", "kept")]
    statuses, told, done = train(clients, work, *runs, program=INTERRUPTED + RUN, token=ANN)
    hub.fault = lambda method, path: None
    assert statuses == [130, 130], done.stderr
    assert "error: the push of step 2 failed: " in told[0] and "the push of step" not in told[1]
    assert done.stdout.count("Pushed: step 2.") == 1
    assert not hub.repos["ann/lost"].pushed() and len(hub.repos["ann/kept"].pushed()) == 1


@pytest.mark.slow
def test_a_run_that_is_stopped_while_it_is_published_is_published_by_the_same_command(hub, clients, work):
    run = ["--output_dir=late", "--hub_model_id=ann/late", "--hub_strategy=end", "--save_total_limit=1"]
    statuses, _, done = train(clients, work, run, run, program=INTERRUPTED_PUSH + RUN, token=ANN)
    assert statuses == [130, 0], done.stderr
    assert "It goes on from late/checkpoint-4." in done.stdout and done.stdout.count("epoch 2/") == 1
    assert [commit.title[:6] for commit in hub.repos["ann/late"].pushed()] == ["Upload", "Pin th"]


def test_what_cannot_be_pushed_to_is_told_before_training(hub, clients, work):
    hub.repos["ann/rows"] = Repo(private=False)
    hub.repos["ann/rows"].commit("main", {"rows.csv": b"text"}, "rows")
    names = ["ann/rows", "bob/mine", "nobody"]
    runs = [[f"--output_dir=not{i}", f"--hub_model_id={name}"] for i, name in enumerate(names)]
    statuses, told, _ = train(clients, work, *runs, token=ANN)
    assert statuses == [2, 2, 2]
    for text, reason in zip(told, ["is taken by something", "answered 403", "names no owner"], strict=True):
        (line,) = [line for line in text.splitlines() if line.startswith("error: ")]
        assert reason in line
    assert not [path for path in work.iterdir() if path.name.startswith("not")]


@pytest.mark.slow
def test_what_a_backbone_on_the_hub_states_of_its_pooling_is_asked_for_by_its_name(hub, clients, work, tmp_path):
    """Once with a token and a revision, then offline; and a repository that states nothing, or does not tell."""
    files = {path.name: path.read_bytes() for path in (work / "backbone").iterdir()}
    modules = [{"path": "", "type": "x.Transformer"}, {"path": "1_Pooling", "type": "x.Pooling"}]
    stated = {"modules.json": modules, "1_Pooling/config.json": {"pooling_mode_mean_tokens": True}}
    stated = {name: json.dumps(content).encode() for name, content in stated.items()}
    hub.repos["ann/plain"], hub.repos["ann/stating"] = Repo(private=False), Repo(private=True)
    hub.repos["ann/plain"].commit("main", files, "no sentence-transformers")
    first = hub.repos["ann/stating"].commit("main", {**files, **stated}, "mean").id
    hub.repos["ann/stating"].commit("main", {"modules.json": None}, "none")
    hub.repos["ann/refused"] = Repo(private=False)
    hub.repos["ann/refused"].commit("main", {**files, **stated}, "mean")
    code = f"""
from lstmpool.modeling_lstmpool import LstmPoolModel
from lstmpool.training.flags.arguments import ModelArguments
from lstmpool.training.model.backbone import Backbone
def pooling(name, **hub):
    model = LstmPoolModel.from_backbone(name, lstm_hidden_size=4, **hub)
    backbone = Backbone.find(ModelArguments(backbone=name, model_revision=hub.get("revision", "main")))
    config = backbone.load_config()
    assert backbone.token_pooling(config, None, backbone.stated_pooling(config))[0] == model.config.token_pooling
    print(name, model.config.token_pooling)
pooling("ann/plain")
pooling("ann/stating", revision={first!r})
pooling("ann/stating")
if sys.argv[1:]:
    pooling(sys.argv[1])
"""
    hub.fault = lambda method, path: "refused" if path.startswith("/ann/refused") and "modules" in path else None
    online = clients.python(code, "ann/refused", token=ANN, home=tmp_path)
    hub.fault = lambda method, path: None
    expected = ["ann/plain cls", "ann/stating mean", "ann/stating cls"]
    assert online.stdout.splitlines() == [*expected, "ann/refused cls"]
    asked = len(hub.requests)
    offline = clients.python(code, home=tmp_path, HF_HUB_OFFLINE="1")
    assert offline.stdout.splitlines() == expected and len(hub.requests) == asked
