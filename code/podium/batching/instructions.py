"""Instruction batches: prompt in a template drawn for (seed, epoch, id), loss on the answer, samples counted b + w·d times."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from podium import contracts, tokenization
from podium.batching.chat import micro_batches
from podium.errors import DataError, sample
from podium.maths import adaptive, prompts, templates
from podium.maths import instructions as files_of
from podium.maths.instructions import Difficulty, InstructionRows

VERSION = prompts.VERSION


@dataclass
class InstructionCollator:
    """Collate instruction rows. The prompt is tokenised alone, exactly as at inference, and the answer after it."""

    rows: InstructionRows
    tokenizer: PreTrainedTokenizerFast
    form: templates.Form
    template_variation: float
    max_length_tokens: int
    max_tokens_per_micro_batch: int
    seed: int
    row_of_sample: np.ndarray
    """(samples,) the row of each sample; a row that counts twice is there twice."""
    weight_of_row: np.ndarray | None
    """(rows,) loss weight of each row's tokens; None for 1."""
    packing: bool = False
    """As in `chat.CompletionCollator`."""

    def __post_init__(self) -> None:
        """Note the special tokens that the tokenizer puts before a text."""
        self.before, _ = tokenization.special_prefix_suffix(self.tokenizer)

    def __len__(self) -> int:
        """Samples of an epoch."""
        return len(self.row_of_sample)

    @property
    def targets(self) -> list[str]:
        """What each row learns to write."""
        return self.rows.output

    def name(self, index: int) -> str:
        """What a row is called in print."""
        return self.rows.id[index]

    def _text(self, index: int, epoch: int | None) -> str:
        """A row's prompt; without an epoch in the evaluator's template."""
        variation = 0.0 if epoch is None else self.template_variation
        return templates.render(
            self.rows.instruction[index], self.form, variation, self.seed, epoch or 0, self.rows.id[index]
        )

    def prompt_ids(self, index: int, budget: int | None = None, epoch: int | None = None) -> list[int]:
        """Token ids of a row's prompt, special tokens included. It is never cut: `check` sees to `budget`."""
        return [*self.before, *tokenization.encode(self.tokenizer, [self._text(index, epoch)])[0]]

    def example(self, index: int, epoch: int | None = None) -> tuple[list[int], int]:
        """Token ids of one row, end-of-text included, and the number of prompt tokens among them."""
        prompt = self.prompt_ids(index, epoch=epoch)
        answer = tokenization.encode(self.tokenizer, [self.rows.output[index]])[0]
        return [*prompt, *answer, self.tokenizer.eos_token_id], len(prompt)  # type: ignore[list-item]

    def lengths(self) -> list[int]:
        """Tokens of every row in the evaluator's template."""
        asked = tokenization.encode(self.tokenizer, [self._text(at, None) for at in range(len(self.rows))])
        answers = tokenization.encode(self.tokenizer, self.rows.output)
        return [len(self.before) + len(one) + len(two) + 1 for one, two in zip(asked, answers, strict=True)]

    def _longest_frame(self) -> int:
        """How many tokens the longest template has more than the evaluator's."""
        if self.form != "alpaca" or not self.template_variation:
            return 0
        own, *others = tokenization.encode(self.tokenizer, [prompts.ALPACA, *templates.VARIANTS])
        return max(0, *(len(ids) - len(own) for ids in others))

    def too_long(self) -> list[int]:
        """Rows that have more than `max_length_tokens`, in the longest template they can be given."""
        longest = self.max_length_tokens - self._longest_frame()
        return [at for at, length in enumerate(self.lengths()) if length > longest]

    def check(self) -> None:
        """Refuse rows that would have to be cut: half an answer teaches to stop in mid-sentence.

        Raises:
            DataError: naming the rows.
        """
        if long := self.too_long():
            raise DataError(
                f"instruction and output of row {sample(self.rows.id[at] for at in long)} have more than"
                f" max_length_tokens={self.max_length_tokens}; raise it, or leave such rows out with"
                f" instructions.drop_too_long=true"
            )

    def __call__(self, epoch: int, ids: np.ndarray) -> list[dict[str, Any]]:
        """Micro-batches of similar length within the token budget; weight = Σ weights of the answers' tokens."""
        at = [int(self.row_of_sample[index]) for index in ids.tolist()]
        examples = [self.example(index, epoch) for index in at]
        weights = None if self.weight_of_row is None else [float(self.weight_of_row[index]) for index in at]
        return micro_batches(
            examples,
            self.packing,
            self.max_tokens_per_micro_batch,
            self.tokenizer.pad_token_id,
            weights,  # type: ignore[arg-type]
        )


def collators(
    tokenizer: PreTrainedTokenizerFast,
    *,
    files: list[str],
    instruction_column: str,
    output_column: str,
    difficulty: Difficulty | None,
    prompt_form: templates.Form,
    template_variation: float,
    validation_share: float,
    validation_rows: int | None,
    drop_too_long: bool,
    base: float,
    factor: float,
    method: adaptive.Method,
    shuffled: bool,
    copies_of_source: dict[str, float],
    full_fit: bool,
    seed: int,
    max_length_tokens: int,
    max_tokens_per_micro_batch: int,
    packing: bool,
    say: Callable[[str], None],
) -> tuple[InstructionCollator, InstructionCollator, dict[str, Any]]:
    """Collators of training and validation rows, and what the checkpoint's meta should say of them.

    Validation rows count once each, in the evaluator's template, whatever the training rows do, so that the losses of
    runs with other weights can be compared.

    Args:
        tokenizer: of the backbone.
        files: as `podium.maths.instructions.find_files` takes them, and the columns after them.
        instruction_column: the task's.
        output_column: the answer's.
        difficulty: the difficulty's, None for none.
        prompt_form: alpaca or plain.
        template_variation: probability of another template than the evaluator's, in training.
        validation_share: of the rows, held out by hash.
        validation_rows: at most so many of them are used.
        drop_too_long: leave out training rows over max_length_tokens, with their number said, instead of refusing.
        base: b of b + w·d.
        factor: w.
        method: replicate or weight.
        shuffled: give the difficulties to other rows (the control).
        copies_of_source: as `adaptive.factors`.
        full_fit: train on the validation rows too.
        seed: of templates, copies and shuffling.
        max_length_tokens: of prompt and answer together.
        max_tokens_per_micro_batch: padded.
        packing: as in `chat.CompletionCollator`.
        say: receives lines for the user.

    Raises:
        MissingFileError, DataError: as `read_rows`, `split`, `factors`; rows over max_length_tokens.
    """
    files = files_of.find_files(files)
    everything = files_of.read_rows(files, instruction_column, output_column, difficulty)
    train, validation = files_of.split(everything, validation_share, validation_rows, full_fit)

    def collator(
        rows: InstructionRows, variation: float, of_sample: np.ndarray, weight: np.ndarray | None
    ) -> InstructionCollator:
        return InstructionCollator(
            rows,
            tokenizer,
            prompt_form,
            variation,
            max_length_tokens,
            max_tokens_per_micro_batch,
            seed,
            of_sample,
            weight,
            packing,
        )

    def fitting(rows: InstructionRows, variation: float, what: str) -> InstructionRows:
        probe = collator(rows, variation, np.arange(len(rows)), None)
        if not drop_too_long:
            probe.check()
            return rows
        long = set(probe.too_long())
        if long:
            named = sample(rows.id[at] for at in sorted(long))
            say(f"{what}: row {named} of {len(rows)} over max_length_tokens={max_length_tokens}, left out")
        if len(long) == len(rows):
            raise DataError(f"every {what} row is over max_length_tokens={max_length_tokens}; raise it")
        return files_of.select(rows, [at for at in range(len(rows)) if at not in long])

    train, validation = fitting(train, template_variation, "training"), fitting(validation, 0.0, "validation")
    d = train.difficulty
    if shuffled and d is None:
        raise DataError("adap_shuffled=true has no difficulties to shuffle; set instructions.difficulty")
    if shuffled and d is not None:
        d = adaptive.shuffled(d, seed)
    wanted = adaptive.factors(d, base, factor, train.source, copies_of_source)
    of_sample, weight, lines = adaptive.samples(wanted, train.id, train.source, method, seed)
    for line in lines:
        say(line)
    digests = "".join(contracts.sha256(file) for file in files)
    facts = {
        "data_digest": hashlib.sha256(digests.encode()).hexdigest(),
        "template_variation": template_variation,
        "rows": len(train),
        "expected_samples": float(wanted.sum()),
        "samples": len(of_sample),
    }
    return (
        collator(train, template_variation, of_sample, weight),
        collator(validation, 0.0, np.arange(len(validation)), None),
        facts,
    )
