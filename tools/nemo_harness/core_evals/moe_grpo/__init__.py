"""Our benchmarks as a harness of nemo-evaluator: framework.yml says what to run, runner.py runs it, output.py reads it.

No __init__.py in core_evals/: nemo-evaluator joins every folder of that name on the path.
"""
