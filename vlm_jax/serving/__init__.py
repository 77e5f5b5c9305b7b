"""An evaluation server that speaks OpenAI's chat API; arms of a config are its models.

Requests that wait at the same time are answered in one batch, whatever their arms. Knows nothing of
configs or of the command: `vlm_jax.jobs.serve` starts it.
"""
