"""lavt-serve: a bundle behind an HTTP API, and a page that shows it live. Needs the extra `serve`."""
