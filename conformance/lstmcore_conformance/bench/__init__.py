"""The benchmark of processors and GPUs: each call is timed only after its values passed (docs/benchmarking.md).

- What is timed: `jobs`, `grids`. How long, in which order, by which statistics: `timing`, `statistics`.
- Whether values are right: `judging`. What came of it: `results`, read by `summary`, `tables`, `comparing`, `pictures`,
  and shown by `terminal`, `folder` and `lstmcore_conformance.render`.
- On a processor each runtime (`runtimes`) has a process for itself: `worker`, and `worker_client` in the parent; `run`
  is a whole run, `machine` and `roofline` describe the computer, `startup` times starts.
- Commands of their own: `cold_start` (nothing compiled), `load` (beside processes that spin), `compressed`.
- On a GPU (`timed_device`, `cuda`) both sides share one process and stream: `device_points` judges and times one job,
  `device_run` is a whole run, with the suite in processes (`shards`), `micro` and `goals`.
- `test_points` are the same points for pytest-benchmark; `instructions` and `counted` count instructions.
"""
