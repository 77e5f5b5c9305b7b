"""The jobs of `launch.py`: one function each, all settings as arguments, no flags."""
