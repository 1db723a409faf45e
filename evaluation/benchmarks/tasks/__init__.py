"""Benchmark tasks: a YAML file each, with a Python file beside it where it has a form or a score of its own.

See docs/how-to-add.md; :mod:`tsugiki.evaluation.benchmarks.task` says what a YAML file may hold.
"""
