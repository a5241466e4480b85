"""One run from settings to files: the command line, jobs, sweep, answers, tables and traces."""
