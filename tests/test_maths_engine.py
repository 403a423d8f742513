"""The transformers engine behind the evaluator, with a tiny model made and trained in the test."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

from podium import config
from podium.errors import DataError
from podium.maths import evaluation, prompts, run
from podium.maths import flags as published
from podium.maths.datasets import Problem
from podium.maths.engine import Sampling, load_transformers
from podium.maths.settings import EvalMath

ROOT = Path(__file__).parents[1]
PROBLEMS = [Problem(str(n), f"What is {n} and {n}?", str(2 * n), "number") for n in range(1, 6)]
END = "<|endoftext|>"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """A small Qwen2 that was trained until it knows the five problems, in words and as programs."""
    folder = tmp_path_factory.mktemp("tiny")
    pairs = []
    for problem in PROBLEMS:
        pairs.append(
            (prompts.alpaca(prompts.instruction(problem.question, (), "cot", 0)), f" The answer is {problem.gold}.")
        )
        pairs.append((prompts.alpaca(prompts.instruction(problem.question, (), "pot", 0)), f" print({problem.gold})"))
    tokenizer = Tokenizer(models.BPE())
    # AutoTokenizer gives a Qwen2 this pre-tokenizer, whatever was saved
    tokenizer.pre_tokenizer = Qwen2Tokenizer().backend_tokenizer.pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=[END], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([prompt + answer for prompt, answer in pairs], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END)
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(fast), hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=4, max_position_embeddings=128, tie_word_embeddings=True, bos_token_id=None,
            eos_token_id=fast.eos_token_id, pad_token_id=fast.pad_token_id,
        )
    )  # fmt: skip
    rows = []
    for prompt, answer in pairs:
        ids, target = fast(prompt)["input_ids"], fast(answer)["input_ids"] + [fast.eos_token_id]
        rows.append((ids + target, [-100] * len(ids) + target))
    width = max(len(ids) for ids, _ in rows)
    ids_BT = torch.tensor([ids + [fast.pad_token_id] * (width - len(ids)) for ids, _ in rows])
    labels_BT = torch.tensor([labels + [-100] * (width - len(labels)) for _, labels in rows])
    mask_BT = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in rows])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(400):
        loss = model(input_ids=ids_BT, attention_mask=mask_BT, labels=labels_BT).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss.item() < 0.01:
            break
    assert loss.item() < 0.05
    model.save_pretrained(folder)
    return folder


def test_generation_is_in_order_stops_and_does_not_depend_on_its_batch(tiny):
    engine = load_transformers(str(tiny), "cpu", 4096)
    texts = evaluation.render(PROBLEMS, "cot", "alpaca", 0, engine)
    together = engine.generate(texts, Sampling(12))
    assert together == [f"The answer is {problem.gold}." for problem in PROBLEMS]
    assert [engine.generate([text], Sampling(12))[0] for text in texts] == together
    assert engine.generate(texts[:2], Sampling(12, stop=(" is",))) == ["The answer"] * 2
    assert engine.context_tokens == 128 and all(20 < count < 128 for count in engine.count_tokens(texts))
    assert engine.render_chat is None


def test_the_chat_form_needs_a_chat_template(tiny, tmp_path):
    engine = load_transformers(str(tiny), "cpu", 4096)
    with pytest.raises(DataError, match="no chat template; use prompt_form=alpaca"):
        evaluation.render(PROBLEMS, "cot", "chat", 0, engine)
    for path in tiny.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "chat_template.jinja").write_text(
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<bot>"
    )
    chat = load_transformers(str(tmp_path), "cpu", 4096)
    assert evaluation.render(PROBLEMS[:1], "cot", "chat", 0, chat) == ["<user>What is 1 and 1?<bot>"]


def test_the_published_command_line_evaluates_a_checkpoint(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # restored afterwards: --gpu_ids sets it
    rows = [{"question": problem.question, "answer": problem.gold} for problem in PROBLEMS]
    (tmp_path / "simuleq.json").write_text(json.dumps(rows))
    flags = ["--model_name_or_path", str(tiny), "--eval_dataset", "simuleq", "--gpu_ids", "0"]
    flags += ["--eval_results_dir", str(tmp_path / "out"), "--eval_datasets_dir", str(tmp_path)]
    flags += ["check_counts=false", "max_new_tokens=12", "device=cpu"]
    command = [sys.executable, str(ROOT / "code" / "eval_math.py"), *flags, "--stem_flan_type", "pot_prompt"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "sandbox: " in done.stdout and "5 of 5" in done.stdout
    overrides = published.to_overrides([*flags, "--stem_flan_type", ""], EvalMath)
    metrics = run.eval_math(config.load(EvalMath, "eval_math", "base", overrides))
    assert metrics["macro_average"] == {"cot": 1.0, "pot": 1.0, "pot_or_cot": 1.0}
    records = evaluation.read_records(tmp_path / "out" / tiny.name / "simuleq-pot.jsonl")
    assert records[2]["samples"][0]["program"] == "print(6)" and records[2]["answer"] == "6"
