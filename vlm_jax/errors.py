"""Errors that a user can cause: `ValueError`s whose message names the thing and the remedy."""


class UserError(ValueError):
    """Bad input from outside: shown as one line by `launch.py`, without a traceback."""


class ConfigError(UserError):
    """A `config.json` or an experiment config lacks a field or holds a value we cannot honour."""


class CheckpointError(UserError):
    """A model folder is missing files, truncated, misnamed, misshapen or not finite."""


class IdentityError(ConfigError):
    """A method's settings leave every head as it is."""


class PromptError(UserError):
    """A prompt or its images cannot become a batch."""


class AnswersError(UserError):
    """A file of answers, questions or ground truth has a row that cannot be read."""


class EditError(UserError):
    """A weight edit is out of range for the model it is asked of."""
