"""Checks of what stands beside the weights: configs, the noise schedule, vocabularies."""

from dataclasses import asdict, replace

from audioldm2.checkpoints import storage
from audioldm2.errors import WeightsError
from audioldm2.verification.finding import FAILED, MEASURED, PASSED, SEND, Finding, Inapplicable
from audioldm2.verification.subject import Subject

CONVERT_AGAIN = "Take the config files of the right checkpoint, and convert it again."


def settings(subject: Subject) -> Finding:
    """Compare what no tensor shows: heads, groups, epsilons, rates, scaling, noise schedule, CLAP's mel."""
    checkpoint, facts = subject.checkpoint, subject.facts
    schedule = storage.schedule_of(checkpoint, subject.source)
    clap_mel = storage.clap_mel_of(checkpoint, subject.source)
    figures = {
        "heads": list(checkpoint.configs["unet"].heads),
        "schedule": asdict(schedule),
        "alpha_bar": [schedule.alpha_bar_at(0), schedule.alpha_bar_at(schedule.steps - 1)],
        "clap_mel": asdict(clap_mel),
    }
    if facts is None:
        return Finding(
            "settings", MEASURED, f"Schedule: {schedule}. Nothing to compare with is known.", figures
        )
    problems = []
    for name, config in checkpoint.configs.items():
        expected = facts.configs.get(name)
        if expected is None:
            continue
        if name == "unet":  # its heads have their own reading
            expected = replace(expected, heads=config.heads)
        ours, theirs = asdict(config), asdict(expected)
        problems += [
            f"'{name}' has {field} {ours[field]}; it has to be {theirs[field]}."
            for field in ours
            if not _equal(ours[field], theirs[field])
        ]
    if facts.heads is not None and tuple(facts.heads) != checkpoint.configs["unet"].heads:
        problems.append(
            f"'unet' is read with {list(checkpoint.configs['unet'].heads)} heads; {facts.name} has "
            f"{list(facts.heads)}. Convert it with the other --heads."
        )
    if schedule != facts.schedule:
        problems.append(f"The noise schedule is {schedule}; it has to be {facts.schedule}.")
    if facts.unconditional not in (None, checkpoint.unconditional):
        problems.append(
            f"An empty negative prompt is encoded as '{checkpoint.unconditional}'; it has to be "
            f"'{facts.unconditional}'."
        )
    if clap_mel != facts.clap_mel:
        problems.append(f"CLAP's front end is {clap_mel}; it has to be {facts.clap_mel}.")
    if not problems:
        return Finding("settings", PASSED, f"All settings are those of {facts.name}.", figures)
    return Finding(
        "settings",
        FAILED,
        f"{len(problems)} settings differ from those of {facts.name}.",
        figures,
        tuple(problems),
        "The weights fit, but compute something else than they were trained for.",
        f"{CONVERT_AGAIN} If the conversion changed them: {SEND}",
    )


def _equal(ours: object, theirs: object) -> bool:
    if isinstance(ours, float) and isinstance(theirs, float):
        return abs(ours - theirs) <= 1e-6 * abs(theirs)  # original files hold float32
    return ours == theirs


def tokenizers(subject: Subject) -> Finding:
    """Encode known texts and compare the ids."""
    needed = storage.tokenizers_of(subject.checkpoint.configs)
    if not needed:
        raise Inapplicable("the checkpoint needs no tokenizer.")
    figures, problems = {}, []
    known = subject.facts.tokens if subject.facts else {}
    compared = 0
    for name in needed:
        folder = subject.checkpoint.tokenizers.get(name)
        if folder is None:
            problems.append(f"{name} is missing: no prompt can be read. Give it with --tokenizers FOLDER.")
            continue
        try:
            tokenizer = storage.TOKENIZERS[name].from_folder(folder)
        except WeightsError as error:
            problems.append(str(error))
            continue
        figures[name] = {"pieces": tokenizer.splitter.get_vocab_size(), "folder": str(folder)}
        for text, ids in known.get(name, {}).items():
            found, compared = tuple(tokenizer.encode(text)), compared + 1
            if found != tuple(ids):
                problems.append(f"{name} reads {text!r} as {list(found)}; it has to be {list(ids)}.")
    if problems:
        return Finding(
            "tokenizers",
            FAILED,
            "Prompts are not read as the model was trained to read them.",
            figures,
            tuple(problems),
            "The vocabulary is of another model, damaged, or lacks its small JSON files.",
            f"Take the tokenizer folders of the right checkpoint. If they are right: {SEND}",
        )
    if not compared:
        sizes = ", ".join(f"{name} {each['pieces']} pieces" for name, each in figures.items())
        return Finding("tokenizers", MEASURED, f"Read, with nothing to compare: {sizes}.", figures)
    return Finding("tokenizers", PASSED, f"{compared} texts have the ids that they should have.", figures)
