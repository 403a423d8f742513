"""Defects of the two WSDM solutions that general parts of the project keep out (the others: tests/test_pairwise_*.py)."""

import pytest
import running
import torch
import yaml
from test_config import composed
from test_training import lines, stepper

from podium import config, training

CONFIGS = sorted((config.CONF / "ranker_pairwise").glob("conf_*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_defect_wsdm_14_a_header_says_nf4_where_the_config_does(path):
    header = "".join(line for line in path.read_text().splitlines() if line.startswith("#"))
    values = composed("ranker_pairwise", path.stem)
    assert ("nf4" in header) == (values["model"]["quantization"] == "nf4")


def test_defect_features_5_launch_files_hold_numbers_and_leave_debugging_off():
    files = sorted((config.CONF / "accelerate").glob("*.yaml"))
    assert len(files) >= 5
    for path in files:
        values = yaml.safe_load(path.read_text())
        assert values["debug"] is False and type(values["num_processes"]) is int and "gloo" not in path.read_text()


def test_defect_features_6_one_figure_says_which_weights_are_best(tmp_path):
    figures = iter([3.0, 1.0, 2.0])
    given = stepper(tmp_path, max_steps=3, eval_every_steps=1, keep=1)
    seen = []

    def evaluate(model):
        seen.append([one.detach().clone() for one in model.parameters()])
        return {"log_loss": next(figures), "accuracy": 0.9 - len(seen) / 10}

    progress = training.train(**given | {"evaluate": evaluate, "best_metric": "log_loss", "lower_is_better": True})
    assert (progress.best_step, progress.best_value) == (2, 1.0)
    assert all(torch.equal(one, two) for one, two in zip(given["model"].parameters(), seen[1], strict=True))


def test_defect_features_11_gradients_are_clipped_and_the_schedule_follows_the_optimizer(tmp_path):
    given = stepper(tmp_path, max_grad_norm=0.5)
    norms, moved = [], []
    real = given["optimizer"].step

    def step(*arguments):
        gradients = [one.grad for one in given["model"].parameters()]
        norms.append(float(torch.nn.utils.get_total_norm(gradients)))
        moved.append([group["lr"] for group in given["optimizer"].param_groups])
        return real(*arguments)

    given["optimizer"].step = step
    training.train(**given)
    assert max(norms) <= 0.5 + 1e-6 and max(line["grad_norm"] for line in lines(tmp_path)) > 0.5
    assert len(moved) == len(lines(tmp_path)) and len({rates[0] for rates in moved}) > 2


def test_defect_wsdm_7_pairs_without_rationales_train(pairs_dir, tmp_path):
    assert not list((pairs_dir / "pairs").glob("*rationale*"))
    running.run(
        "train_ranker_pairwise", f"data.pairs_dir={pairs_dir}/pairs", f"model.backbone={pairs_dir}/qwen2", "device=cpu",
        f"output_dir={tmp_path}/run", "loop.max_steps=1", "loop.epochs=null", "loop.batch_size=4", "max_length_tokens=128",
    )  # fmt: skip
    (line,) = [line for line in lines(tmp_path / "run") if "loss" in line]
    assert 0 < line["loss"] < 5 and "rationale_loss" not in line
