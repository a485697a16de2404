"""The runner: the items of a run, the calls of the backend, and the report."""
