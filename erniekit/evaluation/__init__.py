"""Evaluation: loss, perplexity and metrics of generated answers, in `erniekit eval` and during training.

dataset, scores, metrics: eval samples, sums and metrics, for both.
evaluate, report, report_page: `erniekit eval`.
evaluator, answers, distributed_generator: during training, by all processes of the run.
"""
