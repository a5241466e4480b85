"""Pictures of coloured shapes on a grid, drawn from a seed: scenes and their rendering."""
