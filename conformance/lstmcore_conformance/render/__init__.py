"""Reports as pages, tables, badges and other formats."""
