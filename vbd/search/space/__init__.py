"""The space that is searched: its settings, its dimensions, and draws from it."""
