"""What lets other people's tools open our checkpoints: sentence-transformers' module files, a model card, the Hub.

sentence-transformers gets texts that our own functions rendered (`batching.retrieval.query_text`, `prompts`), whole. Its
text modality is pinned to the plain forward pass: with a chat template in the tokenizer it would otherwise wrap every text.
"""

import contextlib
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from podium import contracts
from podium.errors import DataError, PodiumError, PrerequisiteError

POOLING_NAMES = {"last": "lasttoken", "mean": "mean", "cls": "cls"}
CARD = "README.md"
COMPANIONS = ("demos.parquet", "explanations.json", "head.safetensors", "features.json")
"""Files that inference with a checkpoint needs, whichever way its weights are held."""
RECORDS = ("config.yaml", "metrics.jsonl")
"""Files that tell about the training run."""
NOT_PUSHED = ("state/*", "wandb/*", "*.lock", "run.json", "hard_negatives/*", "demos.parquet")
"""What stays on the machine: a run's resumable state, and the training questions, which may not be redistributable."""


def write_module_files(folder: Path, meta: contracts.CheckpointMeta, hidden_size: int) -> None:
    """modules.json and the configs it names, so that SentenceTransformer(folder) or CrossEncoder(folder) opens a checkpoint.

    A retriever pools and normalises as it was trained; a pointwise ranker scores first label minus second. Other stages
    get none.

    Args:
        folder: full, merged or adapter checkpoint.
        meta: of the checkpoint.
        hidden_size: width of the backbone.
    """
    if meta.stage not in ("embedding", "pointwise"):
        return
    root = "sentence_transformers"
    is_retriever = meta.stage == "embedding"
    output = "token_embeddings" if is_retriever else "causal_logits"
    transformer: dict[str, Any] = {
        "transformer_task": "feature-extraction" if is_retriever else "text-generation",
        "modality_config": {
            "text": {"method": "forward", "method_output_name": "last_hidden_state" if is_retriever else "logits"}
        },
        "module_output_name": output,
    }
    modules = [{"idx": 0, "name": "0", "path": "", "type": f"{root}.base.modules.transformer.Transformer"}]
    if is_retriever:
        modules += [
            {
                "idx": 1,
                "name": "1",
                "path": "1_Pooling",
                "type": f"{root}.sentence_transformer.modules.pooling.Pooling",
            },
            {"idx": 2, "name": "2", "path": "2_Normalize", "type": f"{root}.base.modules.normalize.Normalize"},
        ]
        pooling = {
            "embedding_dimension": hidden_size,
            "pooling_mode": POOLING_NAMES[meta.pooling or "last"],
            "include_prompt": True,
        }
        contracts.write_json(folder / "1_Pooling" / "config.json", pooling)
        contracts.write_json(folder / "2_Normalize" / "config.json", {})
    else:
        modules.append(
            {
                "idx": 1,
                "name": "1",
                "path": "1_LogitScore",
                "type": f"{root}.cross_encoder.modules.logit_score.LogitScore",
            }
        )
        yes, no = meta.label_token_ids
        contracts.write_json(
            folder / "1_LogitScore" / "config.json",
            {"true_token_id": yes, "false_token_id": no, "module_input_name": output},
        )
    contracts.write_json(folder / "modules.json", modules)
    contracts.write_json(folder / "sentence_bert_config.json", transformer)
    contracts.write_json(
        folder / "config_sentence_transformers.json",
        {
            "model_type": "SentenceTransformer" if is_retriever else "CrossEncoder", "prompts": {}, "default_prompt_name": None,
            **({"similarity_fn_name": "cosine"} if is_retriever else {"activation_fn": "torch.nn.modules.linear.Identity"}),
        },
    )  # fmt: skip


def copy_companions(source: Path, folder: Path, records: bool = True) -> None:
    """Copy what belongs to a checkpoint besides its weights; `records` too where both come from the same training run."""
    for name in (*COMPANIONS, *(RECORDS if records else ())):
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def describe(folder: Path, meta: contracts.CheckpointMeta, hidden_size: int, script: str, notes: str = "") -> None:
    """What tells people and tools about a final checkpoint: meta.json, sentence-transformers' files, the model card.

    Args:
        folder: holds the weights and the tokenizer.
        meta: of the checkpoint.
        hidden_size: width of the backbone.
        script: that wrote it.
        notes: further paragraphs of the card.
    """
    contracts.write_meta(folder, meta)
    write_module_files(folder, meta, hidden_size)
    write_card(folder, meta, script, notes)


def write_card(folder: Path, meta: contracts.CheckpointMeta, script: str, notes: str = "") -> None:
    """A model card beside a final checkpoint: what it is, what it was trained on, its figures as measured, how to open it."""
    in_sample = bool(meta.extra.get("validation_in_sample"))
    figures = "\n".join(
        f"- {name}: {value:.4f}{' (in-sample: the validation fold was trained on)' if in_sample else ''}"
        for name, value in meta.best_metric.items()
    )
    opens = {"adapter": "`peft.PeftModel.from_pretrained` on the base model", "full": "transformers' Auto classes",
             "merged": "transformers' Auto classes", "quantised": "transformers (with compressed-tensors) and vLLM"}[meta.kind]  # fmt: skip
    tools = {
        "embedding": " It also opens with `SentenceTransformer(folder)`.",
        "pointwise": " Merged, it also opens with `CrossEncoder(folder)`.",
    }
    if meta.kind == "quantised":
        unpack = 'model_kwargs={"quantization_config": CompressedTensorsConfig(dequantize=True)}'
        tools["pointwise"] = f" It also opens with `CrossEncoder(folder, {unpack})`."
    header = {"library_name": "peft" if meta.kind == "adapter" else "transformers", "tags": ["podium", meta.stage]}
    if is_hub_name(meta.base_model):  # the Hub refuses a card whose base model is a folder
        header["base_model"] = meta.base_model
    contracts.write_text(
        folder / CARD,
        f"""---
{yaml.safe_dump(header, sort_keys=True).strip()}
---

# Podium {meta.stage} ({meta.kind})

Written by `{script}.py` from `{meta.base_model}`, trained on folds {meta.folds_trained} of a question table (digest
`{meta.data_digest[:12]}`). `config.yaml` is the resolved config of the run behind it, `metrics.jsonl` its loss curve.

## Figures on the validation fold

{figures or "none"}
{notes}
## Use

It opens with {opens}.{tools.get(meta.stage, "")} Texts must be rendered as in training: prompt version
{meta.prompt_version}, style `{meta.prompt_style}`, at most {meta.max_length_tokens} tokens (`podium.prompts`). The base model's licence and
that of the data apply.
""",
    )


def is_hub_name(name: str) -> bool:
    """True for `owner/name`, unless it is a folder here."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name) is not None and not Path(name).exists()


# --- the Hub ---------------------------------------------------------------------------------------------------------


def check_push(repository: str | None) -> None:
    """Find out before any work whether a checkpoint could be pushed: name, login, connection. Nothing for None.

    Raises:
        DataError: a name that is no repository name.
        PrerequisiteError: not logged in, a token that the Hub refuses, or HF_HUB_OFFLINE.
        PodiumError: the Hub cannot be reached.
    """
    if repository is None:
        return
    import huggingface_hub
    from huggingface_hub import constants, utils

    with _explained(repository, "nothing was computed yet"):
        utils.validate_repo_id(repository)
        if constants.HF_HUB_OFFLINE:
            raise PrerequisiteError(f"push_to_hub={repository}: HF_HUB_OFFLINE=1 forbids it; unset one of the two")
        if huggingface_hub.get_token() is None:
            raise PrerequisiteError(f"push_to_hub={repository} needs a login: `hf auth login`, or HF_TOKEN")
        huggingface_hub.HfApi().whoami()


def push(folder: Path, repository: str | None) -> None:
    """Upload a final checkpoint, without its resumable state, to a repository of the Hub (private if new); nothing for None.

    Raises:
        as `check_push`; the message says that the local folder is complete, and the line that pushes it later.
    """
    if repository is None:
        return
    import huggingface_hub

    excluded = " ".join(f"--exclude {shlex.quote(pattern)}" for pattern in NOT_PUSHED)
    later = (
        f"{folder} is complete; push it later: hf upload {repository} {shlex.quote(str(folder))} . --private {excluded}"
    )
    with _explained(repository, later):
        api = huggingface_hub.HfApi()
        api.create_repo(repository, private=True, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, ignore_patterns=list(NOT_PUSHED))
    print(f"pushed {folder} to {repository}", flush=True)
    if left := [name for name in NOT_PUSHED if (folder / name).is_file() and name.endswith(".parquet")]:
        print(f"not pushed: {', '.join(left)} (training questions); whoever loads the model here needs it too")


@contextlib.contextmanager
def _explained(repository: str, state: str) -> Iterator[None]:
    """Our errors for those of the Hub's client; `state` says what the user has."""
    import httpx
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

    what = f"push_to_hub={repository}"
    try:
        yield
    except HFValidationError as error:
        raise DataError(f"{what}: {error}; {state}") from None
    except LocalTokenNotFoundError:
        raise PrerequisiteError(f"{what} needs a login: `hf auth login`, or HF_TOKEN; {state}") from None
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        kind = PrerequisiteError if status in (401, 403) else PodiumError
        raise kind(f"{what}: the Hub refused ({status}: {_short(error)}); {state}") from None
    except (OSError, ValueError, RuntimeError, httpx.HTTPError) as error:
        raise PodiumError(f"{what}: the upload failed ({type(error).__name__}: {_short(error)}); {state}") from None


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
