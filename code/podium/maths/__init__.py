"""Evaluating language models on maths: data sets, prompts, extraction, grading, a sandbox for programs, reports."""
