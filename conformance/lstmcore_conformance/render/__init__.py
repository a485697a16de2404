"""Pages, tables and badges of reports, benchmarks and scoreboards: one set of Jinja2 templates, one stylesheet."""
