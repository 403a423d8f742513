"""What the reasoner is trained on (a question table or instruction files), and looks at what it writes while it learns."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedTokenizerFast

from podium import prompts, settings, tables
from podium.batching import chat, instructions
from podium.batching.queries import QueryRows
from podium.engines import transformers as engine
from podium.maths.instructions import TRAINING_FOLD, VALIDATION_FOLD
from podium.maths.prompts import STOPS


@dataclass
class Rows:
    """Collators, and what the checkpoint's meta says of them."""

    train: chat.CompletionCollator | instructions.InstructionCollator
    validation: chat.CompletionCollator | instructions.InstructionCollator
    stop: list[str]
    """Strings that end what the model writes."""
    validation_fold: int
    meta: dict[str, Any]
    next_command: str
    """What to run on the trained checkpoint, `{checkpoint}` standing for its folder."""


def question_rows(
    tokenizer: PreTrainedTokenizerFast, data: settings.Data, full_fit: bool, style: prompts.Style, with_name: bool,
    say: Callable[[str], None], **limits: Any,
) -> Rows:  # fmt: skip
    """Rows of a question table with their rationales; without rationales the misconception's name stands in.

    Args:
        tokenizer: of the backbone.
        data: the settings' `data` block.
        full_fit: train on the validation fold too.
        style: of the prompts.
        with_name: the misconception's name follows the rationale.
        say: receives lines for the user.
        limits: `max_length_tokens`, `max_tokens_per_micro_batch` and `packing` of the collators.

    Raises:
        MissingFileError, DataError: unreadable tables, no rows, or completions that leave no room for a question.
    """
    folder = data.questions_dir
    told = (Path(folder) / "rationales.parquet").is_file()
    read = tables.read_training_tables(
        **settings.as_dict(data), full_fit=full_fit, rationales=folder if told else None, gold_rationales=True
    )
    if not told:
        say("no gold rationales (synthetic.csv): the reasoner learns to write the misconception's name")

    def collator(rows: QueryRows, purpose: str) -> chat.CompletionCollator:
        kept, targets = chat.with_targets(rows, purpose, told)
        made = chat.CompletionCollator(kept, targets, tokenizer, style, with_name=with_name and told, **limits)
        made.check()
        return made

    return Rows(
        collator(read.train, "training"), collator(read.validation, "validation"), [prompts.RATIONALE_END],
        data.validation_fold,
        {"stage": "reasoner", "folds_trained": read.folds_trained, "data_digest": read.data_digest,
         "prompt_style": style, "prompt_version": prompts.VERSION, "extra": {"with_name": with_name and told}},
        "python code/generate_llm_reasoner.py checkpoint={checkpoint}"
        f" tables=[{folder}/questions.parquet,{folder}/test.parquet]",
    )  # fmt: skip


def instruction_rows(
    tokenizer: PreTrainedTokenizerFast,
    files: settings.Instructions,
    full_fit: bool,
    say: Callable[[str], None],
    **given: Any,
) -> Rows:
    """Rows of instruction files, each counted base + factor × difficulty times.

    Args:
        tokenizer: of the backbone.
        files: the settings' `instructions` block.
        full_fit: train on the validation rows too.
        say: receives lines for the user.
        given: the other arguments of `instructions.collators`.

    Raises:
        MissingFileError, DataError: as `instructions.collators`.
    """
    train, validation, facts = instructions.collators(
        tokenizer, **settings.as_dict(files), full_fit=full_fit, say=say, **given
    )
    digest = facts.pop("data_digest")
    return Rows(
        train, validation, [f"\n{stop}" for stop in STOPS], VALIDATION_FOLD,
        {"stage": "maths", "folds_trained": [VALIDATION_FOLD, TRAINING_FOLD] if full_fit else [TRAINING_FOLD],
         "data_digest": digest, "prompt_style": train.form, "prompt_version": instructions.VERSION, "extra": facts},
        "python code/eval_math.py --model_name_or_path {checkpoint} --stem_flan_type '' --eval_dataset gsm8k",
    )  # fmt: skip


def show_samples(
    model: Any, rows: Rows, tokenizer: PreTrainedTokenizerFast, count: int, max_length_tokens: int, max_new_tokens: int,
    say: Callable[[str], None],
) -> None:  # fmt: skip
    """Print what the model writes for a few validation rows, beside the gold texts.

    A model that FSDP2 shards is whole only while all processes compute the same, so all of them generate and `say`
    keeps the lines of one. Its outermost module, which generation does not call, is gathered for the time.
    """
    total = len(rows.validation.targets)
    indices = [position * total // count for position in range(count)]
    sharded = isinstance(model, FSDPModule)
    if sharded:
        model.unshard()
    written = engine.generate(
        model.backbone, tokenizer,
        [rows.validation.prompt_ids(index, max_length_tokens - max_new_tokens) for index in indices],
        max_new_tokens=max_new_tokens, max_tokens_per_batch=8192, stop=rows.stop, quiet=True,
    )  # fmt: skip
    if sharded:
        model.reshard()
    for index, one in zip(indices, written, strict=True):
        if one is not None:
            say(f"  {rows.validation.name(index)} wrote: {one.text!r}\n      gold: {rows.validation.targets[index]!r}")
