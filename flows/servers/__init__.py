"""The servers that are started here, and the settings that point to them."""
