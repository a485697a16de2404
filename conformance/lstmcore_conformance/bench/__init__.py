"""The benchmark: runtimes side by side, each timed only after its values passed. docs/benchmarking.md has the rules.

`jobs` says what is run and `grids` which sizes; a `worker` is the process of one runtime with one number of threads,
and `team` the parent's end of it; `measuring` takes turns between workers, `conformity` judges their values,
`machine` and `roofs` describe the computer; `results` is what a run found, and `summary`, `table` read it.
"""
