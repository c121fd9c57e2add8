"""The steps of curation, one idea a file; importing a module registers its steps."""
