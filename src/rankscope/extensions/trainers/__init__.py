"""Other trainers' files: ``init --from`` makes a study of one, ``export --patch`` writes one."""
