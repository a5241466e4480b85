"""The process itself: signals, the terminal, working copies. Imports nothing that takes time."""
