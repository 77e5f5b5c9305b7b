"""Why a model says what it says: which tokens name objects, and what each head does to them."""
