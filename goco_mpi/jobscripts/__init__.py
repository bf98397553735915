"""Batch scripts: `job` describes a job, one module a scheduler says it in directives, `render` writes the text.

Pure: no file, clock or environment. The command is `goco_mpi.commands.jobscript`.
"""
