"""Speed side by side with peers, and the scripts behind the tables of ``docs/clustering.md``."""
