"""Cases: models, sizes and their data."""
