"""Results shown: a page of HTML, Markdown, the terminal."""
