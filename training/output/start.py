"""Decides how a run begins in its output folder: afresh, from a checkpoint, in place of another run, or not at all.

`decide` is a pure function of what was found, what is wanted and which flags were given. It tries its rules in order,
and the first one that applies decides. `choose_start` looks at the disk, decides, and tells the user.

A run that replaces another one works in the folder `NEW_RUN` inside of the output folder, and takes the other's place
once it is whole (see `handover`). So the other one stays until then, whatever becomes of the new one.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lstmpool.training.errors import InputError
from lstmpool.training.loop.checkpoints import Saved, newest_whole
from lstmpool.training.output.found import CODE_NAMES, FOLD, NEW_RUN, Found, Members, look
from lstmpool.training.output.run_record import NAME as RECORD


FLAG = "--resume_from_checkpoint"


@dataclass(frozen=True)
class Wanted:
    """What the run is asked for: its settings, and the absolute path of the model that it starts from, if any."""

    settings: dict[str, Any]
    init_from: Path | None = None

    @property
    def members(self) -> Members:
        """The runs that the command makes, if it makes several."""
        return Members.of(self.settings)


@dataclass(frozen=True)
class StartFlags:
    """The flags that decide how a run begins, as they were typed."""

    resume_from_checkpoint: str | None = None
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class _Begun:
    """A run that begins.

    Args:
        within: name of the folder in the output folder where the run works until it is whole; empty if it works in the
            output folder itself.
        removed: names in the folder where the run works that it removes, in this order, before it writes.
        said: lines that tell the user why.
    """

    within: str = ""
    removed: tuple[str, ...] = ()
    said: tuple[str, ...] = ()

    def place(self, output_dir: str | Path) -> Path:
        """The folder where the run works."""
        return Path(output_dir, self.within)


@dataclass(frozen=True)
class Fresh(_Begun):
    """From the first step, in a folder without a run, or with no more than a run leaves if it is stopped at once."""


@dataclass(frozen=True)
class Replace(_Begun):
    """From the first step, in place of what an earlier run has left, or beside it until the run is whole."""


@dataclass(frozen=True)
class Resume(_Begun):
    """From a checkpoint.

    `resumed_from` is for the run's record: the absolute path of the checkpoint that the command names, or empty. By
    it, the same command, given again, goes on from the run's own last checkpoint.
    """

    checkpoint: Path
    resumed_from: str = ""


@dataclass(frozen=True)
class GoOn(_Begun):
    """With the folds or seeds that a command has yet to run."""


@dataclass(frozen=True)
class Refuse:
    """Not at all. The message says what to do; the lines in `said` come before it."""

    message: str
    said: tuple[str, ...] = ()


Start = Fresh | Resume | Replace | GoOn
Decision = Start | Refuse


def choose_start(
    output_dir: str | Path,
    settings: dict[str, Any],
    resume_from_checkpoint: str | None = None,
    overwrite: bool = False,
    init_from: str | None = None,
) -> Start:
    """Decides how the run with these `settings` begins in `output_dir`, and changes nothing there. Says so if it goes
    on from a checkpoint.

    Raises:
        InputError: if the folder is taken, holds the model to start from, or has no checkpoint to resume from.
    """
    found = look(Path(output_dir), resume_from_checkpoint)
    wanted = Wanted(settings, Path(init_from).resolve() if init_from else None)
    decision = decide(found, wanted, StartFlags(resume_from_checkpoint, overwrite))
    for line in decision.said:
        print(line)
    if isinstance(decision, Refuse):
        raise InputError(decision.message)
    return decision


def decide(found: Found, wanted: Wanted, flags: StartFlags) -> Decision:
    """How the run begins. The first of `RULES` that applies decides; if none does, it begins from the first step."""
    for rule in RULES:
        decision = rule(found, wanted, flags)
        if decision is not None:
            return decision
    if _is_taken(found):
        return Replace(within=NEW_RUN, removed=_all_of_new(found))
    return Fresh(removed=found.all_of_run)


def _keep_the_model_to_start_from(found: Found, wanted: Wanted, flags: StartFlags) -> Decision | None:
    """Refuses to overwrite the model of `--init_from`, or to remove its checkpoints."""
    source = wanted.init_from
    if source is None or found.resolved not in (source, *source.parents):
        return None
    return Refuse(f"--output_dir {found.folder} holds the model of --init_from. Choose another folder.")


def _refuse_a_file(found: Found, wanted: Wanted, flags: StartFlags) -> Decision | None:
    if not found.is_file:
        return None
    return Refuse(f"--output_dir {found.folder} must be a folder, found a file.")


def _keep_the_running_code(found: Found, wanted: Wanted, flags: StartFlags) -> Decision | None:
    if not found.holds_code:
        return None
    return Refuse(f"--output_dir {found.folder} holds the code that is running. Choose another folder.")


def _keep_another_kind_of_model(found: Found, wanted: Wanted, flags: StartFlags) -> Decision | None:
    """Refuses to replace another kind of model, even with --overwrite: it belongs to the user."""
    if not found.another_kind:
        return None
    return Refuse(
        f"--output_dir {found.folder} holds another kind of model ({found.another_kind[0]}). Choose another folder."
    )


def _keep_what_is_foreign(found: Found, wanted: Wanted, flags: StartFlags) -> Decision | None:
    """Refuses to replace what no run has written, even with --overwrite: it belongs to the user."""
    foreign = [*found.foreign, *filter(wanted.members.would_use, found.foreign_members)]
    if not foreign:
        return None
    return Refuse(
        f"--output_dir {found.folder} holds {', '.join(foreign[:5])}, which no run recorded there has written, and "
        "this run would replace. Choose another folder, or move that away."
    )


def _go_on_with_the_new_run(found: Found, wanted: Wanted, flags: StartFlags) -> Decision | None:
    """Goes on with a run that was to replace the folder's run, if the same command is given again."""
    if found.new is None:
        return None
    decision = _within_new_run(_go_on_with_the_same_run(found.new, wanted, flags))
    if isinstance(decision, Replace):  # it begins anew where it works, whatever it had written there
        return replace(decision, removed=found.new.all_of_run)
    return decision


def _go_on_with_the_same_run(found: Found, wanted: Wanted, flags: StartFlags) -> Decision | None:
    """Goes on with a run that was cut off if the same command is given again, whatever --overwrite says."""
    if not _is_cut_off(found) or found.record.differs(wanted.settings) or not _begins_where_it_began(found, flags):
        return None
    if wanted.members.kind:
        what = "this cross-validation" if wanted.members.kind == FOLD else "this run with several seeds"
        return GoOn(said=(f"{found.folder} holds {what}, which was cut off. It goes on.",))
    said = _left_out(found.checkpoints)
    checkpoint = newest_whole(found.checkpoints)
    if checkpoint is None and flags.resume_from_checkpoint:
        checkpoint = _find_named(found, flags)  # the run was cut off before its first save
    if isinstance(checkpoint, Refuse):
        return checkpoint
    cut_off = f"{found.folder} holds this run, which was cut off."
    if checkpoint is None:
        said = (*said, f"{cut_off} It begins anew.")
        if "config.json" in found.files:  # a model that may load: it stays until there is another one
            return Replace(within=NEW_RUN, removed=_all_of_new(found), said=said)
        return Replace(removed=found.all_of_run, said=said)
    return Resume(
        checkpoint.path,
        found.record.resumed_from,
        removed=_replaced_by(checkpoint, found),
        said=(*said, f"{cut_off} It goes on from {checkpoint.path}."),
    )


def _add_seeds(found: Found, wanted: Wanted, flags: StartFlags) -> Decision | None:
    """Keeps the seeds that the folder holds if the command differs only in that it wants more of them."""
    record = found.record
    if record is None or found.new is not None or flags.overwrite:
        return None
    before = record.settings.get("seeds")
    if not wanted.members.add_to(record.settings) or record.differs(wanted.settings | {"seeds": before}):
        return None
    return GoOn(said=(f"{found.folder} holds a run with {before} of these seeds. The others are added.",))


def _resume_within_the_new_run(found: Found, wanted: Wanted, flags: StartFlags) -> Decision | None:
    """Resumes from a checkpoint of the run that was to replace the folder's run. "last" means one of these, too."""
    if found.new is None:
        return None
    return _within_new_run(_resume_within_the_folder(found.new, wanted, flags))


def _resume_within_the_folder(found: Found, wanted: Wanted, flags: StartFlags) -> Decision | None:
    """Resumes from a checkpoint of the folder's own run. Replaces later whole ones only with --overwrite."""
    if not flags.resume_from_checkpoint:
        return None
    checkpoint = _find_named(found, flags)
    if isinstance(checkpoint, Refuse):
        return checkpoint
    if not _is_inside(checkpoint, found):
        return None
    later = [each for each in _later(checkpoint, found) if not each.damage]
    if later and not flags.overwrite:
        return Refuse(
            f"{FLAG} {checkpoint.path}: {later[0].path.name} comes after it, and would be replaced. "
            "Add --overwrite, or resume in another --output_dir."
        )
    return Resume(
        checkpoint.path,
        str(found.named.resolved) if found.named is not None else "",
        removed=_replaced_by(checkpoint, found),
        said=_left_out(found.checkpoints) if found.named is None else (),
    )


def _keep_a_new_run(found: Found, wanted: Wanted, flags: StartFlags) -> Decision | None:
    """Refuses, without --overwrite, to replace a cut-off run that was to replace the folder's run."""
    return _keep_a_cut_off_run(found.new, wanted, flags) if found.new is not None else None


def _keep_a_cut_off_run(found: Found, wanted: Wanted, flags: StartFlags) -> Decision | None:
    """Refuses, without --overwrite, to replace a cut-off run that has other settings or another start."""
    if not _held(found) or flags.overwrite or not _is_cut_off(found):
        return None
    record = found.record
    start = f"resume_from_checkpoint {record.resumed_from or None} there and {flags.resume_from_checkpoint} here"
    saved = f", or with these settings and {FLAG} last" if found.checkpoints else ""
    return Refuse(
        f"--output_dir {found.folder} holds a run with other settings, which was cut off "
        f"({record.differs(wanted.settings) or start}). Go on with its command{saved}; choose another folder, or "
        "replace it with --overwrite."
    )


def _keep_a_run(found: Found, wanted: Wanted, flags: StartFlags) -> Decision | None:
    """Refuses, without --overwrite, to replace what a run has left."""
    held = _held(found)
    if not held or flags.overwrite:
        return None
    go_on = f"continue that run with {FLAG} last, " if found.checkpoints else ""
    return Refuse(
        f"--output_dir {found.folder} holds a run already ({', '.join(held[:3])}). Choose another folder, {go_on}or "
        "replace it with --overwrite."
    )


def _resume_from_another_folder(found: Found, wanted: Wanted, flags: StartFlags) -> Decision | None:
    """Resumes from another folder's checkpoint. It is whole by now, and what lies in the output folder may go."""
    if found.named is None:
        return None
    begun = Resume(found.named.path, str(found.named.resolved))
    if _is_taken(found):
        return replace(begun, within=NEW_RUN, removed=_all_of_new(found))
    return replace(begun, removed=found.all_of_run)


RULES = (
    _keep_the_model_to_start_from,
    _refuse_a_file,
    _keep_the_running_code,
    _keep_another_kind_of_model,
    _keep_what_is_foreign,
    _go_on_with_the_new_run,
    _go_on_with_the_same_run,
    _add_seeds,
    _resume_within_the_new_run,
    _resume_within_the_folder,
    _keep_a_new_run,
    _keep_a_cut_off_run,
    _keep_a_run,
    _resume_from_another_folder,
)


def _within_new_run(decision: Decision | None) -> Decision | None:
    """The same, of the run that works in `NEW_RUN`."""
    return decision if decision is None or isinstance(decision, Refuse) else replace(decision, within=NEW_RUN)


def _is_cut_off(found: Found) -> bool:
    return found.record is not None and not found.record.finished


def _begins_where_it_began(found: Found, flags: StartFlags) -> bool:
    """Whether the command names no checkpoint, or the one that the folder's run began from."""
    return found.named is None or str(found.named.resolved) == found.record.resumed_from


def _find_named(found: Found, flags: StartFlags) -> Saved | Refuse:
    """The checkpoint that the flag names: a path, or "last" for the newest whole one in the folder.

    Refuses a checkpoint that is missing or not whole, and says how to resume from the newest whole one.
    """
    named = found.named
    typed = flags.resume_from_checkpoint
    if named is None:
        newest = newest_whole(found.checkpoints)
        if newest is not None:
            return newest
        missing = f"{FLAG} {typed}: {found.folder} holds no whole checkpoint-* folder. Leave it out."
        if found.record is not None and found.record.finished and not found.checkpoints:
            missing = (
                f"{FLAG} {typed}: the run in {found.folder} is finished, and has kept no checkpoint. Train its model "
                f"further with --init_from {found.folder} and another --output_dir. A run keeps its best checkpoint "
                "if it is given --save_total_limit 1."
            )
        return Refuse(missing, _left_out(found.checkpoints))
    if not named.exists:
        return Refuse(f"{FLAG} {typed} must be a checkpoint-* folder, found none.")
    if named.damage:
        newest = newest_whole(named.beside)
        remedy = "There is no whole one beside it."
        if newest is not None:
            remedy = f"The newest whole one is {newest.path}: {FLAG} {newest.path}"
        return Refuse(f"{FLAG} {typed} is not whole: {named.damage}. {remedy}", _left_out(named.beside))
    return Saved(named.path)


def _left_out(checkpoints: tuple[Saved, ...]) -> tuple[str, ...]:
    """A line for each checkpoint that is newer than the newest whole one."""
    lines = []
    for each in checkpoints:
        if not each.damage:
            break
        lines.append(f"{each.path} is left out: {each.damage}.")
    return tuple(lines)


def _is_inside(checkpoint: Saved, found: Found) -> bool:
    return checkpoint in found.checkpoints or (found.named is not None and found.named.in_output)


def _later(checkpoint: Saved, found: Found) -> tuple[Saved, ...]:
    """The checkpoints of the folder from later steps, the newest first."""
    names = [each.path.name for each in found.checkpoints]
    name = checkpoint.path.name
    return found.checkpoints[: names.index(name)] if name in names else ()


def _replaced_by(checkpoint: Saved, found: Found) -> tuple[str, ...]:
    """Names of what a resumed run removes: the checkpoints of later steps, or, if it resumes from another folder, all
    that is there."""
    if not _is_inside(checkpoint, found):
        return found.all_of_run
    return tuple(each.path.name for each in _later(checkpoint, found))


def _is_taken(found: Found) -> bool:
    """Whether there is anything that the user would lose, or a run that was to replace it."""
    return bool(_held(found)) or found.new is not None


def _all_of_new(found: Found) -> tuple[str, ...]:
    """Names of what a run that was to replace the folder's run has left in `NEW_RUN`."""
    return found.new.all_of_run if found.new is not None else ()


def _held(found: Found) -> list[str]:
    """Names of what the user would lose. The record and the code, which a run writes first, do not count."""
    saved = [each.path.name for each in found.checkpoints]
    return [*sorted({*found.files, *saved} - {RECORD, *CODE_NAMES}), *found.members]
