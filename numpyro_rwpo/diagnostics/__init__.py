"""What to believe of a run: diagnosis, comparison with other runs, tables and figures."""
