"""The runner: which items there are, running them, and the report."""
