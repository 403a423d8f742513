"""Typed settings of every stage. Each field is a YAML key; unknown keys, wrong types and bad ranges are refused.

Units and scope are in the names (`max_length_tokens`, `eval_every_steps`). An absent feature is a `null` block.
"""

import dataclasses
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from podium.prompts import Style

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

Positive = Annotated[int, Field(gt=0)]
NotNegative = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Device = Literal["auto", "cpu"]


def check_folds(train_folds: list[int], validation_fold: int) -> None:
    """Raises ValueError where the validation fold is trained on by way of the fold list."""
    if validation_fold in train_folds:
        raise ValueError(
            f"validation_fold {validation_fold} is also in train_folds; set full_fit=true to train on everything"
        )


def check_heads(hidden_size: int, heads: int) -> None:
    """Raises ValueError where the heads would not have an even width."""
    if hidden_size % (2 * heads):
        raise ValueError(f"hidden_size {hidden_size} is not a multiple of 2 × heads {heads}: heads rotate in pairs")


@dataclass(config=STRICT, kw_only=True)
class Lora:
    """LoRA adapters; `lora: null` trains all weights."""

    rank: Positive
    alpha: Annotated[float, Field(gt=0)]
    dropout: Annotated[float, Field(ge=0, lt=1)]
    target_modules: Annotated[list[str], Field(min_length=1)]
    modules_to_save: list[str] | None = None


@dataclass(config=STRICT, kw_only=True)
class Model:
    """Backbone and how it is held."""

    backbone: str
    dtype: Literal["float32", "bfloat16", "float16"] | None
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2"]
    quantization: Literal["nf4"] | None
    gradient_checkpointing: bool | Literal["auto"]
    """auto: on where the predicted memory of a step without it does not fit (podium/dry_run.py)."""
    lora: Lora | None

    def __post_init__(self) -> None:
        if self.quantization and self.lora is None:
            raise ValueError("quantization needs a lora block: 4-bit weights cannot be trained")


@dataclass(config=STRICT, kw_only=True)
class Optimizer:
    """Optimizer and the rates of its parameter groups; a null rate takes `lr`."""

    name: Literal["adamw", "adamw_8bit", "muon"]
    lr: Rate
    lr_lora_a: Rate | None
    lr_lora_b: Rate | None
    lr_embeddings: Rate | None
    lr_matrices: Rate | None
    weight_decay: Rate
    betas: Annotated[list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)]
    eps: Rate


@dataclass(config=STRICT, kw_only=True)
class Loop:
    """Length, schedule and cadence of a training run. `batch_size` is over all processes."""

    seed: int
    epochs: Annotated[float, Field(gt=0)] | None
    max_steps: Positive | None
    batch_size: Positive
    warmup_fraction: Fraction
    final_lr_fraction: Fraction
    max_grad_norm: Annotated[float, Field(gt=0)]
    eval_every_steps: Positive | None
    save_every_steps: Positive | None
    keep: Positive
    num_workers: NotNegative

    def __post_init__(self) -> None:
        if self.epochs is None and self.max_steps is None:
            raise ValueError("set epochs, max_steps, or both (the shorter one counts)")


@dataclass(config=STRICT, kw_only=True)
class Data:
    """Question table and which of its folds are trained on."""

    questions_dir: str
    train_folds: Annotated[list[NotNegative], Field(min_length=1)]
    validation_fold: NotNegative
    validation_rows: Positive | None
    """Rows of the validation fold used while training (an even sample); null takes all."""
    leaking_rows: Literal["refuse", "drop"]
    """What happens to training rows that ask a validation question."""

    def __post_init__(self) -> None:
        check_folds(self.train_folds, self.validation_fold)


@dataclass(config=STRICT, kw_only=True)
class PrepareQuestions:
    """code/prepare_questions.py."""

    data_dir: str
    output_dir: str
    folds: Annotated[int, Field(ge=2)]
    test_fold: NotNegative | None
    seed: int
    allow_empty_correct: bool
    synthetic_dir: str | None
    synthetic_share: Annotated[float, Field(ge=0, lt=1)]

    def __post_init__(self) -> None:
        if bool(self.synthetic_dir) != (self.synthetic_share > 0):
            raise ValueError(
                f"synthetic_dir {self.synthetic_dir} and synthetic_share {self.synthetic_share} go together: "
                f"a folder written by synthetic/curate.py, and a share above 0"
            )


@dataclass(config=STRICT, kw_only=True)
class TinyBackbone:
    """code/make_tiny_backbone.py."""

    questions_dir: str | None
    instruction_files: list[str]
    output_dir: str
    vocabulary: Positive
    hidden_size: Positive
    layers: Positive
    heads: Positive
    intermediate_size: Positive
    max_position_embeddings: Positive
    seed: int

    def __post_init__(self) -> None:
        check_heads(self.hidden_size, self.heads)


@dataclass(config=STRICT, kw_only=True)
class Instructions:
    """Instruction rows (MathInstruct and the like) in place of the question table."""

    files: Annotated[list[str], Field(min_length=1)]
    instruction_column: str
    output_column: str
    difficulty: Literal["difficulty_level", "err_rate"] | None
    prompt_form: Literal["alpaca", "plain"]
    template_variation: Fraction
    validation_share: Annotated[float, Field(gt=0, lt=1)]
    validation_rows: Positive | None
    drop_too_long: bool


@dataclass(config=STRICT, kw_only=True)
class Reasoner:
    """code/train_llm_reasoner.py."""

    output_dir: str
    use_wandb: bool
    push_to_hub: str | None
    full_fit: bool
    device: Device
    dry_run: bool
    gpu: str | None
    """What a dry run predicts for: a name of `podium.memory.GPUS`, `/N` behind it for FSDP2 over N; null is this machine."""
    data: Data | None
    instructions: Instructions | None
    adap_base: Rate
    adap_factor: Rate
    adap_method: Literal["replicate", "weight"]
    adap_shuffled: bool
    copies_of_source: dict[str, Rate]
    model: Model
    optimizer: Optimizer
    loop: Loop
    training_tokens: Positive | None
    prompt_style: Style
    max_length_tokens: Positive
    max_tokens_per_micro_batch: Positive
    with_name: bool
    sample_generations: NotNegative
    max_new_tokens: Positive

    def __post_init__(self) -> None:
        if (self.data is None) == (self.instructions is None):
            raise ValueError(f"`data` and `instructions` are both {'null' if self.data is None else 'given'}; set one")
        if self.data is not None and (self.adap_factor or self.copies_of_source):
            raise ValueError("a question table has no difficulties: adap_factor=0 copies_of_source={}, or instructions")
        if self.max_new_tokens >= self.max_length_tokens:
            raise ValueError(
                f"max_new_tokens {self.max_new_tokens} leaves no room for a prompt in max_length_tokens"
                f" {self.max_length_tokens}"
            )


@dataclass(config=STRICT, kw_only=True)
class GenerateRationales:
    """code/generate_llm_reasoner.py."""

    checkpoint: str
    tables: Annotated[list[str], Field(min_length=1)]
    rows_per_fold: Positive | None
    output_dir: str
    device: Device
    engine: Literal["transformers", "vllm"]
    samples: Positive
    temperature: Rate
    top_p: Annotated[float, Field(gt=0, le=1)]
    max_new_tokens: Positive
    max_tokens_per_batch: Positive
    seed: int

    def __post_init__(self) -> None:
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(f"{self.samples} samples at temperature 0 would all be equal; set temperature > 0")


@dataclass(config=STRICT, kw_only=True)
class HardNegatives:
    """Hard negatives: from a candidates table, or mined with the model itself every few steps."""

    candidates: str | None
    per_query: NotNegative
    """Documents added to the batch for each query; 0 uses the negatives for `batches.hard_negative` only."""
    top: Positive
    refresh_every_steps: Positive | None

    def __post_init__(self) -> None:
        if self.candidates is None and self.refresh_every_steps is None:
            raise ValueError("hard_negatives needs candidates=<folder>, refresh_every_steps, or both")


@dataclass(config=STRICT, kw_only=True)
class Distillation:
    """A teacher's scores, mixed into the loss."""

    scores: str
    temperature: Annotated[float, Field(gt=0)]
    weight: Fraction


@dataclass(config=STRICT, kw_only=True)
class Batches:
    """How training queries are put together: relative frequency of each kind of batch.

    random: distinct misconceptions. hard_negative: queries with the queries of their hard negatives, so that these enter
    as pairs of their own. subject: queries of one subject. Every query is visited once an epoch in all of them.
    """

    random: Rate
    hard_negative: Rate
    subject: Rate
    negatives_per_query: Positive

    def __post_init__(self) -> None:
        if not self.random + self.hard_negative + self.subject:
            raise ValueError("batches needs a weight above 0 for random, hard_negative or subject")


@dataclass(config=STRICT, kw_only=True)
class Demos:
    """Example queries of each candidate in the ranker's prompt: the same rule in training and at inference."""

    per_misconception: Positive
    dropout: Fraction
    """Share of training groups without examples, drawn per epoch."""
    max_characters: Positive


@dataclass(config=STRICT, kw_only=True)
class Retriever:
    """code/train_llm_embedding.py."""

    output_dir: str
    use_wandb: bool
    push_to_hub: str | None
    full_fit: bool
    device: Device
    dry_run: bool
    gpu: str | None
    """What a dry run predicts for: a name of `podium.memory.GPUS`, `/N` behind it for FSDP2 over N; null is this machine."""
    data: Data
    rationales: str | None
    model: Model
    optimizer: Optimizer
    loop: Loop
    prompt_style: Style
    pooling: Literal["last", "mean", "cls"]
    max_length_tokens: Positive
    max_tokens_per_micro_batch: Positive
    """Tokens of one pass in training; texts of similar length go together."""
    grad_cache: bool
    """Memory of one pass whatever the batch, for a second forward of the texts."""
    negatives: Literal["in_batch", "hard", "full_corpus"] | None
    """What a query is told apart from; null: hard where hard_negatives is given, else in_batch."""
    max_tokens_per_batch: Positive
    """Tokens of one forward at evaluations and while mining."""
    topic_dropout: Fraction
    rationale_dropout: Fraction
    first_temperature: Annotated[float, Field(gt=0)]
    last_temperature: Annotated[float, Field(gt=0)]
    hard_negatives: HardNegatives | None
    batches: Batches | None
    distillation: Distillation | None
    explanations: str | None
    """CSV (MisconceptionId, Explanation) appended to the misconceptions' names on the document side."""
    best_metric: Literal["map@25", "recall@25", "recall@32"]

    def __post_init__(self) -> None:
        if self.batches and self.batches.hard_negative and not (self.hard_negatives and self.hard_negatives.candidates):
            raise ValueError("batches.hard_negative needs hard_negatives.candidates")
        if self.hard_negatives and self.hard_negatives.refresh_every_steps and self.loop.num_workers:
            raise ValueError(
                f"hard_negatives.refresh_every_steps needs loop.num_workers=0, not {self.loop.num_workers}: workers"
                " would go on drawing from the old negatives"
            )
        if (self.negatives == "hard") != (self.hard_negatives is not None) and self.negatives is not None:
            raise ValueError(
                f"negatives={self.negatives} and hard_negatives={'null' if self.hard_negatives is None else 'given'}"
                " contradict each other: the block belongs to negatives=hard"
            )


@dataclass(config=STRICT, kw_only=True)
class MineCandidates:
    """code/mine_candidates.py."""

    checkpoint: str
    tables: Annotated[list[str], Field(min_length=1)]
    rows_per_fold: Positive | None
    questions_dir: str
    rationales: str | None
    output_dir: str
    device: Device
    views: Annotated[list[Literal["plain", "rationale"]], Field(min_length=1)]
    top_k: Positive
    max_tokens_per_batch: Positive
    allow_in_sample: bool

    def __post_init__(self) -> None:
        if len(set(self.views)) < len(self.views):
            raise ValueError(f"views {self.views}: name each view once")
        if "rationale" in self.views and self.rationales is None:
            raise ValueError("view `rationale` needs rationales=<folder written by generate_llm_reasoner.py>")


@dataclass(config=STRICT, kw_only=True)
class Band:
    """Ranks first … last of a candidate list, each kept with probability `keep`."""

    first: Positive
    last: Positive
    keep: Fraction

    def __post_init__(self) -> None:
        if self.first > self.last:
            raise ValueError(f"band {self.first}–{self.last} is empty")


@dataclass(config=STRICT, kw_only=True)
class PrepareRankerData:
    """code/prepare_ranker_data.py."""

    questions_dir: str
    candidates: str
    teacher: str | None
    output_dir: str
    train_folds: list[NotNegative]
    validation_fold: NotNegative
    bands: Annotated[list[Band], Field(min_length=1)]
    negatives_per_query: Positive
    validation_depth: Positive
    never_positive_share: Fraction
    seed: int


@dataclass(config=STRICT, kw_only=True)
class Teacher:
    """Distillation from the teacher_score column of the groups table."""

    temperature: Annotated[float, Field(gt=0)]
    weight: Fraction


@dataclass(config=STRICT, kw_only=True)
class Ranker:
    """code/train_ranker_pointwise.py and code/train_ranker_listwise.py."""

    output_dir: str
    use_wandb: bool
    push_to_hub: str | None
    full_fit: bool
    device: Device
    dry_run: bool
    gpu: str | None
    """What a dry run predicts for: a name of `podium.memory.GPUS`, `/N` behind it for FSDP2 over N; null is this machine."""
    data: Data
    groups: str
    rationales: str | None
    unlabelled_sources: list[str]
    model: Model
    optimizer: Optimizer
    loop: Loop
    distillation: Teacher | None
    prompt_style: Style
    max_length_tokens: Positive
    max_tokens_per_micro_batch: Positive
    candidates_per_group: Annotated[list[int], Field(min_length=1)]
    validation_depth: Positive
    topic_dropout: Fraction
    rationale_dropout: Fraction
    label_smoothing: Fraction
    auxiliary_weight: Rate
    demos: Demos | None


@dataclass(config=STRICT, kw_only=True)
class AverageAdapters:
    """code/average_adapters.py."""

    checkpoints: Annotated[list[str], Field(min_length=1)]
    weights: Annotated[list[float], Field(min_length=2)] | None
    questions_dir: str
    groups: str | None
    rationales: str | None
    output_dir: str
    push_to_hub: str | None
    device: Device
    validation_fold: NotNegative
    validation_rows: Positive | None
    min_gain: float
    max_tokens_per_batch: Positive
    allow_in_sample: bool

    def __post_init__(self) -> None:
        if self.weights is not None and len(self.weights) != len(self.checkpoints):
            raise ValueError(f"{len(self.weights)} weights for {len(self.checkpoints)} checkpoints")


@dataclass(config=STRICT, kw_only=True)
class ExportPublished:
    """code/export_published.py."""

    questions_dir: str
    candidates: str | None
    scores: str | None
    groups: str | None
    rationales: str | None
    output_dir: str
    validation_fold: NotNegative
    negatives_depth: Positive
    list_size: Annotated[int, Field(ge=2, le=52)]
    calibration_rows: Positive
    prompt_style: Style
    refuse_leaks: bool
    seed: int


@dataclass(config=STRICT, kw_only=True)
class ScoreCandidates:
    """code/score_candidates.py."""

    checkpoint: str
    tables: Annotated[list[str], Field(min_length=1)]
    questions_dir: str
    candidates: str
    rationales: str | None
    output_dir: str
    device: Device
    engine: Literal["transformers", "vllm"]
    views: Annotated[list[Literal["plain", "rationale"]], Field(min_length=1)]
    folds: list[NotNegative]
    top_k: Positive
    max_tokens_per_batch: Positive
    allow_in_sample: bool

    def __post_init__(self) -> None:
        if "rationale" in self.views and self.rationales is None:
            raise ValueError("view `rationale` needs rationales=<folder written by generate_llm_reasoner.py>")


@dataclass(config=STRICT, kw_only=True)
class BlendScores:
    """code/blend_scores.py."""

    questions_dir: str
    candidates: str
    scores: Annotated[list[str], Field(min_length=1)]
    output_dir: str
    validation_fold: NotNegative
    top_k: Positive
    weights_from: str | None


@dataclass(config=STRICT, kw_only=True)
class Submit:
    """code/write_submission.py."""

    questions_dir: str
    candidates: str
    output_dir: str
    length: Positive


def as_dict(block: Any, **changed: Any) -> dict[str, Any]:
    """A settings block as keyword arguments, some of them changed."""
    return {**dataclasses.asdict(block), **changed}


@dataclass(config=STRICT, kw_only=True)
class Baselines:
    """code/baselines.py."""

    questions_dir: str
    output_dir: str
    top_k: Positive
    seed: int


@dataclass(config=STRICT, kw_only=True)
class Report:
    """code/report.py. `stages` maps the name of a row to the folder of its candidates; `losses` a name to a run folder."""

    questions_dir: str
    output_dir: str
    stages: dict[str, str]
    losses: dict[str, str]
    rationales: str | None
    blends: dict[str, str]
    train_folds: list[NotNegative]


@dataclass(config=STRICT, kw_only=True)
class Step:
    """One step of a chain: a script of code/, one of its configs, and overrides by dotted key."""

    name: str
    script: str
    config: str
    overrides: dict[str, Any]


@dataclass(config=STRICT, kw_only=True)
class Predict:
    """code/predict.py."""

    data_dir: str
    checkpoints: str
    output_dir: str
    fresh: bool
    steps: Annotated[list[Step], Field(min_length=1)]


@dataclass(config=STRICT, kw_only=True)
class Ask:
    """code/ask.py."""

    chain: str
    question: str | None
    correct: str | None
    wrong: str | None
    construct: str
    subject: str
    top_k: Positive
    max_new_tokens: Positive
    device: Device
    json: bool


@dataclass(config=STRICT, kw_only=True)
class Demo:
    """code/demo.py."""

    output_dir: str
    data_dir: str
    questions: Positive
    test_questions: Positive
    synthetic_dir: str | None
    synthetic_share: float
    data_seed: int
    seed: int
    fresh: bool
    steps: Annotated[list[Step], Field(min_length=1)]


@dataclass(config=STRICT, kw_only=True)
class DemoMaths:
    """code/demo_maths.py."""

    output_dir: str
    pretrain_problems: Positive
    train_problems: Positive
    test_problems: Positive
    data_seed: int
    seeds: Annotated[list[int], Field(min_length=1)]
    base_steps: Positive
    training_tokens: Positive
    adap_base: Rate
    adap_factor: Rate
    samples: Positive
    fresh: bool
