"""How good a fit is: what its residuals still hold, and how boards and repeats differ."""
