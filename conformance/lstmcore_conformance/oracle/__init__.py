"""The expected results of cases, and the error that a backend may make."""
