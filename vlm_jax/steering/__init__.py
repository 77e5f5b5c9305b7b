"""Methods that steer a model: edits of its weights and interventions on its attention."""
