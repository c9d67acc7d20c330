"""What the verbs print: tables and previews for a terminal, a file per kind of verb."""
