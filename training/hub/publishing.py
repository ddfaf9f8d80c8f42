"""Publishes a saved model on the Hub: checks the folder, pushes it, and loads what was pushed as a stranger would.

`options` has the command's help and flags.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import transformers
from transformers import AutoTokenizer
from transformers.utils import ADAPTER_CONFIG_NAME

from lstmpool.modeling_lstmpool import LstmPoolForSequenceClassification
from lstmpool.training.errors import InputError, as_line, did_you_mean
from lstmpool.training.hub.card import Lines, pin_card
from lstmpool.training.hub.clean_load import LoadError, largest_difference, load_in_fresh_process, probe_logits
from lstmpool.training.hub.exported import ExportHub, Pair, checked_export
from lstmpool.training.hub.folder import CodeFile, UnfitFolder, check_files, compare_code, copy_files, read_json
from lstmpool.training.hub.options import Options, make_parser
from lstmpool.training.hub.repository import Hub, PushError
from lstmpool.training.hub.scratch import scratch
from lstmpool.training.hub.space import ENDING, Page, SpaceHub, checked_page
from lstmpool.training.model.backbone import LONGEST, how_to_merge
from lstmpool.training.output.found import EXPORTED, FOLD, SEED, export_of, read_export
from lstmpool.training.output.markdown import visible
from lstmpool.training.output.run_record import NAME as RECORD
from lstmpool.training.tasks.inference import TASKS


MAIN = "main"
NO_LIMIT = 10**9  # tokens; a tokenizer that says more does not know where to cut
TOLERANCE = 1e-5  # of the largest logit: two processes on one machine may round differently, a lost weight is far off


@dataclass(frozen=True)
class Checked:
    """A folder that passed: its `name`, a copy of what will be published, and the logits that the copy must give."""

    name: str
    folder: Path
    logits: list[list[float]]
    code: list[CodeFile]
    left_out: list[str]


@dataclass(frozen=True)
class Published:
    """Where a model is now. A stranger has loaded `commit`; `snippet` loads it."""

    repo_id: str
    commit: str
    snippet: str
    beside: str = ""  # what is said of the export and the page

    @property
    def told(self) -> str:
        """What the command says."""
        return (
            f"{self.repo_id} at commit {self.commit} loads and gives the same logits:\n\n{self.snippet}{self.beside}"
        )


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = make_parser()
    options, words, unknown = parser.parse_args_into_dataclasses(args=argv, return_remaining_strings=True)
    transformers.utils.logging.disable_progress_bar()
    try:
        if unknown:
            flags = [flag for action in parser._actions for flag in action.option_strings]
            hint = did_you_mean(unknown[0].split("=")[0], flags)
            raise InputError(f"unknown argument {unknown[0]!r}.{hint} --help lists all.")
        run(Path(words.folder), words.repo_id, options)
    except InputError as error:
        for line in getattr(error, "problems", [error]):
            print(f"error: {line}", file=sys.stderr)
        return 2
    except PushError as error:
        print(f"error: {as_line(error)}", file=sys.stderr)
        return 3
    return 0


def run(folder: Path, repo_id: str | None, options: Options) -> None:
    """Checks what is asked for, and pushes it. Raises InputError or PushError, as `push` does."""
    hub = pair_hub = page_hub = None
    export_folder = export_of(folder) if options.onnx == "" else Path(options.onnx or "")
    _check_words(repo_id, options)
    if not options.check:  # before the long work
        hub = Hub.connect(repo_id, options.branch)
        if options.onnx is not None:
            pair_hub = ExportHub.connect(f"{repo_id}{EXPORTED}", options.branch)
        if options.space is not None:
            page_hub = SpaceHub.connect(options.space or f"{repo_id}{ENDING}", options.branch)
    with ExitStack() as stack:
        model = stack.enter_context(checked(folder, options.trust_remote_code))
        print(describe(model), flush=True)
        beside: list[Pair | Page] = []
        if options.onnx is not None:
            export = stack.enter_context(checked_export(export_folder, model.folder))
            print(export.describe(), flush=True)
            beside.append(Pair(export, pair_hub))
        elif read_export(export_of(folder)):
            print(f"{export_of(folder)} is not published: for that, add --onnx.")
        if options.space is not None:
            beside.append(stack.enter_context(checked_page(model.folder, model.logits, page_hub)))
            print("Its page answers as the model does.", flush=True)
        if hub is not None:
            print(push(model, hub, options, beside).told)


def _check_words(repo_id: str | None, options: Options) -> None:
    """Raises InputError if a flag has taken the repository for its value, or a Space could not show the page."""
    for flag, value, what in (("--onnx", options.onnx, "folder"), ("--space", options.space, "name")):
        if value and repo_id is None and not options.check:
            raise InputError(
                f"expected a repository OWNER/NAME, found none: {flag} has taken {value!r} for its {what}. Write the "
                f"flag last, or as {flag}={'FOLDER' if what == 'folder' else 'OWNER/NAME'}."
            )
    if options.space is not None and options.branch != MAIN:
        raise InputError(
            f"--space expects the branch {MAIN}, which is the one that a Space shows, found --branch "
            f"{options.branch}. Leave one of the two flags out."
        )


@contextmanager
def checked(folder: Path, trust_remote_code: bool = False) -> Iterator[Checked]:
    """Copies the files that are published, and checks the copy, so that no other file can make the check pass.

    Args:
        folder: of the model.
        trust_remote_code: whether the folder's code is run though it is not that of the installed release.

    Raises:
        InputError: if the folder must not be published.
    """
    _check_kind(folder)
    with scratch() as place:
        copy = place / "model"
        copy.mkdir()
        left_out = copy_files(folder, copy)
        if problems := check_files(copy):
            raise UnfitFolder(problems)
        code = compare_code(copy)
        if not trust_remote_code:
            _check_code(code)
        yield Checked(folder.resolve().name, copy, _logits(copy), code, left_out)


def _check_kind(folder: Path) -> None:
    """Raises InputError if this is no folder with a whole model."""
    if not folder.is_dir():
        raise InputError(f"expected the folder of a saved model, found none at {folder}.")
    if (folder / ADAPTER_CONFIG_NAME).exists():
        raise InputError(f"{folder} holds an adapter, which does not load by itself. {how_to_merge(str(folder))}")
    for kind, what in ((FOLD, "folds of a cross-validation"), (SEED, "runs of several seeds")):
        members = sorted(path.parent for path in folder.glob(f"{kind}*/{RECORD}"))
        if members and not (folder / "config.json").exists():
            raise InputError(
                f"{folder} holds the {len(members)} {what}, each with a model of its own, and no model for all. "
                f"Publish one of them, such as {members[0]}."
            )


def _check_code(code: list[CodeFile]) -> None:
    """Shows code that is not the installed release's. Raises InputError if there is any: to check it is to run it."""
    changed = [file for file in code if not file.is_released]
    if changed:
        print("\n".join(describe_code(changed)), flush=True)
        raise InputError(
            f"expected the code of the installed release, found other code in {', '.join(f.name for f in changed)}. A "
            "check runs it. Read it first: the differences stand above. If you trust it, add --trust_remote_code."
        )


def push(model: Checked, hub: Hub, options: Options, beside: Sequence[Pair | Page] = ()) -> Published:
    """Pushes a checked folder, loads the commit in a fresh process, and pins the model card to it.

    `beside`: the model's export and page, which are pushed once the model is right, and before its card leads to them.

    Raises:
        InputError: if nothing was published.
        PushError: if a commit was pushed, or may have been, that was not shown to be right.
    """
    card = (model.folder / "README.md").read_text(encoding="utf-8")
    hub.check_card(card)
    hub.open(options.private, options.tag)
    for each in beside:
        each.open(hub, options)
    commit = hub.push({path.name: path for path in model.folder.iterdir()})
    pushed = f"{hub.repo_id} has the new commit {commit}"
    try:
        token = hub.token if hub.private else None
        loaded = load_in_fresh_process(hub.repo_id, model.folder.parent, commit, token)
        _compare(model.logits, loaded["logits"])
    except LoadError as error:
        raise PushError(f"{pushed}, which does not load as it should: {error}") from None
    if loaded["code"] != {file.name: file.sha256 for file in model.code}:
        raise PushError(f"{pushed}, whose code is not the folder's: {loaded['code']}.")
    card, snippet = pin_card(card, hub.repo_id, commit, model.name, _lines(model.folder))
    said, card = _push_beside(beside, hub, commit, card)
    hub.push_card(card, commit)
    if options.tag:
        for each in [hub, *(one.hub for one in beside)]:
            each.tag(options.tag)
    return Published(hub.repo_id, commit, snippet, said)


def _push_beside(beside: Sequence[Pair | Page], hub: Hub, commit: str, card: str) -> tuple[str, str]:
    """Pushes the export and the page of a model's `commit`. Returns what is said of them, and a card that names them.

    Raises:
        PushError: if one of them is not right. It names those that were pushed before it.
    """
    said = ""
    done = []
    for each in beside:
        try:
            mine = each.push(hub, commit)
        except PushError as error:
            raise PushError(" ".join([str(error), *done])) from None
        card = each.link(card)
        said += f"\n\n{each.told(hub, mine)}"
        done.append(f"{each.hub.repo_id} has the new commit {mine}, which is right.")
    return said, card


def describe(model: Checked) -> str:
    """Says what will be published, and how the code that `trust_remote_code` will trust differs from the release."""
    names = sorted(path.name for path in model.folder.iterdir())
    lines = [f"Fit to be published: {', '.join(names)}."]
    if model.left_out:
        lines.append(f"Left out: {', '.join(map(visible, model.left_out))}.")
    return "\n".join(lines + describe_code(model.code))


def describe_code(files: list[CodeFile]) -> list[str]:
    """Lines that say how code files differ from the installed release."""
    lines = []
    for file in files:
        verdict = "is that of the installed release:" if file.is_released else "differs from the installed release:"
        lines.append(f"{file.name} {verdict}")
        lines.append(f"  sha256 {file.sha256}  this folder")
        lines.append(f"  sha256 {file.released}  installed release")
        lines += [f"  {visible(line)}" for line in file.difference]
    return lines


def _logits(folder: Path) -> list[list[float]]:
    """The probes' logits by the installed code. The folder's own code, in a fresh process, must give the same."""
    try:
        model = LstmPoolForSequenceClassification.from_pretrained(folder).eval()
        logits = probe_logits(model, AutoTokenizer.from_pretrained(folder))
    except (OSError, ValueError, RuntimeError, TypeError, KeyError, AttributeError) as error:
        raise UnfitFolder([f"the folder does not load with the installed lstmpool: {error}"]) from None
    del model
    try:
        _compare(logits, load_in_fresh_process(str(folder), folder.parent)["logits"])
    except LoadError as error:
        raise UnfitFolder([f"in a fresh process the folder does not load as it should: {error}"]) from None
    return logits


def _lines(folder: Path) -> Lines:
    """What the loading lines of the model in a checked folder depend on."""
    config = read_json(folder / "config.json") or {}
    task = TASKS[config["problem_type"]](list(config["id2label"].values()))
    tokenizer = read_json(folder / "tokenizer_config.json") or {}
    cuts = tokenizer.get("model_max_length", NO_LIMIT) < NO_LIMIT
    positions = config["backbone_config"].get("max_position_embeddings") or LONGEST
    longest = min(positions - 2, LONGEST)  # RoBERTa and its kin use two less
    return Lines(many=task.gives_several_answers, max_length=None if cuts else longest)


def _compare(expected: list[list[float]], found: list[list[float]]) -> None:
    difference = largest_difference(expected, found)
    if difference > TOLERANCE:
        raise LoadError(f"its logits differ by {difference:.2g} (of the largest) from those of the installed code.")
