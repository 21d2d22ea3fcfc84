"""One config.json per known model: unmodified facts, with their source."""
