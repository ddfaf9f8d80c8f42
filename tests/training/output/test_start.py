"""How a run begins, as a table: what was found, what was asked for, and what is decided. Nothing is on disk."""

from pathlib import Path

import pytest

from lstmpool.training.errors import InputError
from lstmpool.training.loop.checkpoints import Saved
from lstmpool.training.output import start as module
from lstmpool.training.output.found import Found, Named
from lstmpool.training.output.run_record import RunRecord
from lstmpool.training.output.start import Fresh, Refuse, Replace, Resume, StartFlags, Wanted, choose_start, decide


OUT, RESOLVED = Path("out"), Path("/home/out")
FIVE, NINE = Saved(OUT / "checkpoint-5"), Saved(OUT / "checkpoint-9")
NINE_CUT = Saved(OUT / "checkpoint-9", "weights is missing")
NINE_LEFT_OUT = "out/checkpoint-9 is left out: weights is missing."
CODE = ("configuration_lstmpool.py", "modeling_lstmpool.py", "pooling_lstmpool.py")
MODEL = ("config.json", "metrics.json", "model.safetensors", *CODE, "run.json")
BESIDE = Replace(within=".new_run")


def found(files=(), checkpoints=(), named=None, record=None, **other):
    return Found(OUT, RESOLVED, record=record, files=files, checkpoints=checkpoints, named=named, **other)


def cut_off(resumed_from="", **settings):
    return RunRecord({"seed": 1} | settings, {}, resumed_from=resumed_from)


def elsewhere(damage="", beside=(), exists=True):
    return Named(Path("in/checkpoint-3"), Path("/home/in/checkpoint-3"), exists, damage, False, beside)


def inside(name="checkpoint-5", damage="", beside=(NINE, FIVE)):
    return Named(Path(f"./out/{name}"), RESOLVED / name, True, damage, True, beside)


FINISHED = RunRecord({"seed": 1}, {}, finished=True)
LAST, NAMED, OVERWRITE = StartFlags("last"), StartFlags("in/checkpoint-3"), StartFlags(overwrite=True)
NAMED_INSIDE = StartFlags("./out/checkpoint-5")
TAKEN = "--output_dir out holds a run already (config.json, metrics.json, model.safetensors). Choose another folder, "
CUT_OFF = "out holds this run, which was cut off."
# The settings that are wanted, what was found, the flags, and what is decided.
TABLE = {
    "an empty folder": (1, found(), StartFlags(), Fresh()),
    "an empty folder, with --overwrite": (1, found(), OVERWRITE, Fresh()),
    "what a run that was stopped at once leaves, of other settings": (
        2,
        found((*CODE, "run.json"), record=cut_off()),
        StartFlags(),
        Fresh(removed=(*CODE, "run.json")),
    ),
    # A file.
    "a file": (
        1,
        found(is_file=True),
        OVERWRITE,
        Refuse("--output_dir out must be a folder, found a file."),
    ),
    # The same run, cut off.
    "the same run, cut off": (
        1,
        found(MODEL, (NINE, FIVE), record=cut_off()),
        StartFlags(),
        Resume(NINE.path, said=(f"{CUT_OFF} It goes on from out/checkpoint-9.",)),
    ),
    "the same run, cut off, with --overwrite": (
        1,
        found(MODEL, (NINE, FIVE), record=cut_off()),
        OVERWRITE,
        Resume(NINE.path, said=(f"{CUT_OFF} It goes on from out/checkpoint-9.",)),
    ),
    "the same run, cut off in a save": (
        1,
        found((), (NINE_CUT, FIVE), record=cut_off()),
        LAST,
        Resume(
            FIVE.path,
            removed=("checkpoint-9",),
            said=(NINE_LEFT_OUT, f"{CUT_OFF} It goes on from out/checkpoint-5."),
        ),
    ),
    "the same run, cut off before it had saved": (
        1,
        found(("run.json",), (NINE_CUT,), record=cut_off()),
        StartFlags(),
        Replace(removed=("checkpoint-9", "run.json"), said=(NINE_LEFT_OUT, f"{CUT_OFF} It begins anew.")),
    ),
    "the same run, cut off before it had saved, and 'last'": (
        1,
        found(("run.json",), (NINE_CUT,), record=cut_off()),
        LAST,
        Refuse(
            "--resume_from_checkpoint last: out holds no whole checkpoint-* folder. Leave it out.", (NINE_LEFT_OUT,)
        ),
    ),
    "the same run, begun from a checkpoint and cut off before it had saved": (
        1,
        found(("run.json",), record=cut_off("/home/in/checkpoint-3"), named=elsewhere()),
        NAMED,
        Resume(
            Path("in/checkpoint-3"),
            "/home/in/checkpoint-3",
            removed=("run.json",),
            said=(f"{CUT_OFF} It goes on from in/checkpoint-3.",),
        ),
    ),
    "the same run, begun from a checkpoint and cut off after a save": (
        1,
        found((), (NINE,), record=cut_off("/home/in/checkpoint-3"), named=elsewhere(exists=False)),
        NAMED,
        Resume(NINE.path, "/home/in/checkpoint-3", said=(f"{CUT_OFF} It goes on from out/checkpoint-9.",)),
    ),
    "the same run, begun from a checkpoint, cut off, and no checkpoint named": (
        1,
        found((), (NINE,), record=cut_off("/home/in/checkpoint-3")),
        StartFlags(),
        Resume(NINE.path, "/home/in/checkpoint-3", said=(f"{CUT_OFF} It goes on from out/checkpoint-9.",)),
    ),
    "the same settings from another checkpoint": (
        1,
        found((), (NINE,), record=cut_off("/home/other"), named=elsewhere()),
        NAMED,
        Refuse(
            "--output_dir out holds a run with other settings, which was cut off (resume_from_checkpoint /home/other "
            "there and in/checkpoint-3 here). Go on with its command, or with these settings and "
            "--resume_from_checkpoint last; choose another folder, or replace it with --overwrite."
        ),
    ),
    # A checkpoint of the folder itself.
    "the last checkpoint of a finished run": (
        1,
        found(MODEL, (FIVE,), record=FINISHED),
        LAST,
        Resume(FIVE.path),
    ),
    "the last checkpoint of a finished run, of which one is damaged": (
        1,
        found(MODEL, (NINE_CUT, FIVE), record=FINISHED),
        LAST,
        Resume(FIVE.path, removed=("checkpoint-9",), said=(NINE_LEFT_OUT,)),
    ),
    "a checkpoint of the folder with a later one": (
        1,
        found(MODEL, (NINE, FIVE), named=inside(), record=FINISHED),
        NAMED_INSIDE,
        Refuse(
            "--resume_from_checkpoint out/checkpoint-5: checkpoint-9 comes after it, and would be replaced. "
            "Add --overwrite, or resume in another --output_dir."
        ),
    ),
    "a checkpoint of the folder with a later one, and --overwrite": (
        1,
        found(MODEL, (NINE, FIVE), named=inside(), record=FINISHED),
        StartFlags("./out/checkpoint-5", overwrite=True),
        Resume(Path("./out/checkpoint-5"), "/home/out/checkpoint-5", removed=("checkpoint-9",)),
    ),
    "a checkpoint of the folder with a later one that is damaged": (
        2,
        found(MODEL, (NINE_CUT, FIVE), named=inside(), record=FINISHED),
        NAMED_INSIDE,
        Resume(Path("./out/checkpoint-5"), "/home/out/checkpoint-5", removed=("checkpoint-9",)),
    ),
    "no checkpoint to resume from": (
        1,
        found(MODEL, record=FINISHED),
        LAST,
        Refuse(
            "--resume_from_checkpoint last: the run in out is finished, and has kept no checkpoint. Train its model "
            "further with --init_from out and another --output_dir. A run keeps its best checkpoint if it is given "
            "--save_total_limit 1."
        ),
    ),
    "a checkpoint that is not there": (
        1,
        found(named=elsewhere(exists=False)),
        NAMED,
        Refuse("--resume_from_checkpoint in/checkpoint-3 must be a checkpoint-* folder, found none."),
    ),
    "a damaged checkpoint beside a whole one": (
        1,
        found((), (NINE_CUT, FIVE), named=inside("checkpoint-9", "weights is missing", (NINE_CUT, FIVE))),
        StartFlags("./out/checkpoint-9"),
        Refuse(
            "--resume_from_checkpoint ./out/checkpoint-9 is not whole: weights is missing. The newest whole one is "
            "out/checkpoint-5: --resume_from_checkpoint out/checkpoint-5",
            (NINE_LEFT_OUT,),
        ),
    ),
    "a damaged checkpoint alone": (
        1,
        found(named=elsewhere("weights is missing", (NINE_CUT,))),
        NAMED,
        Refuse(
            "--resume_from_checkpoint in/checkpoint-3 is not whole: weights is missing. There is no whole one beside "
            "it.",
            (NINE_LEFT_OUT,),
        ),
    ),
    # What is not a run's.
    "the code that is running": (
        1,
        found(holds_code=True),
        OVERWRITE,
        Refuse("--output_dir out holds the code that is running. Choose another folder."),
    ),
    "files of the user's": (
        1,
        found(foreign=("README.md", "checkpoint-8 (a link)")),
        OVERWRITE,
        Refuse(
            "--output_dir out holds README.md, checkpoint-8 (a link), which no run recorded there has written, and "
            "this run would replace. Choose another folder, or move that away."
        ),
    ),
    "files of the user's beside the same run, cut off": (
        1,
        found(MODEL, (NINE,), record=cut_off(), foreign=("vocab.txt",)),
        StartFlags(),
        Refuse(
            "--output_dir out holds vocab.txt, which no run recorded there has written, and this run would replace. "
            "Choose another folder, or move that away."
        ),
    ),
    "a folder of the user's that is called like a fold": (
        1,
        found(foreign_members=("fold-1/run.json",)),
        StartFlags(),
        Fresh(),
    ),
    # Another kind of model.
    "another kind of model": (
        1,
        found(another_kind=("config.json",)),
        OVERWRITE,
        Refuse("--output_dir out holds another kind of model (config.json). Choose another folder."),
    ),
    "another kind of model, and a checkpoint elsewhere": (
        1,
        found((), (NINE,), named=elsewhere(), another_kind=("checkpoint-9",)),
        StartFlags("in/checkpoint-3", overwrite=True),
        Refuse("--output_dir out holds another kind of model (checkpoint-9). Choose another folder."),
    ),
    # Another run, cut off.
    "another run, cut off after a save": (
        2,
        found(("run.json",), (NINE,), record=cut_off()),
        StartFlags(),
        Refuse(
            "--output_dir out holds a run with other settings, which was cut off (seed 1 there and 2 here). Go on "
            "with its command, or with these settings and --resume_from_checkpoint last; choose another folder, or "
            "replace it with --overwrite."
        ),
    ),
    "another run, cut off, that keeps no checkpoints": (
        2,
        found(MODEL, record=cut_off()),
        StartFlags(),
        Refuse(
            "--output_dir out holds a run with other settings, which was cut off (seed 1 there and 2 here). Go on "
            "with its command; choose another folder, or replace it with --overwrite."
        ),
    ),
    "another run, cut off, and --overwrite": (
        2,
        found(MODEL, (NINE,), record=cut_off()),
        OVERWRITE,
        BESIDE,
    ),
    # A run.
    "a finished run": (
        1,
        found(MODEL, record=FINISHED),
        StartFlags(),
        Refuse(f"{TAKEN}or replace it with --overwrite."),
    ),
    "a finished run with checkpoints": (
        1,
        found(("run.json",), (FIVE,), record=FINISHED),
        StartFlags(),
        Refuse(
            "--output_dir out holds a run already (checkpoint-5). Choose another folder, continue that run with "
            "--resume_from_checkpoint last, or replace it with --overwrite."
        ),
    ),
    "folds": (
        1,
        found(("run.json",), record=FINISHED, members=("fold-1", "fold-2")),
        StartFlags(),
        Refuse(
            "--output_dir out holds a run already (fold-1, fold-2). Choose another folder, or replace it with "
            "--overwrite."
        ),
    ),
    "a run with folds, and --overwrite": (
        1,
        found(("a.csv", "run.json", "z.csv"), (FIVE,), record=FINISHED, members=("fold-1", "fold-2")),
        OVERWRITE,
        BESIDE,
    ),
    # A checkpoint of another folder.
    "a checkpoint elsewhere, into an empty folder": (
        1,
        found(named=elsewhere()),
        NAMED,
        Resume(Path("in/checkpoint-3"), "/home/in/checkpoint-3"),
    ),
    "a checkpoint elsewhere, into a folder that is taken": (
        1,
        found(MODEL, named=elsewhere(), record=FINISHED),
        NAMED,
        Refuse(f"{TAKEN}or replace it with --overwrite."),
    ),
    "a checkpoint elsewhere, into a folder that is taken, and --overwrite": (
        1,
        found(MODEL, (NINE,), named=elsewhere(), record=FINISHED),
        StartFlags("in/checkpoint-3", overwrite=True),
        Resume(Path("in/checkpoint-3"), "/home/in/checkpoint-3", within=".new_run"),
    ),
}


@pytest.mark.parametrize("case", TABLE)
def test_how_a_run_begins(case):
    seed, what_was_found, flags, expected = TABLE[case]
    assert decide(what_was_found, Wanted({"seed": seed}), flags) == expected


@pytest.mark.parametrize("source", ["/home/out", "/home/out/checkpoint-5"])
@pytest.mark.parametrize("what_was_found", [found(MODEL, record=FINISHED), found(record=cut_off()), found()])
def test_the_model_to_start_from_is_not_written_over(source, what_was_found):
    decision = decide(what_was_found, Wanted({"seed": 1}, Path(source)), OVERWRITE)
    assert decision == Refuse("--output_dir out holds the model of --init_from. Choose another folder.")


@pytest.mark.parametrize("source", ["/home/other", "/home", "/home/out-2"])
def test_a_model_beside_the_folder_or_above_it_may_be_started_from(source):
    assert decide(found(), Wanted({}, Path(source)), StartFlags()) == Fresh()


def test_every_rule_decides_in_one_row_of_the_table():
    """A rule without a row would be lost unseen."""
    decided = set()
    for seed, what_was_found, flags, _ in TABLE.values():
        for rule in module.RULES:
            if rule(what_was_found, Wanted({"seed": seed}), flags) is not None:
                decided.add(rule)
                break
    left = {rule.__name__ for rule in set(module.RULES) - decided}
    beside = {"_go_on_with_the_new_run", "_resume_within_the_new_run", "_keep_a_new_run"}  # see test_overwriting.py
    seeds = {"_add_seeds"}  # see ../runs/test_seeds.py
    assert left == {"_keep_the_model_to_start_from"} | beside | seeds  # the first one is above


@pytest.mark.parametrize(
    ("decision", "said"),
    [
        (Fresh(), ""),
        (Resume(FIVE.path, said=("one", "two")), "one\ntwo\n"),
        (Refuse("no", ("before",)), "before\n"),
    ],
)
def test_what_is_decided_is_told(tmp_path, monkeypatch, capsys, decision, said):
    monkeypatch.setattr(module, "decide", lambda *given: decision)
    if isinstance(decision, Refuse):
        with pytest.raises(InputError, match="^no$"):
            choose_start(tmp_path, {})
    else:
        assert choose_start(tmp_path, {}) is decision
    assert capsys.readouterr().out == said


def test_what_is_wanted_is_handed_on_with_what_was_found(tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(module, "decide", lambda *values: given.extend(values) or Fresh())
    monkeypatch.chdir(tmp_path)
    choose_start("out", {"seed": 1}, "in", overwrite=True, init_from="model")
    assert given == [
        Found(OUT, tmp_path / "out", named=Named(Path("in"), tmp_path / "in", exists=False)),
        Wanted({"seed": 1}, tmp_path / "model"),
        StartFlags("in", overwrite=True),
    ]
