"""The training run: its rows, its steps, its record."""
