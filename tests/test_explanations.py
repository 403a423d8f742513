"""Misconception explanations are read by the retriever after the names, alike in training, mining and at inference; encoders
with their own tokenizer ([CLS] … [SEP]) train and mine as decoders do."""

import json

import pandas as pd
import pytest
import running
from safetensors.torch import load_file

from podium import contracts
from podium.batching import retrieval as batching
from podium.errors import DataError, MissingFileError


@pytest.fixture(scope="module")
def wordpiece_bert(tables, tmp_path_factory):
    """A BERT as MiniLM, bge and e5 are one: WordPiece, lower case, [CLS] and [SEP], 512 positions; 2 layers × 32."""
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("bert")
    trained = BertWordPieceTokenizer()
    texts = [*tables.questions["QuestionText"], *tables.catalogue["name"]]
    trained.train_from_iterator(texts, vocab_size=500, show_progress=False)
    trained.save_model(str(folder))
    tokenizer = BertTokenizerFast(vocab_file=str(folder / "vocab.txt"))
    tokenizer.save_pretrained(folder)
    config = BertConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)  # fmt: skip
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture
def explained(tables, tmp_path):
    """Explanations of all misconceptions but three, as a CSV."""
    told = tables.catalogue.iloc[3:]
    frame = pd.DataFrame({"MisconceptionId": told["misconception_id"], "Explanation": [f"zz{one} because" for one in told["misconception_id"]]})  # fmt: skip
    path = tmp_path / "explanations.csv"
    frame.to_csv(path, index=False)
    return path, dict(zip(frame["MisconceptionId"], frame["Explanation"], strict=True))


def mine(checkpoint, questions_dir, output_dir):
    running.run(
        "mine_candidates", f"checkpoint={checkpoint}", f"questions_dir={questions_dir}", f"output_dir={output_dir}",
        f"tables=[{questions_dir}/test.parquet]", "device=cpu", "top_k=25",
    )  # fmt: skip
    return contracts.read_table(output_dir / "candidates.parquet", contracts.CANDIDATES)


@pytest.mark.parametrize(("backbone", "pooling"), [("decoder", "last"), ("encoder", "mean"), ("encoder", "cls")])
def test_the_documents_are_the_same_everywhere(
    backbone, pooling, explained, tables, questions_dir, backbone_dir, wordpiece_bert, trainer, tmp_path, monkeypatch, capsys
):  # fmt: skip
    path, told = explained
    seen = []
    real = batching.tokenize_documents
    monkeypatch.setattr(batching, "tokenize_documents", lambda tokenizer, texts: seen.append(list(texts)) or real(tokenizer, texts))  # fmt: skip
    start = backbone_dir if backbone == "decoder" else wordpiece_bert
    refresh = "hard_negatives={candidates: null, per_query: 2, top: 8, refresh_every_steps: 2}"
    running.run(
        "train_llm_embedding",
        *trainer(tmp_path / "run", f"explanations={path}", f"model.backbone={start}", f"pooling={pooling}", refresh, "loop.max_steps=3"),
    )  # fmt: skip
    names = dict(zip(tables.catalogue["misconception_id"], tables.catalogue["name"], strict=True))
    wanted = {f"{name}\n{told[one]}" if one in told else name for one, name in names.items()}
    assert set(sum(seen, [])) == wanted, "whole catalogue at evaluations and mining, and nothing else in batches"
    assert sum(len(texts) < len(names) for texts in seen) >= 3, "training batches were among them"
    assert f"3 of {len(names)} misconceptions have no explanation" in capsys.readouterr().out

    seen.clear()
    ranked = mine(tmp_path / "run", questions_dir, tmp_path / "mined")
    assert set(sum(seen, [])) == wanted and len(ranked) == 25 * len(tables.test)
    assert json.loads((tmp_path / "run" / "explanations.json").read_text()) == {str(k): v for k, v in told.items()}
    assert contracts.read_meta(tmp_path / "run").pooling == pooling
    before, after = (load_file(folder / "model.safetensors") for folder in (start, tmp_path / "run"))
    shared = [key.removeprefix("model.") for key in before]
    matrices = [
        key for key in after if key in shared and after[key].ndim == 2 and "pooler" not in key
    ]  # BERT's pooler is not read
    still = [key for key in matrices if after[key].equal(before.get(key, before.get(f"model.{key}")))]
    assert matrices and not still

    (tmp_path / "run" / "explanations.json").unlink()
    with pytest.raises(MissingFileError, match="explanations.json"):
        mine(tmp_path / "run", questions_dir, tmp_path / "again")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([(1, "a"), (1, "b")], "more than once"), ([(9999, "a")], "not in the catalogue"), ([(1, " ")], "empty"),
        ([(1, "word " * 400)], "needs more than max_length_tokens"), ([("x", "a")], "x"),
    ],
)  # fmt: skip
def test_broken_explanations_are_one_clear_error(rows, message, trainer, tmp_path):
    pd.DataFrame(rows, columns=["MisconceptionId", "Explanation"]).to_csv(tmp_path / "told.csv", index=False)
    with pytest.raises(DataError, match=message):
        running.run("train_llm_embedding", *trainer(tmp_path / "run", f"explanations={tmp_path / 'told.csv'}"))
