"""What was computed: the answers store, what computed them, and the plan on record.

Knows rows, keys and plain values; must not know models, methods, tasks or how answers are scored.
"""
