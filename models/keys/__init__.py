"""Maps between foreign state-dict names and ours. Pure functions of names, tested as data."""
