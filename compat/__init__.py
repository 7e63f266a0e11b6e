"""Other libraries' public names on top of ours. May import every room, nobody imports it."""
