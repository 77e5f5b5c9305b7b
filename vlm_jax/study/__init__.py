"""What jobs share: requests, arms of a comparison, the session that runs them, chunks of results.

A job is one file of `vlm_jax.jobs`; what two of them need is here.
"""
