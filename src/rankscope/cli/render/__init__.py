"""Tables and previews for a terminal of eighty columns, a file per kind of verb."""
