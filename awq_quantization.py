r"""Quantise a merged checkpoint for vLLM and transformers.

    python awq_quantization.py --model_path ../models/pointwise_merged --quant_path ../models/pointwise_awq \
        --calib_data outputs/published/calibration/pointwise.parquet --max_calib_seq_len 1024

AWQ to 4 bits (groups of 64 weights, asymmetric) unless --method says otherwise; layer by layer, so one GPU that holds a
layer and the activations is enough for 72B. Needs llmcompressor. parity.json beside the weights, and the model card in words, tell what it cost.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "code"))

from podium import config  # noqa: E402


def main() -> None:
    """Read the calibration texts, quantise, save, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_path", required=True, help="full or merged checkpoint folder, or Hub id")
    parser.add_argument("--quant_path", required=True)
    parser.add_argument("--calib_data", required=True, help="file, folder, or name of a data set on the Hub or Kaggle")
    parser.add_argument("--max_calib_seq_len", type=int, default=1024, help="tokens of a calibration text")
    parser.add_argument("--max_calib_rows", type=int, default=256)
    parser.add_argument("--method", choices=["awq", "gptq", "rtn", "w8a8", "fp8", "autoround"], default="awq")
    parser.add_argument("--group_size", type=int, default=64, help="weights that share a scale (64 or 128)")
    parser.add_argument(
        "--eval_queries", type=int, default=200, help="of a ranker: validation lists for MAP@25; 0: none"
    )
    parser.add_argument("--push_to_hub", help="repository of the Hub, private if new, that gets the result")
    arguments = parser.parse_args()
    with config.exit_codes():
        from podium import contracts, modeling, quantization, sharing

        sharing.check_push(arguments.push_to_hub)
        modeling.refuse_adapter(arguments.model_path)
        is_ours = (Path(arguments.model_path) / contracts.META).is_file()
        stage = contracts.read_meta(arguments.model_path).stage if is_ours else None
        texts = quantization.calibration_texts(arguments.calib_data, arguments.max_calib_rows, stage)
        report = quantization.quantise(
            arguments.model_path, arguments.quant_path, texts, arguments.max_calib_seq_len, arguments.method,
            arguments.group_size, arguments.eval_queries,
        )  # fmt: skip
        print(quantization.in_words(report))
        print(f"wrote {arguments.quant_path}")
        sharing.push(Path(arguments.quant_path), arguments.push_to_hub)


if __name__ == "__main__":
    main()
