"""Methods that steer a model's attention: head sets, controls, and builders of a `Steering`."""
