"""Pages for people: FastAPI with Jinja templates and plain JavaScript, everything served from here."""
