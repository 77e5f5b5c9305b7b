"""The jobs, one file each: `run(request)`, all settings as arguments, no flags."""
