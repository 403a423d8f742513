"""Run one inference ensemble from its YAML to submission.csv: one process a stage, current stages skipped."""

from podium import config, pipeline
from podium.settings import Predict


@config.app(Predict, "predict")
def main(cfg: Predict) -> None:
    """Check every step's settings, then run them in order."""
    pipeline.run(pipeline.steps_of(cfg.steps), fresh=cfg.fresh)
    print(f"the submission is {cfg.output_dir}/submission/submission.csv")


if __name__ == "__main__":
    main()
