"""Write our tables as the recipe's published files: folds, hard negatives, teacher scores, ranker and listwise sets,
calibration texts. What is not given is not written; what is written reads back as the published sets do.
"""

from pathlib import Path

import pandas as pd

from podium import config, contracts, leaks, published, questions, rng, stage, tables
from podium.batching.queries import make_rows
from podium.errors import DataError
from podium.intake import UNGROUPED_FOLD
from podium.settings import ExportPublished


@config.app(ExportPublished, "export_published")
def main(cfg: ExportPublished) -> None:
    """Read the tables, refuse leaks, write one file or folder for each input given."""
    cfg = published.with_folders(cfg)
    inputs = {"questions": cfg.questions_dir, "candidates": cfg.candidates, "scores": cfg.scores, "groups": cfg.groups,
              "rationales": cfg.rationales}  # fmt: skip
    with stage.run("export_published", cfg, inputs) as run:
        if run.finished:
            return
        table = contracts.read_table(f"{cfg.questions_dir}/questions.parquet", contracts.QUESTIONS)
        catalogue = tables.read_catalogue(cfg.questions_dir)
        names = dict(zip(catalogue["misconception_id"].astype(int), catalogue["name"], strict=True))
        held = set(table.loc[table["fold"] == cfg.validation_fold, "query_id"])
        gold = questions.labelled_rows(table).set_index("query_id")["misconception_id"].astype(int).to_dict()
        digest = contracts.input_digest(f"{cfg.questions_dir}/questions.parquet")
        found = leaks.in_artefacts(inputs, cfg.validation_fold, digest) + leaks.in_questions(table, cfg.validation_fold)
        rows, mined = {}, None
        folds = table.drop_duplicates("QuestionId")[["QuestionId", "fold"]].rename(columns={"fold": "kfold"})
        grouped = folds[folds["kfold"] != UNGROUPED_FOLD]
        published.write_parquet(grouped.astype("int64"), run.folder / "folds.parquet")
        rows["folds"] = len(grouped)
        if cfg.candidates:
            mined = contracts.read_table(f"{cfg.candidates}/candidates.parquet", contracts.CANDIDATES)
            mapping = published.hn_mapping(mined[~mined["query_id"].isin(held)], gold, cfg.negatives_depth)
            published.write_mapping(mapping, run.folder / "hn_mapping.json")
            rows["hard negatives"] = sum(map(len, mapping.values()))
        if cfg.scores:
            scores = contracts.read_table(f"{cfg.scores}/scores.parquet", contracts.SCORES)
            teacher = published.teacher_mapping(scores[~scores["query_id"].isin(held)])
            published.write_mapping(teacher, run.folder / "teacher_mapping.json")
            rows["teacher scores"] = len(teacher)
        if cfg.groups:
            groups = contracts.read_table(f"{cfg.groups}/groups.parquet", contracts.GROUPS)
            found += leaks.in_groups(groups, gold)
            if mined is not None:
                found += leaks.in_lists(groups, held, mined)
            written = tables.read_rationales(cfg.rationales)
            thoughts = {} if written is None else {
                model: part.drop_duplicates("query_id").set_index("query_id")["text"].to_dict()
                for model, part in written.groupby("model")
            }  # fmt: skip
            write_ranker_sets(cfg, run.folder, groups, table, names, gold, thoughts, rows)
        if cfg.refuse_leaks:
            leaks.refuse(found, "mend them, or set refuse_leaks=false")
        elif found:
            print(f"warning: {len(found)} validation answers would reach training, first: {found[0]}")
        write_calibration(cfg, run.folder, table, catalogue, rows)
        run.finish(rows, facts={"leaks": len(found)})


def write_ranker_sets(
    cfg: ExportPublished, folder: Path, groups: pd.DataFrame, table: pd.DataFrame, names: dict[int, str], gold: dict[str, int],
    thoughts: dict[str, dict[str, str]], rows: dict[str, int],
) -> None:  # fmt: skip
    """Write ranker/{train,valid,valid_ff}.parquet and listwise/{train,valid}.parquet."""
    first = next(iter(thoughts.values()), None)
    is_held = groups["query_id"].isin(table.loc[table["fold"] == cfg.validation_fold, "query_id"])
    valid = groups[is_held & groups["rank"].notna()].sort_values(["query_id", "rank"])
    # for full fit a validation query trains like any other: its gold one and its first negatives
    gold_of = groups.loc[is_held, "query_id"].drop_duplicates()
    golds = pd.DataFrame({"query_id": gold_of, "misconception_id": gold_of.map(gold), "label": True}).dropna()
    golds = golds.merge(groups.drop(columns="label"), "left", ["query_id", "misconception_id"])
    negatives = valid[~valid["label"].astype(bool)].groupby("query_id").head(cfg.negatives_depth)
    full = pd.concat([golds.astype({"misconception_id": "int64"}), negatives]).sort_values("query_id", kind="stable")
    train = groups[~is_held]
    for name, part in (("train", train), ("valid", valid), ("valid_ff", full)):
        frame = published.pair_rows(part, table, names, first)
        published.write_parquet(frame, folder / "ranker" / f"{name}.parquet")
        rows[f"ranker {name}"] = len(frame)
    columns = dict(zip(published.LIST_COT, thoughts.values(), strict=False))
    for name, part in (("train", train), ("valid", full)):
        frame = published.list_rows(
            part, table, names, cfg.list_size, columns,
            lambda query, size: rng.permutation(size, cfg.seed, "listwise set", query),
        )  # fmt: skip
        if frame.empty:
            raise DataError(f"no {name} query has {cfg.list_size} candidates; lower list_size")
        published.write_parquet(frame, folder / "listwise" / f"{name}.parquet")
        rows[f"listwise {name}"] = len(frame)


def write_calibration(
    cfg: ExportPublished, folder: Path, table: pd.DataFrame, catalogue: pd.DataFrame, rows: dict[str, int]
) -> None:
    """Write calibration/{pointwise,listwise,reasoner}.parquet (column text): prompts of training rows."""
    train = questions.training_rows(table, [f for f in table["fold"].dropna().unique() if f != cfg.validation_fold])
    chosen = make_rows(tables.fixed_sample(train, cfg.calibration_rows), catalogue)
    for kind in ("pointwise", "listwise", "reasoner"):
        texts = published.calibration_texts(chosen, kind, cfg.prompt_style, cfg.list_size, cfg.seed)
        published.write_parquet(pd.DataFrame({"text": texts}), folder / "calibration" / f"{kind}.parquet")
        rows[f"calibration {kind}"] = len(texts)


if __name__ == "__main__":
    main()
