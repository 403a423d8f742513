"""Merge a LoRA adapter into its backbone.

    python code/merge_adapter.py --adapter_path ADAPTER --save_dir MERGED [--backbone_path BACKBONE]

The checkpoint says which backbone it belongs to and what it is for; --backbone_path is needed only when the backbone
has moved, or for adapters from elsewhere.
"""

import argparse
import dataclasses
from pathlib import Path

from podium import config, contracts, modeling, sharing, tokenization
from podium.errors import DataError, MissingFileError


def main() -> None:
    """Load the backbone and the adapter, merge, save weights, tokenizer and meta."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone_path", help="Hub id or folder; default: what the adapter was trained on")
    parser.add_argument("--adapter_path", required=True)
    parser.add_argument("--save_dir", required=True)
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="default: that of the machine")
    parser.add_argument("--push_to_hub", help="repository of the Hub, private if new, that gets the result")
    arguments = parser.parse_args()
    with config.exit_codes():
        sharing.check_push(arguments.push_to_hub)
        merge(arguments.adapter_path, arguments.save_dir, arguments.backbone_path, arguments.dtype)
        sharing.push(Path(arguments.save_dir), arguments.push_to_hub)


def merge(adapter_path: str, save_dir: str, backbone_path: str | None = None, dtype: str | None = None) -> None:
    """Write the merged checkpoint to save_dir.

    Raises:
        MissingFileError: no adapter there, or its backbone cannot be found.
        DataError: save_dir already holds a checkpoint.
    """
    adapter = Path(adapter_path)
    if not (adapter / "adapter_config.json").is_file():
        raise MissingFileError(f"{adapter}: no adapter_config.json; give the output folder of a LoRA training run")
    if any((Path(save_dir) / name).exists() for name in ("config.json", "adapter_config.json", contracts.META)):
        raise DataError(f"{save_dir} already holds a model; choose another --save_dir or delete it")
    adapter_config = contracts.read_json(adapter / "adapter_config.json", "adapter_config.json")
    base = backbone_path or adapter_config["base_model_name_or_path"]
    task: modeling.Task = "causal_lm" if adapter_config.get("task_type") == "CAUSAL_LM" else "embedding"
    model = modeling.attach_adapter(modeling.load_backbone(base, task, dtype=dtype), adapter)
    with contracts.output_folder(save_dir) as folder:
        model.merge_and_unload().save_pretrained(folder)
        tokenization.load_tokenizer(adapter if (adapter / "tokenizer.json").is_file() else base).save_pretrained(folder)
        if (adapter / contracts.META).is_file():
            meta = contracts.read_meta(adapter)
            meta = dataclasses.replace(meta, kind="merged", base_model=base)
            sharing.copy_companions(adapter, folder)
            sharing.describe(folder, meta, model.config.hidden_size, "code/merge_adapter")
        contracts.write_manifest(
            folder, stage="merge_adapter", config_digest="", inputs={"adapter": adapter},
            facts={"backbone": base, "task": task},
        )  # fmt: skip
    print(f"wrote {save_dir} ({task}, {base} + {adapter})")


if __name__ == "__main__":
    main()
