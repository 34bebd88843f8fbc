"""The page: look, label, train, correct, in a browser on the same machine.

`server` listens and `security` lets nobody else in. `project` is the folder that is open, `masks` and `journal` keep
what is painted, `slices` has the images. `jobs` runs the commands of `medsaga`, each a process of its own; `training`,
`results` and `export` say which and read what came of them. The front end lies in ``static/``: plain modules, no build.
"""
