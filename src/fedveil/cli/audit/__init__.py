"""`fedveil audit`: what attacks find, beside what is stated.

`study` attacks a study, `mechanism` any function; `command` chooses between them.
"""
