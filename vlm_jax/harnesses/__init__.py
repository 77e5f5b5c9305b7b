"""Our models inside the harnesses of others, ONE FILE A HARNESS."""
