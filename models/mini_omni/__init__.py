"""Mini-Omni (https://github.com/gpt-omni/mini-omni, MIT): a 0.5 B model that hears, writes and speaks at once."""
