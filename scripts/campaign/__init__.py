"""A campaign that tries to break the harness: faulty input, damaged files, kills and full disks.

Every case is made from a seed, runs the program as a person would, and is judged by rules that know
the right result from elsewhere. `make campaign` runs all of them, `make test` a sample.
"""
